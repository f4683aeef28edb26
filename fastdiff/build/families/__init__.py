"""The families of checkpoints that can be built, a file each; FAMILIES finds one by its pipeline class."""

from __future__ import annotations

from collections.abc import Mapping

from fastdiff.build.families import (
    pixels,
    stable_diffusion,
    stable_diffusion_xl,
    unconditional_latent,
    upscale,
)
from fastdiff.build.families.family import Family, Source

__all__ = ["FAMILIES", "Family", "Source"]

FAMILIES: Mapping[str, Family] = {
    pipeline: family
    for family in (
        stable_diffusion.FAMILY,
        stable_diffusion_xl.FAMILY,
        upscale.FAMILY,
        unconditional_latent.FAMILY,
        pixels.FAMILY,
    )
    for pipeline in family.pipelines
}
"""Families by the classes of ``diffusers`` that ``model_index.json`` names."""
