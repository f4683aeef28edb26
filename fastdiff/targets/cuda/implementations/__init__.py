"""Implementations: for each op what could run it on a GPU. One file per op or family of ops.

An implementation is tried where ``applies`` says so; which one runs is measured at build (choices.py).
Every op has one called ``torch``, PyTorch's own, which runs on any device and is what an unmeasured call
takes.
"""

from __future__ import annotations

from fastdiff.targets.cuda.calls import Call
from fastdiff.targets.cuda.implementations import attention, conv2d, linear, norms, others
from fastdiff.targets.cuda.implementations.implementation import Implementation, Option

__all__ = ["IMPLEMENTATIONS", "Implementation", "Option", "candidates", "implementation"]


IMPLEMENTATIONS: dict[str, tuple[Implementation, ...]] = {
    op: found
    for module in (conv2d, linear, norms, attention, others)
    for op, found in module.IMPLEMENTATIONS.items()
}
"""By op."""


def candidates(call: Call, arch: int) -> list[Option]:
    """Everything that could run a call on a GPU of that compute capability; PyTorch's own first."""
    return [
        Option(found.name, config)
        for found in IMPLEMENTATIONS[call.node.op]
        if found.applies(call)
        for config in found.configs(call, arch)
    ]


def implementation(op: str, name: str) -> Implementation:
    """The implementation of an op by its name. Raises KeyError for one that there is not."""
    for found in IMPLEMENTATIONS[op]:
        if found.name == name:
            return found
    known = ", ".join(found.name for found in IMPLEMENTATIONS[op])
    raise KeyError(f"no implementation {name!r} of {op}: there are {known}")
