"""Triton kernels on CPU tensors, one program after the other, in NumPy.

Triton's own switch, ``TRITON_INTERPRET``, is read when a function is decorated, those of its standard library
included, and leaves kernels that cannot be compiled. Here a kernel is interpreted on request, so that one
process can do both, in any order.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.jit import JITFunction

__all__ = ["Interpreted", "interpreted"]

# The interpreter replaces functions of triton.language while it runs: one kernel at a time.
_LOCK = threading.RLock()


def _function(kernel: Any) -> Any:
    """The Python function of a kernel, rewritten as the interpreter needs it; cached there."""
    return interpreter.InterpretedFunction(kernel.fn).rewrite()


def _call(kernel: Any, *arguments: Any, **keywords: Any) -> Any:
    return _function(kernel)(*arguments, **keywords)


@contextmanager
def _interpreting() -> Iterator[None]:
    """Let jitted functions be called, also those of triton.language, which use ``triton.language.core``."""
    compiled = JITFunction.__call__
    with _LOCK:
        scope = interpreter._patch_lang(tl.sum.fn)
        JITFunction.__call__ = _call
        try:
            yield
        finally:
            JITFunction.__call__ = compiled
            scope.restore()


class Interpreted:
    """A kernel to be launched as ``interpreted(kernel)[grid](...)`` on CPU tensors."""

    def __init__(self, kernel: Any) -> None:
        self._kernel = kernel

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def run(*arguments: Any, **keywords: Any) -> None:
            with _interpreting():
                executor = interpreter.GridExecutor(_function(self._kernel), self._kernel.arg_names, grid)
                executor(*arguments, **keywords)

        return run


def interpreted(kernel: Any) -> Interpreted:
    """What runs the ``triton.jit`` function ``kernel`` on CPU tensors."""
    return Interpreted(kernel)
