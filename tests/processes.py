"""Finding the processes that a test has started, however far down and whoever is their parent by now."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path

__all__ = ["children_of", "marked", "wait_until"]

MARK = "FASTDIFF_TEST_MARK"
"""Environment variable that a test sets, which all processes below it inherit."""


def marked(token: str) -> list[int]:
    """Processes that live and were started with ``token`` as MARK."""
    found = []
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if (
                folder.name.isdigit()
                and f"{MARK}={token}".encode() in (folder / "environ").read_bytes().split(b"\0")
                and _status(folder)[0] != "Z"
            ):
                found.append(int(folder.name))
    return sorted(found)


def children_of(process: int) -> list[int]:
    """Child processes, those included that have ended and that nobody has waited for."""
    found = []
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if folder.name.isdigit() and _status(folder)[1] == process:
                found.append(int(folder.name))
    return sorted(found)


def _status(folder: Path) -> tuple[str, int]:
    """State letter and parent."""
    state, parent, *_ = (
        (folder / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    )
    return state, int(parent)


def wait_until(condition: Callable[[], object], seconds: float = 60.0) -> None:
    """Wait for a condition; fails when it does not come about."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"{condition} did not come about within {seconds:g} s"
        time.sleep(0.02)
