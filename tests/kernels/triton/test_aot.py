"""Every shipped specialisation compiles for every architecture, without spills, within shared memory."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from fastdiff.errors import TargetError
from fastdiff.kernels.triton import aot
from fastdiff.kernels.triton.aot import ARCHITECTURES


# bfloat16 takes the same code but for conversions: once is enough to see that it compiles.
@pytest.mark.parametrize(
    ("arch", "dtype"), [*((arch, torch.float16) for arch in ARCHITECTURES), (90, torch.bfloat16)]
)
@pytest.mark.parametrize("op", aot.op_names())
def test_shipped_kernels_fit(op: str, arch: int, dtype: torch.dtype) -> None:
    builds = list(aot.op_builds(op, dtype, arch))
    assert builds
    with ThreadPoolExecutor(2) as pool:
        compiled = list(pool.map(lambda build: aot.compile_build(build, arch), builds))
    for build, kernel in zip(builds, compiled, strict=True):
        found = aot.resources(kernel, arch)
        assert found.stack_bytes == found.spill_bytes == 0, f"{build.name} on sm_{arch}: {found}"
        assert found.shared_bytes <= aot.shared_limit(arch), f"{build.name} on sm_{arch}: {found}"
        assert 0 < found.registers <= 255


def test_unknown_architecture() -> None:
    with pytest.raises(TargetError, match="found sm_75, wanted one of sm_80"):
        aot.shared_limit(75)
