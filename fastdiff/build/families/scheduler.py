"""The scheduler config by which diffusers' pipelines go where a checkpoint's own is out of date.

The constructors of the pipelines of Stable Diffusion 1.x and 2.x replace values that early checkpoints lack
or have wrong. What is left to a class's default counts as that default.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["corrected_scheduler"]

_FROM_TEXT = {"steps_offset": 1, "clip_sample": False}
_INSIDE = {"steps_offset": 1, "skip_prk_steps": True}
_CORRECTIONS: Mapping[str, Mapping[str, Any]] = {
    "StableDiffusionPipeline": _FROM_TEXT,
    "StableDiffusionImg2ImgPipeline": _FROM_TEXT,
    "StableDiffusionInpaintPipeline": _INSIDE,
}
"""The values that a pipeline's class insists on."""

_CLIPPING = ("DDIMScheduler", "DDIMParallelScheduler", "DDPMScheduler", "DDPMParallelScheduler")
_WITH_OFFSET = (
    *_CLIPPING,
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LCMScheduler",
    "LMSDiscreteScheduler",
    "PNDMScheduler",
    "SASolverScheduler",
    "TCDScheduler",
    "UniPCMultistepScheduler",
)
_OTHERWISE: Mapping[str, tuple[Any, tuple[str, ...]]] = {
    "steps_offset": (0, _WITH_OFFSET),
    "clip_sample": (True, _CLIPPING),
    "skip_prk_steps": (False, ("PNDMScheduler",)),
}
"""What a key that is missing means, in classes where that is not what the pipelines insist on."""


def corrected_scheduler(pipeline: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """``config`` as the pipeline class of ``model_index.json`` would have it."""
    result = dict(config)
    for key, wanted in _CORRECTIONS.get(pipeline, {}).items():
        default, classes = _OTHERWISE[key]
        found = config.get(key, default if config.get("_class_name") in classes else wanted)
        if found != wanted:
            result[key] = wanted
    return result
