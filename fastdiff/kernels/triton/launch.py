"""What every Triton kernel's function needs: tilings, checks of tensors, the launch.

CUDA tensors run the compiled kernel on PyTorch's current stream; CPU tensors run the same kernel under
Triton's interpreter, which is how it is tested where there is no GPU.

A kernel lists the sizes that change between calls (rows, pixels, tokens, batch) in ``do_not_specialize``, so
that one binary serves all of them. Strides between rows are left to Triton's specialisation: a multiple of 16
elements, as with every layer of the published models, is what makes loads 16 bytes wide.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from fastdiff.errors import InputError
from fastdiff.kernels.layout import row_step
from fastdiff.kernels.triton import binaries, planning
from fastdiff.kernels.triton.interpreter import interpreted

__all__ = [
    "DTYPES",
    "Config",
    "architecture",
    "check_kernel_tensors",
    "launch",
    "output",
    "row_stride",
    "rows_of",
]

DTYPES = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}
"""Triton's names of the dtypes that the kernels take."""


@dataclass(frozen=True)
class Config:
    """One tiling of a kernel: ``blocks``, its constants by name in alphabetical order, warps and stages."""

    blocks: tuple[tuple[str, int], ...] = ()
    num_warps: int = 4
    num_stages: int = 2

    @classmethod
    def of(cls, num_warps: int = 4, num_stages: int = 2, **blocks: int) -> Config:
        """``Config.of(4, 2, BLOCK_M=64, BLOCK_N=32)``."""
        return cls(tuple(sorted(blocks.items())), num_warps, num_stages)

    def __getitem__(self, name: str) -> int:
        return dict(self.blocks)[name]

    def to_json(self) -> dict[str, Any]:
        """A dict that JSON can hold and :meth:`from_json` takes."""
        return {"blocks": dict(self.blocks), "num_warps": self.num_warps, "num_stages": self.num_stages}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Config:
        """The Config that :meth:`to_json` wrote; KeyError or TypeError for anything else."""
        blocks = {str(name): int(size) for name, size in data["blocks"].items()}
        return cls.of(int(data["num_warps"]), int(data["num_stages"]), **blocks)


@cache
def _capability(device: torch.device) -> int:
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def architecture(tensor: Tensor) -> int:
    """The compute capability of a tensor's GPU, 90 for 9.0; 90 for CPU tensors, which run its tilings."""
    return _capability(tensor.device) if tensor.is_cuda else 90


def check_kernel_tensors(**tensors: Tensor | None) -> None:
    """Raise InputError unless all have one device and dtype, one of DTYPES, and a contiguous last axis.

    None stands for an argument that was left out.
    """
    given = [(name, tensor) for name, tensor in tensors.items() if tensor is not None]
    (first, like), *_ = given
    for name, tensor in given:
        if tensor.dtype not in DTYPES:
            wanted = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
            found = str(tensor.dtype).removeprefix("torch.")
            raise InputError(f"{name}: found dtype {found}, wanted one of {wanted}")
        if tensor.dtype != like.dtype or tensor.device != like.device:
            raise InputError(
                f"{name}: found {tensor.dtype} on {tensor.device}, wanted "
                f"{like.dtype} on {like.device} as {first}"
            )
        if tensor.dim() and tensor.shape[-1] > 1 and tensor.stride(-1) != 1:
            raise InputError(
                f"{name}: found stride {tensor.stride(-1)} on the last axis, wanted 1; call .contiguous()"
            )


def rows_of(tensor: Tensor) -> int:
    """How many rows a tensor has: the product of all axes but the last."""
    return tensor.numel() // tensor.shape[-1] if tensor.shape[-1] else 0


def row_stride(tensor: Tensor, name: str) -> int:
    """Elements from one row to the next where all rows, over all axes but the last, are evenly spaced.

    Parts of a merged projection are; InputError for what is not, as a slice of the middle axis.
    """
    step = row_step(tensor)
    if step is None:
        raise InputError(
            f"{name}: found strides {tensor.stride()} for shape {tuple(tensor.shape)}, wanted "
            "evenly spaced rows; call .contiguous()"
        )
    return step


def output(
    out: Tensor | None,
    shape: tuple[int, ...],
    like: Tensor,
    name: str = "out",
    dtype: torch.dtype | None = None,
) -> Tensor:
    """``out`` where it fits, a new contiguous tensor where it is None; InputError where it does not fit."""
    dtype = dtype or like.dtype
    if out is None:
        return torch.empty(shape, dtype=dtype, device=like.device)
    if tuple(out.shape) != shape or out.dtype != dtype or out.device != like.device:
        raise InputError(
            f"{name}: found {tuple(out.shape)} of {out.dtype} on {out.device}, wanted {shape} of {dtype} on "
            f"{like.device}"
        )
    if out.dim() and out.shape[-1] > 1 and out.stride(-1) != 1:
        raise InputError(f"{name}: found stride {out.stride(-1)} on the last axis, wanted 1")
    return out


def launch(
    kernel: Any, grid: tuple[int, ...], *arguments: Any, config: Config | None = None, **constants: Any
) -> None:
    """Launch a ``triton.jit`` function over ``grid``; nothing is launched where the grid is empty.

    Within ``planning.planning()`` what would have to be compiled is recorded, and nothing is launched.

    ``arguments``: the kernel's run-time arguments in its order, torch tensors for pointers; ``constants``:
    its constexpr arguments, beside the blocks of ``config``.
    """
    if 0 in grid:
        return
    config = config or Config()
    like = next(a for a in arguments if isinstance(a, Tensor))
    device = like.device
    constants |= {
        **dict(config.blocks),
        "num_warps": config.num_warps,
        "num_stages": config.num_stages,
    }
    if planning.active():
        planning.record(kernel, architecture(like), arguments, constants)
        return
    if device.type != "cuda":
        interpreted(kernel)[grid](*arguments, **constants)
        return
    key = binaries.key_of(kernel, _capability(device), arguments, constants)
    binary = binaries.find(key)
    if binary is not None:
        binaries.run(binary, grid, arguments, device.index)
        return
    with torch.cuda.device(device):
        binaries.record(key, kernel[grid](*arguments, **constants))
