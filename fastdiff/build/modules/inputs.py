"""Inputs of modules as they occur in sampling, made up."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastdiff.build.modules.spec import ModuleSpec

__all__ = ["random_inputs"]

_TIME_IDS = (1024, 1024, 0, 0, 1024, 1024)
"""What SDXL is told of a picture of its own size that was not cropped."""
_REFINER_IDS = (1024, 1024, 0, 0, 6)
"""What its refiner is told: the aesthetic score that it shall have, in place of its own size."""


def random_inputs(
    spec: ModuleSpec, sizes: dict[str, int], seed: int, vocab_size: int = 1
) -> dict[str, NDArray[Any]]:
    """Inputs as they occur in sampling: token ids, timesteps of 0 to 999, picture sizes (original height and
    width, crop, target height and width), and normal deviates elsewhere.

    ``sizes`` gives the symbolic sizes, ``height`` and ``width`` in latent pixels.
    """
    rng = np.random.default_rng(seed)
    arrays: dict[str, NDArray[Any]] = {}
    for tensor in spec.inputs:
        shape = tensor.concrete(sizes)
        if tensor.dtype == "int64":
            arrays[tensor.name] = rng.integers(0, spec.labels or vocab_size, shape)
        elif tensor.name == "timestep":
            arrays[tensor.name] = rng.integers(0, 1000, shape).astype(np.float32)
        elif tensor.name == "time_ids":
            ids = _REFINER_IDS if shape[1] == len(_REFINER_IDS) else _TIME_IDS
            arrays[tensor.name] = np.broadcast_to(np.array(ids, np.float32), shape).copy()
        else:
            arrays[tensor.name] = rng.standard_normal(shape, np.float32)
    return arrays
