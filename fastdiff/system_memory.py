"""How much memory there is left."""

from __future__ import annotations

import contextlib
from pathlib import Path

__all__ = ["available_memory", "total_memory"]

_GROUP = "/sys/fs/cgroup"


def available_memory() -> int | None:
    """Bytes that can be had without swapping: the system's figure, or the container's if that is less.

    None where the system does not say.
    """
    available = _system().get("MemAvailable")
    with contextlib.suppress(OSError, ValueError):
        group = Path(_GROUP)
        limit = int((group / "memory.max").read_text(encoding="ascii"))
        used = int((group / "memory.current").read_text(encoding="ascii"))
        lines = (group / "memory.stat").read_text(encoding="ascii").splitlines()
        cached = next((int(line.split()[1]) for line in lines if line.startswith("file ")), 0)
        free = limit - used + cached
        available = free if available is None else min(available, free)
    return available


def total_memory() -> int | None:
    """Bytes that could ever be had, swapping included: the system's figure, or the container's if less.

    None where the system does not say.
    """
    figures = _system()
    if "MemTotal" not in figures:
        return None
    total = figures["MemTotal"] + figures.get("SwapTotal", 0)
    with contextlib.suppress(OSError, ValueError):
        limit = int((Path(_GROUP) / "memory.max").read_text(encoding="ascii"))
        total = min(total, limit + figures.get("SwapTotal", 0))
    return total


def _system() -> dict[str, int]:
    """The system's figures in bytes, none where it has none."""
    figures = {}
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            words = line.split()
            if words[2:] == ["kB"]:
                figures[words[0].rstrip(":")] = int(words[1]) * 1024
    return figures
