"""What the U-Net is told of a call beside the prompt: the scale of guidance, and the class."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastdiff.config import ModelSpec

if TYPE_CHECKING:
    from fastdiff.request import Request

__all__ = ["call_conditions", "guidance_embedding"]

_LONGEST_PERIOD = 10_000.0


def guidance_embedding(scale: float, width: int) -> NDArray[np.float32]:
    """[1, width] float32: sine and cosine embedding of ``1000 · (scale − 1)``, as timesteps are embedded.

    A latent consistency model has learned what guidance does at every scale w − 1, so that one evaluation
    does for two (Luo et al. 2023, "Latent Consistency Models", section 4.2). In float32 throughout, as
    diffusers computes it. An odd width ends in a zero.
    """
    half = width // 2
    # the very operations and types of diffusers: a difference of one bit is multiplied by 1000
    step = np.float32(np.log(_LONGEST_PERIOD)) / np.float32(half - 1)
    frequencies = np.exp(np.arange(half, dtype=np.float32) * -step)
    angles = np.float32(scale - 1) * np.float32(1000) * frequencies
    waves = np.concatenate([np.sin(angles), np.cos(angles), np.zeros(width % 2, np.float32)])
    return waves.astype(np.float32)[None]


def call_conditions(model: ModelSpec, request: Request) -> dict[str, NDArray[Any]]:
    """Inputs of the U-Net that a call gives in every branch of guidance, each [pictures, …]:
    ``timestep_cond`` float32 and ``class_labels`` int64, those that the model has.
    """
    inputs: dict[str, NDArray[Any]] = {}
    if model.guidance_embedding:
        row = guidance_embedding(request.scale, model.guidance_embedding)
        inputs["timestep_cond"] = np.repeat(row, request.pictures, axis=0)
    if model.num_classes:
        inputs["class_labels"] = np.array(request.class_labels, dtype=np.int64)
    return inputs
