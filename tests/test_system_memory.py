"""How much memory there is left: the system's figure, the container's."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastdiff import system_memory
from fastdiff.system_memory import available_memory, total_memory


@pytest.mark.smoke
def test_available_memory_is_within_the_machine() -> None:
    total = int(Path("/proc/meminfo").read_text().split()[1]) * 1024
    found = available_memory()
    assert found is not None
    assert 10_000_000 < found < total
    whole = total_memory()
    assert whole is not None
    assert whole >= found


def test_free_memory_is_that_of_the_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    group = tmp_path / "sys" / "fs" / "cgroup"
    group.mkdir(parents=True)
    (tmp_path / "proc").mkdir()
    monkeypatch.setattr(system_memory, "Path", lambda path: tmp_path / path.lstrip("/"))
    assert available_memory() is None
    (tmp_path / "proc" / "meminfo").write_text("MemTotal: 9000 kB\nMemAvailable:    5000 kB\n")
    assert available_memory() == 5_120_000
    (group / "memory.max").write_text("4000000\n")
    (group / "memory.current").write_text("3000000\n")
    (group / "memory.stat").write_text("anon 100\nfile 500000\nfile_mapped 7\n")
    assert available_memory() == 1_500_000, "what is cached can be had"
    (group / "memory.max").write_text("max\n")
    assert available_memory() == 5_120_000


def test_all_memory_is_that_of_the_container_and_what_is_swapped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = tmp_path / "sys" / "fs" / "cgroup"
    group.mkdir(parents=True)
    (tmp_path / "proc").mkdir()
    monkeypatch.setattr(system_memory, "Path", lambda path: tmp_path / path.lstrip("/"))
    assert total_memory() is None
    (tmp_path / "proc" / "meminfo").write_text("MemTotal: 9000 kB\nHugePages_Total: 0\nSwapTotal: 1000 kB\n")
    assert total_memory() == 10_240_000
    (group / "memory.max").write_text("4000000\n")
    assert total_memory() == 4_000_000 + 1_024_000
    (group / "memory.max").write_text("max\n")
    assert total_memory() == 10_240_000
