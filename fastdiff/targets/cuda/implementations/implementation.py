"""What an implementation of an op is, and the choice of one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fastdiff.targets.cuda.calls import Call

__all__ = ["Implementation", "Option"]


@dataclass(frozen=True)
class Implementation:
    """One way to compute an op.

    run      the result of a call, by a configuration: a tensor, or a sum and its norm for ``add_…``
    applies  whether it takes a call
    configs  configurations worth measuring for a call on a GPU of compute capability ``arch`` (90 for 9.0),
             the likeliest first, each plain JSON values; ``(None,)`` where there is nothing to configure
    prepare  makes of the layer's weight what ``run`` takes in its place, once per engine that is opened
    universal, fits  whether a configuration works at every size, and if not whether it does at a call's
    triton   whether every configuration is a Triton kernel of its own, to be compiled before it is measured
    """

    name: str
    run: Callable[[Call, Any], Any]
    applies: Callable[[Call], bool] = lambda call: True
    configs: Callable[[Call, int], tuple[Any, ...]] = lambda call, arch: (None,)
    prepare: Callable[[Tensor], Tensor] | None = None
    universal: Callable[[Any], bool] = lambda config: True
    fits: Callable[[Call, Any], bool] = lambda call, config: False
    triton: bool = False


@dataclass(frozen=True)
class Option:
    """An implementation with one of its configurations."""

    implementation: str
    config: Any = None
