"""Timing in turns: every contestant of a group once per round, so that the machine's drift meets all alike.

Ratios are between medians of the same group. Where not all contestants fit into memory together, the first
one stays and the others come to it in groups.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from fastdiff.bench.agreement import Agreement
from fastdiff.errors import FastdiffError, InputError

__all__ = ["Measurement", "Pace", "Runner", "Spread", "measure_all", "quantile", "spread"]

_TURN_MS = 100.0
"""A turn repeats calls for about this long: short ones then run as in a sampling loop, one after another."""
_MOST_CALLS = 200
_SETTLE_SECONDS = 0.01


@dataclass(frozen=True)
class Spread:
    """Milliseconds per call: median, 10th and 90th percentile of ``calls`` calls."""

    median: float
    p10: float
    p90: float
    calls: int


@dataclass(frozen=True)
class Pace:
    """How long to measure: ``rounds`` of turns, or when None as many as fit ``seconds`` per contestant, at
    least ``least`` and at most ``most``.
    """

    rounds: int | None = None
    seconds: float = 10.0
    least: int = 5
    most: int = 100

    def __post_init__(self) -> None:
        if self.rounds is not None and self.rounds < 1:
            raise InputError(f"rounds is {self.rounds}: give 1 or more")
        if not 0 < self.seconds < math.inf:
            raise InputError(f"seconds is {self.seconds:g}: give a positive number")

    def goes_on(self, done: int, elapsed: float, contestants: int) -> bool:
        """Whether another round follows after ``done`` rounds and ``elapsed`` seconds."""
        if self.rounds is not None:
            return done < self.rounds
        return done < self.least or (done < self.most and elapsed < self.seconds * contestants)


@dataclass(frozen=True)
class Measurement:
    """What was found of one contestant.

    ``status`` is ``ok``, ``refused`` (its outputs disagree), ``missing`` (cannot be measured here) or
    ``failed``; ``reason`` says why it is not ok. ``ratio`` is its median over that of the first contestant of
    its group, ``base``. Times of starting are in seconds: ``import_s`` the libraries, ``load_s`` opening its
    files, ``first_s`` the first call, ``cold_s`` all of it from the start of the process. ``peak_rss`` is in
    bytes.
    """

    name: str
    status: str
    reason: str = ""
    version: str = ""
    agreement: Agreement | None = None
    spread: Spread | None = None
    samples_ms: tuple[float, ...] = ()
    ratio: float | None = None
    base: str = ""
    group: int = 0
    import_s: float | None = None
    load_s: float | None = None
    first_s: float | None = None
    cold_s: float | None = None
    peak_rss: int | None = None


class Runner(Protocol):
    """A contestant's process, as far as measuring knows it."""

    name: str
    version: str
    memory: int

    def start(self) -> dict[str, float]:
        """Open it and run once: the ``_s`` figures of Measurement. Raises FastdiffError."""

    def check(self) -> Agreement:
        """Agreement of its latest outputs with the expected ones."""

    def turn(self, calls: int) -> list[float]:
        """Seconds of each of ``calls`` calls."""

    def rss(self) -> int:
        """Its peak resident bytes."""

    def pause(self) -> None:
        """Stop it while others run."""

    def resume(self) -> None:
        """Let it go on."""

    def close(self) -> None:
        """End it."""


Say = Callable[[str, int, int], None]
"""Progress: what is done for whom, and how much of how many."""


def quantile(values: Sequence[float], q: float) -> float:
    """The ``q``-quantile, linear between order statistics. Raises ValueError for no values."""
    if not values:
        raise ValueError("no values have no quantile")
    ordered = sorted(values)
    place = q * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def spread(milliseconds: Sequence[float]) -> Spread:
    """Median, p10 and p90 of single calls."""
    return Spread(
        quantile(milliseconds, 0.5),
        quantile(milliseconds, 0.1),
        quantile(milliseconds, 0.9),
        len(milliseconds),
    )


