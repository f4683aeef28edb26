"""Triton kernels on CPU tensors, one program after the other, in NumPy.

Triton's own switch, ``TRITON_INTERPRET``, is read when a function is decorated, those of its standard library
included, and leaves kernels that cannot be compiled. Here a kernel is interpreted on request, so that one
process can do both, in any order.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from types import SimpleNamespace
from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.jit import JITFunction

__all__ = ["Interpreted", "interpreted"]

# The interpreter replaces functions of triton.language while it runs: one kernel at a time.
_LOCK = threading.RLock()
# What kernels and triton.language's own functions call, in the form in which the interpreter looks for it.
_BOTH = SimpleNamespace(__globals__={"tl": tl, "core": tl.core})
_PLAIN_DOT = interpreter.InterpreterBuilder.create_dot


def _function(kernel: Any) -> Any:
    """The Python function of a kernel, rewritten as the interpreter needs it; cached there."""
    return interpreter.InterpretedFunction(kernel.fn).rewrite()


def _call(kernel: Any, *arguments: Any, **keywords: Any) -> Any:
    return _function(kernel)(*arguments, **keywords)


def _index(tensor: Any) -> int:
    """A bound of ``range``: the interpreter keeps it as an array of one, which NumPy 2.4 does not convert."""
    return int(tensor.handle.data.item())


def _float32(handle: Any) -> Any:
    """An operand of a product in float32: bfloat16 is kept as its 16 bits, which NumPy would multiply."""
    if handle.dtype != tl.bfloat16:
        return handle
    values = (handle.data.astype(np.uint32) << 16).view(np.float32)
    return interpreter.TensorHandle(values, tl.float32)


def _create_dot(builder: Any, a: Any, b: Any, *rest: Any) -> Any:
    return _PLAIN_DOT(builder, _float32(a), _float32(b), *rest)


@contextmanager
def _interpreting() -> Iterator[None]:
    """Let ``triton.language`` compute in NumPy, and let jitted functions be called, its own too."""
    call = JITFunction.__call__
    with _LOCK:
        scope = interpreter._patch_lang(_BOTH)
        scope.set_attr(tl.tensor, "__index__", _index)
        scope.set_attr(interpreter.InterpreterBuilder, "create_dot", _create_dot)
        JITFunction.__call__ = _call
        try:
            yield
        finally:
            JITFunction.__call__ = call
            scope.restore()


class Interpreted:
    """A kernel to be launched as ``interpreted(kernel)[grid](...)`` on CPU tensors."""

    def __init__(self, kernel: Any) -> None:
        self._kernel = kernel

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def run(*arguments: Any, **keywords: Any) -> None:
            names = self._kernel.arg_names
            given = {**dict(zip(names, arguments, strict=False)), **keywords}
            constexprs = {parameter.name for parameter in self._kernel.params if parameter.is_constexpr}
            sizes = (*grid, 1, 1)[:3]
            # as on a GPU, what overflows gives infinity or NaN without a word
            with _interpreting(), np.errstate(all="ignore"):
                values = {
                    name: given[name] if name in constexprs else interpreter._implicit_cvt(given[name])
                    for name in names
                }
                interpreter.interpreter_builder.set_grid_dim(*sizes)
                for index in product(*(range(size) for size in sizes)):
                    interpreter.interpreter_builder.set_grid_idx(*index)
                    _function(self._kernel)(**values)

        return run


def interpreted(kernel: Any) -> Interpreted:
    """What runs the ``triton.jit`` function ``kernel`` on CPU tensors."""
    return Interpreted(kernel)
