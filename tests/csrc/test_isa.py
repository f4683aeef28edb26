"""The choice of the instruction set, as a process sees it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fastdiff import _C

ALL = ["avx512", "avx2", "portable"]

SCRIPT = """
import numpy as np
from fastdiff import _C
from fastdiff.errors import InputError
from fastdiff.kernels import scheduler_step
try:
    print(_C.isa())
    a = np.arange(100, dtype=np.float32)
    out = scheduler_step(a, a, None, 1.0, 1.0, 1.0)
    assert (out == 2 * a).all()
except InputError as error:
    print("InputError:", error)
"""


def run(value: str | None) -> str:
    environment = {name: text for name, text in os.environ.items() if name != "FASTDIFF_ISA"}
    if value is not None:
        environment["FASTDIFF_ISA"] = value
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_available_are_known_and_end_with_portable():
    found = _C.available_isas()
    assert [name for name in ALL if name in found] == found
    assert found[-1] == "portable"


def test_flags_of_the_kernel_agree():
    # /proc/cpuinfo lists what the kernel has enabled: a second opinion on detection.
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    flags = next((set(line.split()) for line in lines if line.startswith("flags")), None)
    if flags is None:
        pytest.skip("no x86 flags in /proc/cpuinfo")
    avx2 = {"avx2", "fma"} <= flags
    avx512 = avx2 and {"avx512f", "avx512bw", "avx512dq", "avx512vl"} <= flags
    assert ("avx2" in _C.available_isas(), "avx512" in _C.available_isas()) == (avx2, avx512)


@pytest.mark.parametrize("value", [None, ""], ids=["unset", "empty"])
def test_default_is_the_fastest(value):
    assert run(value) == _C.available_isas()[0]


@pytest.mark.parametrize("name", ALL)
def test_override(name):
    if name in _C.available_isas():
        assert run(name) == name
    else:
        refusal = f"InputError: environment variable FASTDIFF_ISA: this machine cannot run '{name}'"
        assert run(name).startswith(refusal)


def test_unknown_override_is_an_error():
    assert run("AVX2") == (
        "InputError: environment variable FASTDIFF_ISA: unknown instruction set 'AVX2'; "
        "wanted one of avx512, avx2, portable"
    )


def test_kernels_do_not_import_torch():
    code = "import sys, fastdiff.kernels; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
