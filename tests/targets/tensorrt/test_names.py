"""Every name of TensorRT's that api.py uses, against the signatures of the bindings of both major versions.

``stubs/<version>/tensorrt.pyi`` were read from the wheels by collect_names.py. A type checker follows the
objects through api.py, so that attributes, methods, arguments and results are checked.
"""

from __future__ import annotations

import ast
import itertools
import os
import shutil
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

from fastdiff.targets.tensorrt import _NEWEST, _OLDEST
from tests.targets.tensorrt import collect_names

PACKAGE = Path(__file__).parents[3] / "fastdiff" / "targets" / "tensorrt"
STUBS = sorted(path.parent for path in collect_names.STUBS.glob("*/tensorrt.pyi"))
SINCE = {"SerializationFlag.INCLUDE_REFIT": (10, 14)}
"""Names that not all versions have: api.py uses them only after it has compared the version."""


def version(stub: Path) -> tuple[int, ...]:
    return tuple(map(int, stub.name.split(".")))


def names(stub: Path) -> set[str]:
    """Classes, and what is in them, as ``Builder.create_network``."""
    found: set[str] = set()

    def collect(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            if isinstance(node, ast.ClassDef):
                found.add(prefix + node.name)
                collect(node.body, f"{prefix}{node.name}.")
            elif isinstance(node, ast.FunctionDef):
                found.add(prefix + node.name)
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                found.add(prefix + node.target.id)

    collect(ast.parse((stub / "tensorrt.pyi").read_text(encoding="utf-8")).body, "")
    return found


def used() -> set[str]:
    """What api.py writes after ``trt.``, as far as it goes: ``BuilderFlag.REFIT``."""
    found = set()
    for node in ast.walk(ast.parse((PACKAGE / "api.py").read_text(encoding="utf-8"))):
        parts: list[str] = []
        inner: ast.AST = node
        while isinstance(inner, ast.Attribute):
            parts.insert(0, inner.attr)
            inner = inner.value
        if parts and isinstance(inner, ast.Name) and inner.id == "trt":
            # what follows the first name that is no class is an attribute of Python's: ``.value``, ``.split``
            classes = list(itertools.takewhile(lambda part: part[0].isupper() and not part.isupper(), parts))
            found.add(".".join(parts[: len(classes) + 1]))
    return found


def test_stubs_cover_what_is_supported() -> None:
    versions = [version(stub) for stub in STUBS]
    assert min(versions)[:2] == _OLDEST
    assert max(versions)[0] == _NEWEST
    assert {found[0] for found in versions} == {10, 11}


@pytest.mark.parametrize("stub", STUBS, ids=lambda stub: stub.name)
def test_names_exist(stub: Path) -> None:
    known = names(stub)
    assert "IExecutionContext.execute_async_v3" in known
    missing = {name for name in used() if name not in known}
    assert missing == {name for name, first in SINCE.items() if version(stub) < first}


def test_guarded_names_are_used_and_appear_with_a_newer_version() -> None:
    for name in SINCE:
        assert name in used()
        assert name in names(STUBS[-1])


def test_a_version_is_compared_before_guarded_names() -> None:
    tree = ast.parse((PACKAGE / "api.py").read_text(encoding="utf-8"))
    for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
        lines = {ast.unparse(node): getattr(node, "lineno", 0) for node in ast.walk(function)}
        for name, first in SINCE.items():
            if (use := lines.get(f"trt.{name}")) is not None:
                assert lines["_check_refit()"] < use
                assert f"_REFIT_SINCE = {first}" in (PACKAGE / "api.py").read_text(encoding="utf-8")


def type_check(stub: Path, folder: Path, source: str) -> list[str]:
    """What mypy says of ``source`` in api.py's place: the lines with errors."""
    root = folder / "sources"
    copy = root / "fastdiff" / "targets" / "tensorrt"
    copy.mkdir(parents=True, exist_ok=True)
    for parent in (copy, copy.parent, copy.parent.parent):
        (parent / "__init__.py").touch()
    shutil.copy(PACKAGE / "interface.py", copy)
    (copy / "api.py").write_text(source, encoding="utf-8")
    stamp = zlib.crc32(source.encode())  # mypy's cache tells versions apart by whole seconds
    os.utime(copy / "api.py", (stamp, stamp))
    settings = folder / "mypy.ini"
    ini = "[mypy]\nstrict = true\n[mypy-numpy.*]\nfollow_imports = skip\nignore_missing_imports = true\n"
    settings.write_text(f"{ini}[mypy-tensorrt]\ndisable_error_code = overload-cannot-match\n")
    command = ["-m", "mypy", f"--config-file={settings}", f"--cache-dir={folder / 'cache'}", "api.py"]
    run = subprocess.run(
        [sys.executable, *command],
        cwd=copy,
        env={"MYPYPATH": f"{stub}:{root}", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode in (0, 1), run.stderr
    return [line for line in run.stdout.splitlines() if ": error: " in line]


def test_signatures_fit(tmp_path: Path) -> None:
    source = (PACKAGE / "api.py").read_text(encoding="utf-8")
    for stub in STUBS:
        errors = type_check(stub, tmp_path, source)
        guarded = [name.rpartition(".")[2] for name, first in SINCE.items() if version(stub) < first]
        assert len(errors) == len(guarded), errors
        assert all(name in error for name, error in zip(guarded, errors, strict=True))
    # what a wrong use looks like, of each kind: a name that 11 removed, a missing and a wrong argument
    for right, wrong, words in (
        ("get_device_memory_size_for_profile_v2", "get_device_memory_size_for_profile", "has no attribute"),
        ("set_device_memory(address, size)", "set_device_memory(address)", "Missing positional argument"),
        ("set_tensor_address(name, address)", "set_tensor_address(address, name)", "incompatible type"),
    ):
        errors = type_check(STUBS[-1], tmp_path, source.replace(right, wrong))
        assert errors, wrong
        assert all(words in error for error in errors), errors
