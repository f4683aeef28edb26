"""What a process holds in memory, stage by stage, as the kernel counts it.

Resident memory counts mapped pages of files as well; ``anonymous`` is what no file backs and no other process
can use.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Peak", "Watch", "resident"]


@dataclass
class Peak:
    """Bytes: the most that was resident, and the most of it that was anonymous, not always at once."""

    resident: int = 0
    anonymous: int = 0


def resident() -> Peak:
    """What the process holds now."""
    fields = _status()
    return Peak(fields["VmRSS"], fields["RssAnon"])


class Watch:
    """Peaks by stage: ``enter`` a stage, and read ``peaks`` after ``stop``.

    The kernel keeps the resident peak itself and lets a process reset its own; anonymous memory is looked at
    every few milliseconds.
    """

    def __init__(self, interval: float = 0.005) -> None:
        self.peaks: dict[str, Peak] = {}
        self._stage = ""
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look, args=(interval,), daemon=True)

    def start(self) -> Watch:
        self._thread.start()
        return self

    def enter(self, stage: str) -> None:
        """End the current stage and begin another; a stage that comes again goes on."""
        with self._lock:
            self._record()
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets VmHWM
            self._stage = stage
            self.peaks.setdefault(stage, Peak())

    def stop(self) -> dict[str, Peak]:
        """The peaks of all stages."""
        self._done.set()
        self._thread.join()
        with self._lock:
            self._record()
        return self.peaks

    def _look(self, interval: float) -> None:
        while not self._done.wait(interval):
            with self._lock:
                self._record()

    def _record(self) -> None:
        if self._stage:
            peak, fields = self.peaks[self._stage], _status()
            peak.resident = max(peak.resident, fields["VmHWM"])
            peak.anonymous = max(peak.anonymous, fields["RssAnon"])


@contextmanager
def watched(watch: Watch) -> Iterator[Watch]:
    """A watch that runs inside the block."""
    watch.start()
    try:
        yield watch
    finally:
        watch.stop()


def _status() -> dict[str, int]:
    """Bytes by the kernel's names."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8", errors="replace").splitlines()
    pairs = (line.split(":", 1) for line in lines if line.startswith(("Vm", "Rss")))
    return {name: 1024 * int(value.split()[0]) for name, value in pairs}