def measure_all(
    runners: Sequence[Runner],
    pace: Pace,
    *,
    available: Callable[[], int],
    say: Say = lambda what, done, total: None,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Measurement]:
    """Measure the runners, in their order; the first one is in every group.

    A runner joins the open group while its estimated ``memory`` is available; otherwise that group is timed
    and its members but the first, if that one lasted, are closed. One that does not fit beside the first
    alone fails. What the system calls available includes the mapped files of those that are open, which would
    be read again from the disk in every turn: what was there at the beginning less their memory counts too.
    """
    everything = available()

    def left() -> int:
        return min(available(), everything - sum(runner.memory for runner in started))

    results: dict[str, Measurement] = {}
    started: list[Runner] = []
    group = 0
    try:
        for runner in runners:
            if len(started) > 1 and runner.memory > left():
                _time_group(started, group, pace, results, say, clock)
                # a first one that did not last is no base for the next group
                kept = 1 if results[started[0].name].status == "ok" else 0
                while len(started) > kept:
                    started.pop().close()
                group += 1
            free = left()
            if runner.memory > free:
                results[runner.name] = Measurement(
                    runner.name,
                    "failed",
                    f"needs about {runner.memory / 1e9:.1f} GB, {free / 1e9:.1f} GB of memory are free: "
                    "give a smaller size, or fewer contestants",
                    version=runner.version,
                )
                continue
            say(f"{runner.name}: open", 0, 0)
            found = _start(runner)
            results[runner.name] = replace(found, group=group)
            if found.status == "ok":
                started.append(runner)
            else:
                runner.close()
        _time_group(started, group, pace, results, say, clock)
    finally:
        for runner in started:
            runner.close()
    return [results[runner.name] for runner in runners]


def _start(runner: Runner) -> Measurement:
    """Open and check a runner, and leave it paused; its measurement without times of calls."""
    found = Measurement(runner.name, "failed", version=runner.version)
    figures: dict[str, Any]
    try:
        figures = dict(runner.start())
        agreement = runner.check()
        runner.pause()
    except FastdiffError as error:
        return replace(found, reason=str(error))
    if agreement.ok:
        return replace(found, status="ok", agreement=agreement, **figures)
    return _refused(replace(found, **figures), "its outputs differ from PyTorch's", agreement)


def _refused(found: Measurement, reason: str, agreement: Agreement) -> Measurement:
    """The result of a contestant that disagrees; an error that is no number stands in the reason alone."""
    kept = agreement if math.isfinite(agreement.value) else None
    return replace(found, status="refused", reason=f"{reason}: {agreement}", agreement=kept)


def _time_group(
    runners: Sequence[Runner],
    group: int,
    pace: Pace,
    results: dict[str, Measurement],
    say: Say,
    clock: Callable[[], float],
) -> None:
    """Time the runners in turns and complete their results. The first one's samples of all groups add up."""
    if not runners or (group > 0 and len(runners) == 1):
        return
    running = list(runners)
    calls: dict[str, int] = {}
    samples: dict[str, list[float]] = {runner.name: [] for runner in runners}
    for runner in runners:
        say(f"{runner.name}: warm up", 0, 0)
        if single := _turn(runner, 1, running, results):
            calls[runner.name] = max(1, min(_MOST_CALLS, round(_TURN_MS / max(single[0], 1e-6))))
    begin = clock()
    done = 0
    while running and pace.goes_on(done, clock() - begin, len(running)):
        # the other way round every second time: nobody always follows the same neighbour
        for runner in list(running) if done % 2 == 0 else list(reversed(running)):
            say(f"{runner.name}: round {done + 1}", done, pace.rounds or 0)
            samples[runner.name] += _turn(runner, calls[runner.name], running, results)
        done += 1
    base = runners[0]
    for runner in runners:
        if runner in running:
            results[runner.name] = _complete(runner, results[runner.name], samples[runner.name])
    for runner in running:
        found = results[runner.name]
        if found.status == "ok" and results[base.name].status == "ok":
            ratio = quantile(samples[runner.name], 0.5) / quantile(samples[base.name], 0.5)
            results[runner.name] = replace(found, ratio=ratio, base=base.name)


def _turn(runner: Runner, calls: int, running: list[Runner], results: dict[str, Measurement]) -> list[float]:
    """Milliseconds of a turn; a runner that fails is out of the group and its result says why."""
    try:
        runner.resume()
        time.sleep(_SETTLE_SECONDS)
        milliseconds = [1e3 * seconds for seconds in runner.turn(calls)]
        runner.pause()
        return milliseconds
    except FastdiffError as error:
        running.remove(runner)
        runner.close()
        results[runner.name] = replace(results[runner.name], status="failed", reason=str(error))
        return []


def _complete(runner: Runner, found: Measurement, milliseconds: list[float]) -> Measurement:
    """The result with times and memory, once the outputs after all those calls agree as well."""
    try:
        runner.resume()
        peak = runner.rss()
        agreement = runner.check()
        runner.pause()
    except FastdiffError as error:
        return replace(found, status="failed", reason=str(error))
    if not agreement.ok:
        return _refused(
            found, f"its outputs differ from PyTorch's after {len(milliseconds)} calls", agreement
        )
    samples = (*found.samples_ms, *milliseconds)
    return replace(found, spread=spread(samples), samples_ms=samples, peak_rss=peak)
