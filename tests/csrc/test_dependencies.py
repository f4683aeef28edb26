"""The compiled parts need the C++ runtime and the C library, and nothing else."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fastdiff import _C
from tests.csrc.elf import needed

RUNTIME = r"(libstdc\+\+|libgcc_s|libm|libc|libpthread|ld-linux[\w-]*)\.so\.\d+"


def foreign(path: Path) -> set[str]:
    return {name for name in needed(path) if re.fullmatch(RUNTIME, name) is None}


def test_python_extension() -> None:
    """Not even libpython, whose symbols are those of the interpreter that loads it."""
    assert foreign(Path(_C.__file__)) == set()


def test_c_library(build: Path) -> None:
    assert foreign(build / "libfastdiff.so") == set()


def test_the_package_has_no_other_compiled_part() -> None:
    folder = Path(_C.__file__).parent
    assert [path.name for path in folder.rglob("*.so*")] == [Path(_C.__file__).name]


def test_what_is_needed_is_found_at_all() -> None:
    """Of NumPy's own extension, whose dependencies are others."""
    import numpy.linalg._umath_linalg as other

    assert foreign(Path(other.__file__)) != set()
    with pytest.raises(ValueError, match="no 64-bit ELF"):
        needed(Path(__file__))
