"""Which program of a kernel is taken: the package's, the cache's, or a new one."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path

import pytest

from fastdiff.errors import FastdiffWarning, InputError, TargetError
from fastdiff.kernels.cuda import compiler

pytest.importorskip("cuda.core")
TINY = 'extern "C" __global__ void tiny(int* x) { x[0] = VALUE; }\n'


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Sources of one small kernel; the cache is beside them and empty."""
    sources = tmp_path / "sources"
    sources.mkdir()
    shutil.copy(compiler.source_folder() / "architectures.txt", sources)
    (sources / "value.h").write_text("#define VALUE 1\n")
    (sources / "tiny.cu").write_text(f'#include "value.h"\n{TINY}')
    monkeypatch.setattr(compiler, "source_folder", lambda: sources)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return sources


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The targets of every compilation."""
    targets: list[str] = []
    original = compiler.compile_source

    def compile_source(source: str, target: str, *, name: str) -> bytes:
        targets.append(target)
        return original(source, target, name=name)

    monkeypatch.setattr(compiler, "compile_source", compile_source)
    return targets


def test_compiled_once(folder: Path, compiled: list[str]) -> None:
    first = compiler.cubin("tiny", "sm_90")
    assert first.startswith(b"\x7fELF")
    assert b"tiny" in first
    assert compiler.cubin("tiny", "sm_90") == first
    assert compiler.cubin("tiny", "sm_80") != first
    assert compiled == ["sm_90", "sm_80"]
    assert len(list(compiler.cache_folder().iterdir())) == 2
    assert compiler.cache_folder() == folder.parent / "cache" / "fastdiff" / "kernels"


def test_a_changed_header_is_compiled_anew(folder: Path, compiled: list[str]) -> None:
    first = compiler.cubin("tiny", "sm_90")
    (folder / "value.h").write_text("#define VALUE 2\n")
    assert compiler.cubin("tiny", "sm_90") != first
    (folder / "value.h").write_text("#define VALUE 1\n")
    assert compiler.cubin("tiny", "sm_90") == first
    assert len(compiled) == 2


@pytest.mark.parametrize("damage", [b"", b"x" * 31, b"x" * 4000], ids=["empty", "cut", "other"])
def test_a_damaged_file_is_compiled_again(folder: Path, compiled: list[str], damage: bytes) -> None:
    first = compiler.cubin("tiny", "sm_90")
    (stored,) = compiler.cache_folder().iterdir()
    whole = stored.read_bytes()
    stored.write_bytes(damage)
    assert compiler.cubin("tiny", "sm_90") == first
    assert stored.read_bytes() == whole
    stored.write_bytes(whole[:-1] + b"?")
    assert compiler.cubin("tiny", "sm_90") == first
    assert len(compiled) == 3


def test_several_at_once(folder: Path) -> None:
    """Each writes a file of its own and renames it: the last one wins, and none is half written."""
    found: list[bytes] = []
    threads = [
        threading.Thread(target=lambda: found.append(compiler.cubin("tiny", "sm_90"))) for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 6
    assert len(set(found)) == 1
    (stored,) = compiler.cache_folder().iterdir()
    assert stored.read_bytes()[32:] == found[0]


def test_a_cache_that_cannot_be_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder.parent / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder.parent / "file"))
    with pytest.warns(FastdiffWarning, match="cannot be kept in .*; set XDG_CACHE_HOME"):
        assert compiler.cubin("tiny", "sm_90").startswith(b"\x7fELF")


def test_a_target_of_its_own(folder: Path, compiled: list[str]) -> None:
    (folder / "tiny.cu").write_text(
        f"// fastdiff-cuda-architecture: 90a\n#define VALUE 1\n{TINY}"
        "#ifndef __CUDA_ARCH_FEAT_SM90_ALL\n#if __CUDA_ARCH__ == 900\n#error not sm_90a\n#endif\n#endif\n"
    )
    assert compiler.architectures("tiny") == ["80", "86", "89", "90a", "100", "120"]
    compiler.cubin("tiny", "sm_90")
    compiler.cubin("tiny", "sm_89")
    assert compiled == ["sm_90a", "sm_89"]


def test_errors_are_one_line(folder: Path) -> None:
    with pytest.raises(InputError, match="found 'nothing', wanted one of tiny"):
        compiler.cubin("nothing", "sm_90")
    (folder / "tiny.cu").write_text("__global__ void f() { undeclared = 1; }\n")
    with pytest.raises(TargetError, match=r"cannot compile tiny\.cu for sm_90: .*undeclared") as caught:
        compiler.cubin("tiny", "sm_90")
    assert "\n" not in str(caught.value)
    with pytest.raises(TargetError, match="for sm_11"):
        compiler.cubin("tiny", "sm_11")


def test_a_damaged_description_is_no_binary(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "PACKAGE", folder)
    assert compiler.fat_binary("tiny", "sm_90") is None
    (folder / "tiny.fatbin").write_bytes(b"program")
    about = {"sources": compiler.digest("tiny"), "architectures": ["80", "90"], "ptx": "90"}
    description = folder / "tiny.fatbin.json"
    description.write_text(json.dumps(about))
    assert compiler.fat_binary("tiny", "sm_90") == b"program"
    assert compiler.fat_binary("tiny", "sm_89") == b"program"
    assert compiler.fat_binary("tiny", "sm_120") == b"program"  # from PTX
    about["ptx"] = "120"
    description.write_text(json.dumps(about))
    assert compiler.fat_binary("tiny", "sm_100") is None
    description.write_text("{")
    assert compiler.fat_binary("tiny", "sm_90") is None


def test_an_installed_package_finds_its_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "site" / "fastdiff" / "kernels" / "cuda"
    (package / "src").mkdir(parents=True)
    monkeypatch.setattr(compiler, "PACKAGE", package)
    find = compiler.source_folder.__wrapped__
    with pytest.raises(TargetError, match="install fastdiff again"):
        find()
    (package / "src" / "architectures.txt").write_text("90")
    assert find() == package / "src"


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import builtins

    original = builtins.__import__

    def without_cuda(name: str, *args: object, **keywords: object) -> object:
        if name.startswith("cuda"):
            raise ImportError("No module named 'cuda'")
        return original(name, *args, **keywords)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", without_cuda)
    with pytest.raises(TargetError, match="python -m pip install 'cuda-core'"):
        compiler.nvrtc_version.__wrapped__()
    with pytest.raises(TargetError, match=r"wanted cuda\.core 0\.4 or newer; run: python -m pip install"):
        compiler.cuda_core.__wrapped__()
