"""Made-up reports and contestants: figures that are known beforehand."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from fastdiff.bench.agreement import Agreement
from fastdiff.bench.case import Case
from fastdiff.bench.ceilings import Ceilings
from fastdiff.bench.measure import Measurement, spread
from fastdiff.bench.report import Report, Result, Run
from fastdiff.errors import TargetError

CASE = Case("scenes", "run", "unet", 2, 64, 96)
GB = 10**9


@dataclass
class Machine:
    """A clock that only contestants move, free memory that they take, and the order of their turns."""

    free: int = 100
    now: float = 0.0
    turns: list[str] = field(default_factory=list)
    awake: set[str] = field(default_factory=set)

    def clock(self) -> float:
        return self.now

    def available(self) -> int:
        return self.free


@dataclass
class FakeRunner:
    """Takes ``seconds`` per call, in turn; ``fails_at`` is the turn that it dies in. The system counts the
    memory of a ``mapped`` one as available.
    """

    name: str
    machine: Machine
    seconds: tuple[float, ...] = (0.2,)
    memory: int = 10
    errors: tuple[float, ...] = (1e-6,)
    fails_at: int = 10**9
    missing: bool = False
    mapped: bool = False
    version: str = "1.0"
    running: bool = False
    starts: int = 0
    _turns: int = 0
    _checks: int = 0

    def start(self) -> dict[str, float]:
        if self.missing:
            raise TargetError(f"{self.name} failed: no such library")
        self.running, self.starts = True, self.starts + 1
        self.machine.free -= 0 if self.mapped else self.memory
        self.machine.awake.add(self.name)
        return {"import_s": 0.5, "load_s": 0.25, "first_s": 0.125, "cold_s": 1.0}

    def check(self) -> Agreement:
        self._checks += 1
        return Agreement("relative_l2", self.errors[min(self._checks, len(self.errors)) - 1])

    def turn(self, calls: int) -> list[float]:
        assert self.machine.awake == {self.name}, "the others must be stopped"
        if self._turns == self.fails_at:
            raise TargetError(f"{self.name}: the process was killed")
        duration = self.seconds[self._turns % len(self.seconds)]
        self._turns += 1
        self.machine.turns.append(self.name)
        self.machine.now += calls * duration
        return [duration] * calls

    def rss(self) -> int:
        return self.memory * GB

    def pause(self) -> None:
        self.machine.awake.discard(self.name)

    def resume(self) -> None:
        self.machine.awake.add(self.name)

    def close(self) -> None:
        self.machine.awake.discard(self.name)
        if self.running:
            self.machine.free += 0 if self.mapped else self.memory
        self.running = False


def measurement(name: str, samples: tuple[float, ...], base: tuple[float, ...]) -> Measurement:
    timed = spread(samples)
    return Measurement(
        name=name,
        status="ok",
        version="1.2",
        agreement=Agreement("relative_l2", 2.5e-7),
        spread=timed,
        samples_ms=samples,
        ratio=timed.median / spread(base).median,
        base="fastdiff:native",
        import_s=0.5,
        load_s=0.25,
        first_s=0.125,
        cold_s=1.0,
        peak_rss=123_000_000,
    )


def make_run(scale: float = 1.0, date: str = "2026-01-02T03:04:05+00:00", cpu: str = "CPU <A> & co") -> Run:
    """Two cases: fastdiff at 10 ms beside a peer at 25 ms and two without figures; pictures."""
    ours = tuple(scale * value for value in (9.0, 10.0, 12.0))
    theirs = tuple(scale * value for value in (24.0, 25.0, 40.0))
    results = (
        Result(
            CASE,
            flops=2 * GB,
            weights=40_000_000,
            arrays=500_000,
            measurements=(
                measurement("fastdiff:native", ours, ours),
                measurement("torch", theirs, ours),
                Measurement("inductor", "refused", "its outputs differ: relative L2 error 2.0e-01"),
                Measurement("openvino", "missing", "openvino not installed: pip install 'fastdiff[bench]'"),
            ),
        ),
        Result(
            Case("scenes", "picture", "", 1, 64, 96),
            flops=0,
            weights=0,
            arrays=0,
            measurements=(
                Measurement(
                    "fastdiff:native",
                    "ok",
                    agreement=Agreement("psnr", 86.5),
                    spread=spread([100.0]),
                    samples_ms=(100.0,),
                ),
            ),
        ),
    )
    return Run(
        date=date,
        fastdiff={"version": "0.1", "commit": "0123456789abcdef+"},
        libraries={"torch": "2.13.0", "openvino": "2026.4"},
        machine={"cpu": cpu, "threads": 2, "cores": 2, "isa": "avx2", "memory": 24 * GB, "system": "Linux"},
        settings={"rounds": 3, "seconds": 10.0, "devices": ["cpu"]},
        ceilings=Ceilings(gemm=160e9, copy=20e9),
        results=results,
    )


def reports() -> Iterator[Report]:
    """Two machines, the second twice as fast."""
    yield Report((make_run(),))
    yield Report((make_run(0.5, "2026-02-02T03:04:05+00:00", "CPU B"),))
