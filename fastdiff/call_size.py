"""The size of a call, in pixels and pictures: what the engine was built for, and what memory holds."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastdiff.engine_dir import Engine
from fastdiff.errors import EngineError, InputError
from fastdiff.request import Request
from fastdiff.samplers import Guidance
from fastdiff.system_memory import available_memory, total_memory
from fastdiff.warn import warn

if TYPE_CHECKING:
    from fastdiff.pipeline import Pipeline

__all__ = ["check_memory", "check_shapes", "check_size"]

_UNCOUNTED = 2**42
"""Bytes of the smallest result that is too large for targets to count, one of 2^40 numbers."""


def check_size(pipe: Pipeline, request: Request) -> None:
    """What tasks ask before they draw noise or read a picture: `check_shapes`, then `check_memory`."""
    check_shapes(pipe.engine, request, pipe.splits_guidance)
    check_memory(pipe, request)


def check_shapes(engine: Engine, request: Request, split_guidance: bool = False) -> None:
    """The sizes of a call against what the modules were built for. Raises InputError.

    ``split_guidance``: the halves of guidance run apart and do not add to a batch.
    """
    factor = engine.manifest.model.vae_scale_factor
    rows = request.pictures * (1 if split_guidance else request.branches)
    batches = [("unet", rows)]
    if not engine.manifest.model.on_pixels:
        batches.append(("vae_decoder", request.pictures))
    if isinstance(request.guidance, Guidance) and request.guidance.interval is not None:
        batches.append(("unet", request.pictures))  # in the steps outside
    for module, batch in batches:
        shapes = engine.entry(module).shapes
        for side in ("height", "width"):
            size = getattr(request, side)
            if side in shapes and size // factor not in shapes[side]:
                low, high = shapes[side].minimum * factor, shapes[side].maximum
                limit = f"{low} or more" if high is None else f"from {low} to {high * factor}"
                way = f"use {low}" if size < low else "build it for more"
                raise InputError(f"{side} is {size}: {module} of this engine takes {limit}; {way}")
        if "batch" in shapes and batch not in shapes["batch"]:
            raise InputError(
                f"{request.pictures} pictures at once need a batch of {batch} in {module}: this engine "
                f"takes {shapes['batch']}; ask for {'more' if batch < shapes['batch'].minimum else 'fewer'}"
            )


def check_memory(pipe: Pipeline, request: Request) -> None:
    """Raises InputError for pictures that cannot be in this machine's memory, as far as the U-Net's target
    knows, and warns of those that are not now. Sizes that an engine was built for are not asked about.
    """
    model = pipe.engine.manifest.model
    usual = model.default_height * model.default_width * model.default_batch
    if request.height * request.width * request.pictures <= usual:
        return
    unet, factor = pipe.modules["unet"], model.vae_scale_factor
    sizes = {
        "batch": request.pictures * (1 if pipe.splits_guidance else request.branches),
        "height": request.height // factor,
        "width": request.width // factor,
        "tokens": model.max_tokens,
        "image_tokens": model.control.ip_adapter.tokens if model.control.ip_adapter is not None else 0,
    }
    try:
        planned = unet.planned_bytes({symbol: sizes[symbol] for symbol in unet.shapes})
    except EngineError:
        planned = _UNCOUNTED
    if planned is None:
        return
    needed, total, free = planned - unet.held_bytes(), total_memory(), available_memory()
    size = f"{request.width} x {request.height}"
    few = f"a picture of {size} needs"
    said = f"{few if request.pictures == 1 else f'{request.pictures} pictures of {size} at once need'} "
    said += f"{'over ' if planned == _UNCOUNTED else ''}{planned / 1e9:.1f} GB of memory"
    way = "make it smaller" if request.pictures == 1 else "make them smaller, or fewer at once"
    if total is not None and planned > total:
        raise InputError(f"{said}, this machine has {total / 1e9:.1f} GB: {way}")
    if free is not None and needed > free:
        warn(f"{said}, {free / 1e9:.1f} GB are free: it may be swapped out, or ended by the system; {way}")
