"""How much of a TensorRT build is done, from the phases that it reports."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["BuildProgress"]


@dataclass
class _Phase:
    parent: str | None
    steps: int
    done: int = 0


class BuildProgress:
    """Turns nested phases into one fraction, which ``report`` gets whenever it has grown by a thousandth.

    A phase's step counts by as much as the phases within it have done. Phases of the outermost level that
    follow each other start again at nothing: of those the longest so far counts. Threads may call.
    """

    def __init__(self, report: Callable[[float], None]) -> None:
        self._report = report
        self._phases: dict[str, _Phase] = {}
        self._lock = threading.Lock()
        self._shown = 0.0

    def start(self, phase: str, parent: str | None, steps: int) -> None:
        """A phase begins."""
        with self._lock:
            self._phases[phase] = _Phase(parent, max(steps, 1))

    def step(self, phase: str, step: int) -> None:
        """A step is done."""
        with self._lock:
            if phase not in self._phases:
                return
            self._phases[phase].done = step + 1
            fraction = min(1.0, max(self._fraction(name) for name in self._outermost()))
            if fraction < self._shown + 1e-3:
                return
            self._shown = fraction
        self._report(fraction)

    def finish(self, phase: str) -> None:
        """A phase is over."""
        with self._lock:
            self._phases.pop(phase, None)

    def _outermost(self) -> list[str]:
        return [name for name, phase in self._phases.items() if phase.parent not in self._phases]

    def _fraction(self, name: str) -> float:
        phase = self._phases[name]
        inner = [self._fraction(other) for other, inside in self._phases.items() if inside.parent == name]
        return (phase.done + (max(inner) if inner and phase.done < phase.steps else 0.0)) / phase.steps
