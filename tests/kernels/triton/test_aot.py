"""Every shipped specialisation compiles for every architecture, without spills, within shared memory."""

from __future__ import annotations

import contextlib
import threading
import unittest.mock
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from triton.runtime.jit import JITFunction

from fastdiff.errors import TargetError
from fastdiff.kernels.triton import aot
from fastdiff.kernels.triton.aot import ARCHITECTURES


@contextlib.contextmanager
def one_parser_at_a_time() -> Iterator[None]:
    """CPython 3.11's ast.parse keeps its depth for all threads together: two at once may end in SystemError.

    The package itself compiles in processes.
    """
    lock, parse = threading.Lock(), JITFunction.parse

    def locked(function: JITFunction) -> object:
        with lock:
            return parse(function)

    with unittest.mock.patch.object(JITFunction, "parse", locked):
        yield


# bfloat16 takes the same code but for conversions: once is enough to see that it compiles.
@pytest.mark.parametrize(
    ("arch", "dtype"), [*((arch, torch.float16) for arch in ARCHITECTURES), (90, torch.bfloat16)]
)
@pytest.mark.parametrize("op", aot.op_names())
def test_shipped_kernels_fit(op: str, arch: int, dtype: torch.dtype) -> None:
    builds = list(aot.op_builds(op, dtype, arch))
    assert builds
    with one_parser_at_a_time(), ThreadPoolExecutor(2) as pool:
        compiled = list(pool.map(lambda build: aot.compile_build(build, arch), builds))
    for build, kernel in zip(builds, compiled, strict=True):
        found = aot.resources(kernel, arch)
        assert found.stack_bytes == found.spill_bytes == 0, f"{build.name} on sm_{arch}: {found}"
        assert found.shared_bytes <= aot.shared_limit(arch), f"{build.name} on sm_{arch}: {found}"
        assert 0 < found.registers <= 255


def test_unknown_architecture() -> None:
    with pytest.raises(TargetError, match="found sm_75, wanted one of sm_80"):
        aot.shared_limit(75)


@pytest.mark.parametrize("op", ["attention", "geglu"])
def test_no_element_is_loaded_or_stored_alone(op: str) -> None:
    """Strides that lose their alignment would cost a load for each element, and nothing else shows it."""
    for build in aot.op_builds(op, torch.float16, 80):
        ptx = aot.compile_build(build, 80).asm["ptx"]
        assert "global.v4.b32" in ptx, build.name
        assert "ld.global.b16" not in ptx, build.name
        assert "st.global.b16" not in ptx, build.name


def test_arguments_that_a_build_leaves_out() -> None:
    build = next(aot.op_builds("geglu", torch.float16, 90))
    with pytest.raises(TypeError, match=r"not given: \['C'\], not the kernel's: \['D'\]"):
        aot.compile_build(replace(build, constants={"D": 1}), 90)
