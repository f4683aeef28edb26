"""What a process holds in memory, stage by stage, as the kernel counts it.

Resident memory counts mapped pages of files as well; ``anonymous`` is what no file backs and no other process
can use.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
from pathlib import Path

__all__ = ["Mapping", "Peak", "Watch", "mappings", "resident"]


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


@dataclass(frozen=True)
class Mapping:
    """A mapping of a file into this process: bytes in memory, and those among them that it copied."""

    shared: bool
    resident: int
    copied: int


def mappings(path: Path) -> list[Mapping]:
    """The mappings of a file, in the order of their addresses."""
    found: list[Mapping] = []
    wanted = False
    for line in Path("/proc/self/smaps").read_text(encoding="utf-8", errors="replace").splitlines():
        key, _, rest = line.partition(" ")
        if not key.endswith(":"):  # the line that begins a mapping: addresses, rights, offset, device, file
            wanted = line.endswith(f" {path.resolve()}")
            if wanted:
                found.append(Mapping(rest.split()[0].endswith("s"), 0, 0))
        elif wanted and key == "Rss:":
            found[-1] = replace(found[-1], resident=1024 * int(rest.split()[0]))
        elif wanted and key == "Anonymous:":
            found[-1] = replace(found[-1], copied=1024 * int(rest.split()[0]))
    return found


def _status() -> dict[str, int]:
    """Bytes by the kernel's names."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8", errors="replace").splitlines()
    pairs = (line.split(":", 1) for line in lines if line.startswith(("Vm", "Rss")))
    return {name: 1024 * int(value.split()[0]) for name, value in pairs}
