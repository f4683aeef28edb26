"""Implementations: for each op what could run it on a GPU. One file per op or family of ops.

An implementation is tried where ``applies`` says so; which one runs is measured at build (choices.py).
Every op has one called ``torch``, PyTorch's own, which runs on any device and is what an unmeasured call
takes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fastdiff.targets.cuda.calls import Call

__all__ = ["IMPLEMENTATIONS", "Implementation", "Option", "candidates", "implementation"]


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


def _registry() -> Mapping[str, tuple[Implementation, ...]]:
    from fastdiff.targets.cuda.implementations import attention, conv2d, linear, norms, others

    table: dict[str, tuple[Implementation, ...]] = {}
    for module in (conv2d, linear, norms, attention, others):
        table.update(module.IMPLEMENTATIONS)
    return table


IMPLEMENTATIONS: dict[str, tuple[Implementation, ...]] = {}
"""By op; filled when it is first asked for."""


def _of(op: str) -> tuple[Implementation, ...]:
    if not IMPLEMENTATIONS:
        IMPLEMENTATIONS.update(_registry())
    return IMPLEMENTATIONS[op]


def candidates(call: Call, arch: int) -> list[Option]:
    """Everything that could run a call on a GPU of that compute capability; PyTorch's own first."""
    return [
        Option(found.name, config)
        for found in _of(call.node.op)
        if found.applies(call)
        for config in found.configs(call, arch)
    ]


def implementation(op: str, name: str) -> Implementation:
    """The implementation of an op by its name. Raises KeyError for one that there is not."""
    for found in _of(op):
        if found.name == name:
            return found
    known = ", ".join(found.name for found in _of(op))
    raise KeyError(f"no implementation {name!r} of {op}: there are {known}")
