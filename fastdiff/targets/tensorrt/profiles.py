"""Optimisation profiles from a module's shape range.

TensorRT compiles for ranges with an end and tunes its kernels for one usual size within each. A range that
has no end gets one from the size that the engine is built for (``CompileOptions.sizes``):

    height, width    from half of it to twice it
    batch, tokens    from the least to twice it

and where the picture's size is symbolic, which is where the time goes, profile 0 is for exactly the usual
sizes: its kernels need not serve others, and its device memory is that of this size. The last profile is the
range.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fastdiff.config import SizeRange, TensorSpec
from fastdiff.targets.tensorrt.interface import Shape

__all__ = ["Profile", "bounded", "choose", "input_shapes", "make_profiles", "shape_of"]

Profile = Mapping[str, tuple[int, int, int]]
"""For each symbolic size the least, the usual and the largest value."""

_PICTURE = ("height", "width")


def bounded(symbol: str, size: SizeRange, usual: int) -> SizeRange:
    """The part of a range that an engine is built for."""
    least = size.minimum
    if symbol in _PICTURE:
        half = usual // 2 // size.multiple_of * size.multiple_of
        least = max(least, half)
    most = 2 * usual if size.maximum is None else min(size.maximum, 2 * usual)
    return SizeRange(least, most, size.multiple_of)


def make_profiles(
    shapes: Mapping[str, SizeRange], usual: Mapping[str, int]
) -> tuple[list[Profile], dict[str, SizeRange]]:
    """The profiles, and the range of each size that the last of them covers."""
    ranges = {symbol: bounded(symbol, size, usual[symbol]) for symbol, size in shapes.items()}
    whole = {
        symbol: (size.minimum, usual[symbol], size.maximum or usual[symbol])
        for symbol, size in ranges.items()
    }
    if not any(symbol in whole for symbol in _PICTURE):
        return [whole], ranges
    return [{symbol: (usual[symbol],) * 3 for symbol in whole}, whole], ranges


def choose(profiles: Sequence[Profile], sizes: Mapping[str, int]) -> int | None:
    """The first profile that has room for ``sizes``; None if none has."""
    for index, profile in enumerate(profiles):
        if all(low <= sizes[symbol] <= high for symbol, (low, _, high) in profile.items()):
            return index
    return None


def input_shapes(profile: Profile, inputs: Sequence[TensorSpec]) -> dict[str, tuple[Shape, Shape, Shape]]:
    """Least, usual and largest shape of every input."""
    low, usual, high = ({symbol: values[index] for symbol, values in profile.items()} for index in range(3))
    return {spec.name: (shape_of(spec, low), shape_of(spec, usual), shape_of(spec, high)) for spec in inputs}


def shape_of(spec: TensorSpec, sizes: Mapping[str, int]) -> Shape:
    """A tensor's shape for given sizes."""
    return spec.concrete(sizes)
