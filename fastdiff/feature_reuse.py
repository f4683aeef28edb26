"""Evaluations of the U-Net from kept features: what ``deep_cache.py`` asks for, computed.

Ma et al., "DeepCache: Accelerating Diffusion Models for Free" (2023).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastdiff.errors import InputError

if TYPE_CHECKING:
    from fastdiff.denoise import Evaluation
    from fastdiff.engine_dir import Engine
    from fastdiff.targets.session import Session

__all__ = ["SHALLOW", "FeatureReuse", "check_deep_cache"]

Array = NDArray[np.float32]
SHALLOW = "unet_shallow"
"""The module of the shallow evaluations."""


def check_deep_cache(engine: Engine, adaptive: str | None, split_guidance: bool) -> None:
    """Whether an engine can reuse features in a call. Raises InputError.

    ``adaptive`` names a sampler that chooses its own steps, ``split_guidance`` says that the halves of
    guidance run on two devices.
    """
    if SHALLOW not in engine.manifest.modules:
        raise InputError(
            f"deep_cache: {engine.path} was built without it; build it with fastdiff build CHECKPOINT "
            "--deep-cache, or leave deep_cache out"
        )
    if adaptive is not None:
        raise InputError(
            f"deep_cache with sampler {adaptive!r}, which chooses its own steps by the error that it sees: "
            "use another sampler, or leave deep_cache out"
        )
    if split_guidance:
        raise InputError("deep_cache with a guidance_device: the features stay on one; leave one of them out")


class FeatureReuse:
    """What computes the U-Net's output: the whole of it in ``full`` evaluations, the shallow part in others.

    Where the batch changes, as at the ends of a guidance interval, an evaluation is full as well.
    """

    def __init__(self, unet: Session, shallow: Session, full: frozenset[int]) -> None:
        self._unet = unet
        self._shallow = shallow
        self._full = full
        self._features: Array | None = None

    def __call__(self, evaluation: Evaluation, inputs: dict[str, NDArray[Any]]) -> Array:
        """[batch, channels, h, w] of the inputs of the U-Net."""
        kept = self._features
        if kept is None or evaluation.index in self._full or len(kept) != len(inputs["sample"]):
            outputs = self._unet(**inputs)
            self._features = outputs["deep_features"]
        else:
            reached = {tensor.name: inputs.get(tensor.name) for tensor in self._shallow.inputs}
            outputs = self._shallow(**{**reached, "deep_features": kept})
        sample: Array = outputs["sample"]
        return sample
