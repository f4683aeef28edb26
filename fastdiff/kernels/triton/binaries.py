"""Compiled Triton kernels that travel with an engine, so that opening one compiles nothing.

While an engine is built, :func:`recording` keeps the binary of every kernel that is launched. When it is
opened, :func:`register` makes them known, and ``launch`` takes a binary in place of Triton's compiler
wherever it has one for the kernel's source, the arguments' types and alignments, the constants and the GPU.
Such a launch goes through ``cuda.core`` as those of CUDA C++ do: neither Triton's driver nor the C compiler
that it wants is needed.
"""

from __future__ import annotations

import ctypes
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastdiff.errors import EngineDamagedError

__all__ = ["Binary", "find", "key_of", "record", "recording", "register"]

_TYPES: Mapping[str, Callable[[Any], Any]] = {
    "i1": lambda value: ctypes.c_int8(bool(value)),
    "i32": ctypes.c_int32,
    "i64": ctypes.c_int64,
    "fp32": ctypes.c_float,
    "fp64": ctypes.c_double,
}
_DTYPES = {
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.float32: "fp32",
    torch.int32: "i32",
    torch.int64: "i64",
    torch.uint8: "u8",
}
_SCRATCH = 2
"""Pointers that Triton appends to every kernel's arguments, to memory that none of these kernels asks for."""


@dataclass(frozen=True)
class Binary:
    """One compiled kernel.

    name       of the function in ``code``, a cubin as uint8
    signature  Triton's type of every argument that is not a constexpr, in order; "constexpr" for one that the
               compiler took for a constant
    shared     bytes of dynamic shared memory
    """

    key: str
    name: str
    signature: tuple[str, ...]
    num_warps: int
    shared: int
    code: Tensor

    def to_json(self) -> dict[str, Any]:
        """All but the code."""
        return {
            "key": self.key,
            "name": self.name,
            "signature": list(self.signature),
            "num_warps": self.num_warps,
            "shared": self.shared,
        }

    @staticmethod
    def from_json(document: Mapping[str, Any], code: Tensor) -> Binary:
        """The inverse of ``to_json``. Raises EngineDamagedError for what it cannot have written."""
        try:
            signature = tuple(str(kind) for kind in document["signature"])
            unknown = [
                kind for kind in signature if kind != "constexpr" and kind[0] != "*" and kind not in _TYPES
            ]
            if unknown or code.dtype != torch.uint8:
                raise ValueError(f"argument of type {unknown[0]}" if unknown else f"code of {code.dtype}")
            numbers = (int(document["num_warps"]), int(document["shared"]))
            return Binary(str(document["key"]), str(document["name"]), signature, *numbers, code)
        except (KeyError, ValueError, TypeError, IndexError) as error:
            raise EngineDamagedError(
                f"a compiled kernel of the engine cannot be used ({error}); build the engine again"
            ) from error

    def arguments(self, given: Sequence[Any]) -> list[Any]:
        """The run-time arguments as the binary takes them."""
        values: list[Any] = []
        for kind, value in zip(self.signature, given, strict=True):
            if kind == "constexpr":
                continue
            values.append(value if kind[0] == "*" else _TYPES[kind](value))
        return [*values, *[None] * _SCRATCH]


_known: dict[str, Binary] = {}
_functions: dict[tuple[str, int], Any] = {}
_recorded: dict[str, Binary] | None = None


def key_of(kernel: Any, arch: int, arguments: Sequence[Any], constants: Mapping[str, Any]) -> str:
    """What decides the binary of a launch: source, GPU, constants, and what Triton specialises on.

    ``constants`` include the blocks, ``num_warps`` and ``num_stages``.
    """
    names = [param for param in kernel.params if not param.is_constexpr]
    kinds = [_kind(value, param) for param, value in zip(names, arguments, strict=True)]
    fixed = json.dumps(dict(sorted(constants.items())), default=str)
    return f"{kernel.fn.__name__} {kernel.cache_key[:16]} sm_{arch} {','.join(kinds)} {fixed}"


def _kind(value: Any, param: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, Tensor):
        return f"*{_DTYPES[value.dtype]}{'' if value.data_ptr() % 16 else ':16'}"
    if isinstance(value, bool):
        return "i1"
    if isinstance(value, int):
        width = "i32" if -(2**31) <= value < 2**31 else "i64"
        if param.do_not_specialize:
            return width
        return "1" if value == 1 else f"{width}{'' if value % 16 else ':16'}"
    return "fp32"


@contextmanager
def recording() -> Iterator[dict[str, Binary]]:
    """Within the block every launch on a GPU adds its binary to the result, by key."""
    global _recorded
    before, _recorded = _recorded, {}
    try:
        yield _recorded
    finally:
        _recorded = before


def record(key: str, compiled: Any) -> None:
    """Keep the binary of a launch that Triton has compiled, if somebody records."""
    if _recorded is not None and key not in _recorded:
        _recorded[key] = binary_of(key, compiled)


def binary_of(key: str, compiled: Any) -> Binary:
    """The Binary of Triton's CompiledKernel. Raises TypeError for one that asks for memory of its own."""
    metadata = compiled.metadata
    extra = {
        name: getattr(metadata, name, 0)
        for name in ("global_scratch_size", "profile_scratch_size", "launch_cooperative_grid", "launch_pdl")
    }
    if any(extra.values()) or getattr(metadata, "num_ctas", 1) != 1:
        raise TypeError(f"{metadata.name} wants more than arguments at its launch: {extra}")
    source = compiled.src
    constexprs = {param.name for param in source.fn.params if param.is_constexpr}
    signature = tuple(kind for name, kind in source.signature.items() if name not in constexprs)
    code = torch.frombuffer(bytearray(compiled.asm["cubin"]), dtype=torch.uint8)
    return Binary(key, metadata.name, signature, metadata.num_warps, metadata.shared, code)


def register(binaries: Sequence[Binary]) -> None:
    """Let launches use these binaries from now on."""
    _known.update({binary.key: binary for binary in binaries})


def find(key: str) -> Binary | None:
    """The registered binary of a launch; a recorder is told of it."""
    binary = _known.get(key)
    if binary is not None and _recorded is not None:
        _recorded.setdefault(key, binary)
    return binary


def run(binary: Binary, grid: tuple[int, ...], arguments: Sequence[Any], device: int) -> None:
    """Launch a binary on PyTorch's current stream of a device."""
    from fastdiff.kernels.cuda.compiler import cuda_core
    from fastdiff.kernels.cuda.loader import launch

    key = (binary.key, device)
    if key not in _functions:
        code = cuda_core().ObjectCode.from_cubin(binary.code.numpy().tobytes(), name=binary.name)
        _functions[key] = code.get_kernel(binary.name)
    launch(_functions[key], grid, 32 * binary.num_warps, binary.arguments(arguments), shared=binary.shared)
