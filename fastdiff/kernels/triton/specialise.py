"""A :class:`Build` from the names of a kernel's arguments, where many of them are optional."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastdiff.kernels.triton.aot import Build
from fastdiff.kernels.triton.launch import Config

__all__ = ["specialise"]


def specialise(
    name: str,
    kernel: Any,
    pointers: Mapping[str, str],
    constants: Mapping[str, int | float | bool | str | None],
    config: Config,
    *,
    sizes: Sequence[str],
    numbers: Sequence[str] = (),
) -> Build:
    """The specialisation of ``kernel`` for the tensors in ``pointers``, by name with Triton's type of each.

    ``sizes`` are 32-bit integers, ``numbers`` float32; names that end in ``_stride`` are strides, multiples
    of 16 as the pointers are. An argument that is none of these is a tensor that is left out, None.
    """
    signature: dict[str, str] = {}
    fixed = dict(constants)
    aligned = []
    for argument in kernel.arg_names:
        if argument in pointers or argument.endswith("_stride"):
            signature[argument] = pointers.get(argument, "i32")
            aligned.append(argument)
        elif argument in sizes:
            signature[argument] = "i32"
        elif argument in numbers:
            signature[argument] = "fp32"
        elif argument not in fixed and argument not in dict(config.blocks):
            fixed[argument] = None
    return Build(name, kernel, signature, fixed, config, tuple(aligned))
