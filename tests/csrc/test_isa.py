"""The choice of the instruction set, as a process sees it."""

from __future__ import annotations

import os
import subprocess
import sys

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
    out, _ = scheduler_step(a, a, None, 1.0, 1.0, 1.0)
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
    try:
        with open("/proc/cpuinfo") as file:
            flags = next((line.split() for line in file if line.startswith("flags")), None)
    except OSError:
        flags = None
    if flags is None:
        pytest.skip("no x86 flags in /proc/cpuinfo")
    assert ("avx2" in _C.available_isas()) == ({"avx2", "fma"} <= set(flags))
    assert ("avx512" in _C.available_isas()) == (
        {"avx2", "fma", "avx512f", "avx512bw", "avx512dq", "avx512vl"} <= set(flags)
    )


@pytest.mark.parametrize("value", [None, ""], ids=["unset", "empty"])
def test_default_is_the_fastest(value):
    assert run(value) == _C.available_isas()[0]


@pytest.mark.parametrize("name", ALL)
def test_override(name):
    if name in _C.available_isas():
        assert run(name) == name
    else:
        assert run(name).startswith(f"InputError: environment variable FASTDIFF_ISA: this machine cannot run '{name}'")


def test_unknown_override_is_an_error():
    assert run("AVX2") == (
        "InputError: environment variable FASTDIFF_ISA: unknown instruction set 'AVX2'; "
        "wanted one of avx512, avx2, portable"
    )


def test_kernels_do_not_import_torch():
    code = "import sys, fastdiff.kernels; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
