"""One model begins a picture and another, such as SDXL's refiner, goes on."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from fastdiff.arguments import number
from fastdiff.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fastdiff.pipeline import Pipeline
    from fastdiff.result import Result

__all__ = ["check_start", "refine"]

_BOTH = ("negative", "steps", "guidance", "num", "eta", "progress")
"""Options of a call that hold for both models; the rest is of the first model's parts."""


def check_start(start: object) -> float:
    """The share of the way that the first model goes. Raises InputError."""
    share = number("refiner_start", start)
    if not 0 < share < 1:
        raise InputError(f"refiner_start is {share:g}: it must be more than 0 and less than 1")
    return share


def refine(
    refiner: Pipeline, first: Result, prompt: str | list[str] | None, start: float, call: Mapping[str, Any]
) -> Result:
    """What ``refiner`` makes of the latents of ``first``, of a call with ``denoising_end=start``.

    ``call`` are that call's options. The metadata hold those of the first model as ``base``.
    """
    settings = first.metadata[0]["settings"]
    options = {name: call[name] for name in _BOTH if name in call}
    result = refiner.img2img(
        prompt=prompt,
        latents=first.latents,
        denoising_start=start,
        sampler=settings["sampler"],
        seed=first.seed,
        **options,
    )
    metadata = [
        {**refined, "base": {"engine": base["engine"], "settings": base["settings"]}}
        for refined, base in zip(result.metadata, first.metadata, strict=True)
    ]
    return replace(result, metadata=metadata)
