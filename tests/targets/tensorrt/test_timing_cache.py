"""The timing cache's file: found again, merged with others', never half written, never in the way."""

from __future__ import annotations

import fcntl
import threading
from pathlib import Path

import pytest

from fastdiff.errors import FastdiffWarning
from fastdiff.targets.gpu import Gpu
from fastdiff.targets.tensorrt.timing_cache import FOLDER, TimingCache
from tests.targets.tensorrt.conftest import H200, VERSION
from tests.targets.tensorrt.fake import FakeApi, FakeDevice


@pytest.fixture
def api() -> FakeApi:
    return FakeApi(FakeDevice())


def test_kept_for_the_next_build(tmp_path: Path, api: FakeApi) -> None:
    cache = TimingCache(tmp_path, H200, VERSION)
    assert cache.read() == b""
    cache.update(b"a;", b"", api)
    assert TimingCache(tmp_path, H200, VERSION).read() == b"a;"
    assert [path.suffix for path in sorted((tmp_path / FOLDER).iterdir())] == [".cache", ".lock"]


def test_every_gpu_and_version_has_its_own(tmp_path: Path) -> None:
    paths = {
        TimingCache(tmp_path, gpu, version).path.name
        for gpu in (
            H200,
            Gpu(0, "NVIDIA L4", "8.9"),
            Gpu(0, "NVIDIA H200", "9.1"),
            Gpu(0, "A/../B: x", "9.0"),
        )
        for version in (VERSION, "11.4.0.106")
    }
    assert len(paths) == 8
    assert all("/" not in name and ":" not in name and " " not in name for name in paths)


def test_what_another_build_stored_meanwhile_is_kept(tmp_path: Path, api: FakeApi) -> None:
    cache = TimingCache(tmp_path, H200, VERSION)
    cache.update(b"a;", b"", api)
    first, second = cache.read(), cache.read()
    cache.update(first + b"b;", first, api)
    cache.update(second + b"c;", second, api)
    assert sorted(cache.read().split(b";")) == [b"", b"a", b"b", b"c"]


def test_nothing_new_is_not_written(tmp_path: Path, api: FakeApi) -> None:
    TimingCache(tmp_path, H200, VERSION).update(b"", b"", api)
    assert list(tmp_path.iterdir()) == []


def test_waits_for_the_lock(tmp_path: Path, api: FakeApi) -> None:
    cache = TimingCache(tmp_path, H200, VERSION)
    cache.update(b"a;", b"", api)
    with cache.path.with_suffix(".lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        writer = threading.Thread(target=cache.update, args=(b"a;b;", b"a;", api))
        writer.start()
        writer.join(0.2)
        assert writer.is_alive()
        assert cache.read() == b"a;"
    writer.join(10)
    assert cache.read() == b"a;b;"


def test_a_folder_that_cannot_be_written_is_a_warning(tmp_path: Path, api: FakeApi) -> None:
    (tmp_path / FOLDER).write_text("a file where the folder should be")
    cache = TimingCache(tmp_path, H200, VERSION)
    with pytest.warns(FastdiffWarning, match="the timing cache cannot be read"):
        assert cache.read() == b""
    with pytest.warns(FastdiffWarning, match="the timing cache cannot be written .*builds take longer"):
        cache.update(b"a;", b"", api)
