"""Guidance rescale: Lin et al., "Common Diffusion Noise Schedules and Sample Steps are Flawed"."""

from __future__ import annotations

from fastdiff.samplers.guidance.images import divided, per_image, std
from fastdiff.samplers.guidance.method import Array

__all__ = ["rescaled"]


def rescaled(guided: Array, cond: Array, phi: float) -> Array:
    """φ·m·std(cond)/std(m) + (1 − φ)·m for each image: section 3.4.

    High scales widen the output's spread, which overexposes pictures. An image without any spread stays.
    """
    ratio = divided(std(cond), std(guided), 1.0)
    result: Array = per_image(phi * ratio + (1 - phi), guided) * guided
    return result
