"""Pools of drawn scenes: rendered once, kept as arrays, read at random by every training stage."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fastdiff.zoo.training.drawing import draw
from fastdiff.zoo.training.scene import Scene, random_scene

__all__ = ["scenes_and_pictures"]


def scenes_and_pictures(
    run: Path, name: str, count: int, seed: int, size: int, held_out: bool = False
) -> tuple[list[Scene], NDArray[np.uint8]]:
    """``count`` scenes and their pictures, uint8 ``[count, size, size, 3]``, cached as ``run/name.*``."""
    scenes_file, pictures_file = run / f"{name}.scenes", run / f"{name}.npy"
    if scenes_file.exists() and pictures_file.exists():
        with scenes_file.open("rb") as f:
            scenes: list[Scene] = pickle.load(f)
        return scenes, np.load(pictures_file, mmap_mode="r")
    rng = np.random.default_rng(seed)
    scenes = [random_scene(rng, held_out) for _ in range(count)]
    pictures = np.stack([draw(s, size) for s in scenes])
    run.mkdir(parents=True, exist_ok=True)
    with scenes_file.open("wb") as f:
        pickle.dump(scenes, f)
    np.save(pictures_file, pictures)
    return scenes, pictures
