"""Published configurations of full-size models, measured with random weights: times do not depend on them.

``fastdiff.published`` has the configurations; here stands which module of them is measured, and how.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastdiff.config import ModelSpec
from fastdiff.published import PARAMETERS, SOURCES, part_config

__all__ = ["PUBLISHED", "Published"]


@dataclass(frozen=True)
class Published:
    """One part of a published model: its config, the module that is measured, the config's source."""

    part: str
    module: str
    config: Mapping[str, Any]
    parameters: int
    model: ModelSpec
    source: str


_SD15 = ModelSpec(
    family="stable_diffusion",
    latent_channels=4,
    vae_scale_factor=8,
    scaling_factor=0.18215,
    shift_factor=0.0,
    default_height=512,
    default_width=512,
    default_batch=1,
    size_multiple=64,
    max_tokens=77,
    hidden_size=768,
)

_SDXL = ModelSpec(
    family="stable_diffusion_xl",
    latent_channels=4,
    vae_scale_factor=8,
    scaling_factor=0.13025,
    shift_factor=0.0,
    default_height=1024,
    default_width=1024,
    default_batch=1,
    size_multiple=32,
    max_tokens=77,
    hidden_size=2048,
    pooled_size=1280,
    time_ids=6,
)


def _published(model: str, part: str, module: str, spec: ModelSpec) -> Published:
    return Published(
        part,
        module,
        part_config(model, part),
        PARAMETERS[model][part],
        spec,
        f"{SOURCES[model]}/blob/main/{part}/config.json",
    )


PUBLISHED: Mapping[str, Published] = {
    "sd15-unet": _published("sd15", "unet", "unet", _SD15),
    "sd15-vae-decoder": _published("sd15", "vae", "vae_decoder", _SD15),
    "sdxl-unet": _published("sdxl", "unet", "unet", _SDXL),
    "sdxl-vae-decoder": _published("sdxl", "vae", "vae_decoder", _SDXL),
}
"""Names that ``fastdiff bench`` takes in place of a checkpoint."""
