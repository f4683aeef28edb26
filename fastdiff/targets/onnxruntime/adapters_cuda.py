"""LoRAs of a module on CUDA: its second graph's matrices, in the types of its layers.

Ranks are rounded up to multiples of 8, with zeros, and a branch without updates has 8 of them: tensor cores
want such sizes, an input without elements has no address on the device, and every set of ranks has CUDA
graphs of its own, of which there are fewer then.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastdiff.errors import NumericError
from fastdiff.targets import parameters
from fastdiff.targets.onnxruntime.adapters import SUFFIX
from fastdiff.targets.parameters import Layer

if TYPE_CHECKING:
    from fastdiff.build.capture import CapturedModule
    from fastdiff.lora.update import LowRank

__all__ = ["PLACE", "RANK_STEP", "matrices_of", "write_adaptable"]

PLACE = (str, str, str, int, int)
"""Of a layer: what the names of its two inputs begin with, their dtype, how they lie ("linear", or the order
of a convolution's picture, "NCHW" or "NHWC"), the first of its outputs in theirs, and how many these are:
layers that the graph computes at once have their inputs in common."""

RANK_STEP = 8
"""What ranks are multiples of."""

_MOST_THREADS = 8
"""That round matrices: memory gives no more."""

_EXPONENTS = {"float16": 0x7C00, "float32": 0x7F800000}
"""The bits of a number's exponent, all of which infinity and NaN have."""


def write_adaptable(captured: CapturedModule, folder: Path, model: str) -> tuple[str, ...]:
    """Write what LoRAs need beside the optimised file ``model``; names of the files. Raises OutputError."""
    from fastdiff.build.onnx_weights import CHANNELS_LAST, find_weights
    from fastdiff.targets.onnxruntime.branches import write_branches

    located = find_weights(captured, folder, model, merged=True)
    if not located:
        return ()
    name = f"{captured.name}{SUFFIX}"
    layers = {}
    for path, layer in write_branches(folder, model, name, located).items():
        ((branch,),), weight = layer.places, located[path]
        order = "linear" if len(layer.shape) == 2 else "NCHW"
        order = "NHWC" if weight.axes == CHANNELS_LAST else order
        place = (branch, weight.dtype, order, weight.first, weight.columns or layer.shape[0])
        layers[path] = Layer(layer.shape, (place,))
    return (name, *parameters.write(folder, captured.name, layers)) if layers else ()


def matrices_of(
    layers: Mapping[str, Layer], updates: Mapping[str, Sequence[LowRank]], threads: int
) -> dict[str, NDArray[Any]]:
    """The second graph's inputs for some updates by name: of each branch ``down`` and ``up``.

    Raises NumericError for an update that the type of its layer cannot hold.
    """
    branches: dict[str, list[str]] = {}
    for path, layer in layers.items():
        branches.setdefault(layer.places[0][0], []).append(path)
    matrices: dict[str, NDArray[Any]] = {}
    with ThreadPoolExecutor(min(threads, _MOST_THREADS)) as pool:  # NumPy rounds without Python's lock
        together = [{path: layers[path] for path in paths} for paths in branches.values()]
        pairs = pool.map(lambda some: _pair(some, updates), together)
        for branch, (down, up) in zip(branches, pairs, strict=True):
            matrices[f"{branch}/down"], matrices[f"{branch}/up"] = down, up
    return matrices


def _pair(
    layers: Mapping[str, Layer], updates: Mapping[str, Sequence[LowRank]]
) -> tuple[NDArray[Any], NDArray[Any]]:
    """The matrices of a branch: those of all updates of its layers beside each other, then zeros."""
    parts = [(path, part) for path in layers for part in updates.get(path, ())]
    shape, ((_, dtype, order, _, columns),) = next((layer.shape, layer.places) for layer in layers.values())
    rank = RANK_STEP * max(1, math.ceil(sum(part.rank for _, part in parts) / RANK_STEP))
    down, down_rows = _zeros_down(rank, shape[1:], dtype, order)
    up, up_columns = _zeros_up(columns, rank, len(shape) - 2, dtype, order)
    begin = 0
    for path, part in parts:
        rows = slice(begin, begin + part.rank)
        ((_, _, _, first, _),) = layers[path].places
        share = _share(part.scale)
        down_rows[rows] = _rounded(path, part.down, share, dtype)
        up_columns[first : first + layers[path].shape[0], rows] = _rounded(
            path, part.up, part.scale / share, dtype
        )
        begin += part.rank
    return down, up


def _rounded(path: str, array: NDArray[np.float32], factor: float, dtype: str) -> NDArray[Any]:
    """``factor`` times an array, rounded once; transposing afterwards takes half as long as on the way.

    Raises NumericError.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        rounded = np.multiply(array, np.float32(factor), out=np.empty(array.shape, dtype), casting="unsafe")
    if not _is_finite(rounded):
        raise NumericError(
            f"a LoRA is out of the range of {dtype} at {path}: give it a smaller scale, or use an engine that"
            " computes in float32"
        )
    return rounded


def _share(scale: float) -> float:
    """The part of a scale below 1 that ``down`` takes, a power of two about its root.

    Small scales would leave ``up`` among the numbers of which halves have few digits.
    """
    return math.ldexp(1.0, min(0, math.frexp(scale)[1] // 2))


def _zeros_down(
    rank: int, inner: tuple[int, ...], dtype: str, order: str
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Zeros as the graph takes them, and the same memory seen as [rank, in] or [rank, in, h, w]."""
    if order == "linear":
        down = np.zeros((inner[0], rank), dtype)
        return down, down.T
    down = np.zeros((rank, *inner), dtype)
    return down, down


def _zeros_up(out: int, rank: int, spatial: int, dtype: str, order: str) -> tuple[NDArray[Any], NDArray[Any]]:
    """Zeros as the graph takes them, and the same memory seen as [out, rank]."""
    if order == "NCHW":
        up = np.zeros((out, rank), dtype)
        return up.reshape(out, rank, *(1,) * spatial), up
    up = np.zeros((rank, out), dtype)
    return up, up.T


def _is_finite(array: NDArray[Any]) -> bool:
    exponent = _EXPONENTS[str(array.dtype)]
    bits = array.view(f"u{array.itemsize}")
    return int((bits & bits.dtype.type(exponent)).max()) < exponent
