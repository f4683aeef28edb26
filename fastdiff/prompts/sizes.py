"""What SDXL's U-Nets are told of a picture beside its prompt: sizes of the training picture, or a score.

Podell et al. 2023 ("SDXL: Improving Latent Diffusion Models for High-Resolution Image Synthesis"), section
2.2: the size that a training picture had before it was scaled, how much was cropped from its top and left,
and the size that it was trained at. Six numbers, ``time_ids``; a refiner takes an aesthetic score in the
place of the last two.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastdiff.arguments import integer, number, show
from fastdiff.config import ModelSpec
from fastdiff.errors import InputError

__all__ = ["SizeConditioning", "read_sizes"]

Pair = tuple[int, int]

_SCORES = ("aesthetic_score", "negative_aesthetic_score")
_TARGETS = ("target_size", "negative_target_size")
_LARGEST = 1 << 20
_GOOD, _BAD = 6.0, 2.5
"""Scores of the prompt and of the negative one where none are given, as in diffusers."""


@dataclass(frozen=True)
class SizeConditioning:
    """Sizes are (height, width), crops (top, left), in pixels; None is what the model expects by itself."""

    original_size: Pair | None = None
    crops_coords_top_left: Pair | None = None
    target_size: Pair | None = None
    negative_original_size: Pair | None = None
    negative_crops_coords_top_left: Pair | None = None
    negative_target_size: Pair | None = None
    aesthetic_score: float | None = None
    negative_aesthetic_score: float | None = None

    def settings(self) -> dict[str, Any]:
        """What was given, in JSON values."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(self).items()
            if value is not None
        }

    @property
    def negative(self) -> tuple[str, ...]:
        """Names of what was given for the half without the prompt."""
        return tuple(name for name in self.settings() if name.startswith("negative_"))

    def time_ids(
        self, count: int, height: int, width: int
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """``time_ids`` [``count``], 5 or 6, for the prompt and for the rest, of a picture of these pixels.

        As in diffusers, the rest is told the same as the prompt unless something else was given for it, and
        then, as by a refiner, that it was not cropped.
        """
        size = (height, width)
        original, crop = self.original_size or size, self.crops_coords_top_left or (0, 0)
        other = self.negative_original_size or original
        other_crop = self.negative_crops_coords_top_left or (0, 0)
        if count == 5:
            good = _GOOD if self.aesthetic_score is None else self.aesthetic_score
            bad = _BAD if self.negative_aesthetic_score is None else self.negative_aesthetic_score
            return _row(*original, *crop, good), _row(*other, *other_crop, bad)
        target = self.target_size or size
        prompt = _row(*original, *crop, *target)
        if not self.negative:
            return prompt, prompt
        return prompt, _row(*other, *other_crop, *(self.negative_target_size or target))


def _row(*numbers: float) -> NDArray[np.float32]:
    return np.array(numbers, np.float32)


def read_sizes(model: ModelSpec, given: Mapping[str, object]) -> SizeConditioning:
    """Arguments of a call by name, those that are None left out. Raises InputError.

    What a model does not take is refused: it would have no effect.
    """
    for name in given:
        if not model.time_ids:
            raise InputError(
                f"{name} is for models that take sizes, such as SDXL: leave it out with this one"
            )
        if model.time_ids == 5 and name in _TARGETS:
            raise InputError(
                f"{name} has no effect with a refiner, which takes an aesthetic score: leave it out"
            )
        if model.time_ids != 5 and name in _SCORES:
            raise InputError(f"{name} has no effect with this model: it is for refiners; leave it out")
    known = {field.name for field in fields(SizeConditioning)}
    values: dict[str, Any] = {}
    for name, value in given.items():
        if name not in known:
            raise TypeError(f"unknown size {name!r}")
        values[name] = number(name, value) if name in _SCORES else _pair(name, value)
    return SizeConditioning(**values)


def _pair(name: str, value: object) -> Pair:
    crop = "crops" in name
    what = "(top, left)" if crop else "(height, width)"
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise InputError(f"{name} is {show(value)}: it must be two whole numbers {what}, in pixels")
    least = 0 if crop else 1
    first, second = (
        integer(f"{name} {part}", number, least, _LARGEST)
        for part, number in zip(what.strip("()").split(", "), value, strict=True)
    )
    return first, second
