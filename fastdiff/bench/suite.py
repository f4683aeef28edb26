"""A whole benchmark: the cases and contestants of a request, prepared, measured and put into a report."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fastdiff.bench.agreement import Agreement
from fastdiff.bench.case import Case, Job, Picture
from fastdiff.bench.ceilings import Ceilings
from fastdiff.bench.machine import describe
from fastdiff.bench.measure import Measurement, Pace, Say, measure_all
from fastdiff.bench.models import GPU_TARGETS, Model, find_models, missing_target
from fastdiff.bench.peers import ENGINE_WEIGHTS, PEERS, missing, version
from fastdiff.bench.process import WorkerProcess, run_task
from fastdiff.bench.report import Report, Result, Run
from fastdiff.config import Precision
from fastdiff.doctor import find_gpus
from fastdiff.errors import FastdiffError, InputError, NumericError, TargetError
from fastdiff.system_memory import available_memory

__all__ = ["Request", "check_request", "run_suite"]

_RUNTIME_BYTES = 600_000_000
"""What a process takes besides weights and activations: Python and the libraries' code."""

_MAPPED_WEIGHTS = 1.2
"""Host memory of a contestant on a GPU, as a multiple of its weights in fp32."""


@dataclass(frozen=True)
class Request:
    """What to measure.

    ``models``: shipped names, diffusers folders, published configurations, engine folders. ``targets``:
    fastdiff's own that are built and measured, the first one being what ratios refer to; empty means, for a
    model without an engine, ``auto``, on a GPU all that run there; ``none`` is none. ``against``: peers, None
    meaning all that are installed. ``devices`` is one: cpu or cuda. ``modules`` None means what the model is
    for; ``sizes`` are picture pixels (height, width), empty meaning the model's own; ``batch`` None means 2
    where guidance doubles it, else 1. ``kinds`` None means ``run``, and for models that make pictures
    ``picture`` and ``cold`` too.
    """

    models: tuple[str, ...]
    targets: tuple[str, ...] = ()
    against: tuple[str, ...] | None = None
    devices: tuple[str, ...] = ("cpu",)
    modules: tuple[str, ...] | None = None
    sizes: tuple[tuple[int, int], ...] = ()
    batch: int | None = None
    kinds: tuple[str, ...] | None = None
    threads: int | None = None
    pace: Pace = field(default_factory=Pace)
    picture: Picture = field(default_factory=Picture)


def check_request(request: Request) -> None:
    """Raises InputError or TargetError for what cannot be measured, before anything is prepared."""
    for device in request.devices:
        if device not in ("cpu", "cuda"):
            raise InputError(f"unknown device {device!r}: give cpu or cuda")
    if len(request.devices) != 1:
        raise InputError("a run has one device: give cpu or cuda, and put two results side by side")
    (device,) = request.devices
    if device == "cuda" and not find_gpus()[0]:
        raise TargetError("device 'cuda': this machine has no NVIDIA GPU; give cpu")
    for name in request.against or ():
        if name not in PEERS:
            raise InputError(f"unknown peer {name!r}: known are {', '.join(PEERS)}, or none")
        if reason := missing(name, device):
            raise TargetError(f"peer {name!r} cannot run here: {reason}")
    for what, value in (("threads", request.threads), ("batch", request.batch)):
        if value is not None and value < 1:
            raise InputError(f"{what} is {value}: give 1 or more")
    from fastdiff.targets import get_target, require_target, resolve_target

    for target in () if request.targets == ("none",) else request.targets:
        resolved = resolve_target(target)
        half = device == "cuda" and Precision.FP16 in get_target(resolved).PRECISIONS
        require_target(resolved, Precision.FP16 if half else Precision.FP32)
    if reason := missing("torch"):
        raise TargetError(f"results are compared with PyTorch's: {reason}")


def run_suite(
    requests: Sequence[Request],
    say: Say = lambda what, done, total: None,
    keep: Path | None = None,
    each: Callable[[Report], None] | None = None,
) -> Report:
    """Measure everything that the requests mean, one after another; a report of one run. In the folder
    ``keep`` weights and engines stay for the next run with it; ``each`` gets what is there after every case.

    A contestant that cannot be built or run, or whose results disagree, is in the report with the reason;
    all are where PyTorch itself gives no finite result to compare with. Raises InputError, TargetError,
    CheckpointError or EngineError for a request that cannot be met.
    """
    if not requests:
        raise InputError("nothing to measure: give a request")
    for request in requests:
        check_request(request)
    if len({request.threads for request in requests}) > 1:
        raise InputError("the requests of one run have different threads: give all the same")
    if len({request.devices for request in requests}) > 1:
        raise InputError("the requests of one run have different devices: give all the same")
    (device,) = requests[0].devices
    threads = requests[0].threads or len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory(prefix="fastdiff-bench-") as name:
        folder = Path(name)
        cases = [
            (request, model, case)
            for index, request in enumerate(requests)
            for model in find_models(request, keep or folder / f"request-{index}")
            for case in model.cases(request)
        ]
        say("ceilings", 0, len(cases))
        ceilings = _ceilings(threads, folder, device)
        results = []
        for index, (request, model, case) in enumerate(cases):

            def tell(what: str, done: int, total: int, case: Case = case, index: int = index) -> None:
                say(f"{case.label}: {what}", index, len(cases))

            results.append(_Bench(request, model, case, threads, folder, tell).measure())
            if each is not None:
                each(_report(requests[0], threads, ceilings, results))
            if keep is None and (index + 1 == len(cases) or cases[index + 1][1] is not model):
                model.clean()
        ceilings = ceilings.best(_ceilings(threads, folder, device))
    return _report(requests[0], threads, ceilings, results)


def _report(request: Request, threads: int, ceilings: Ceilings, results: Sequence[Result]) -> Report:
    pace, (device,) = request.pace, request.devices
    settings = {"rounds": pace.rounds, "seconds": pace.seconds, "devices": [device]}
    run = Run(**describe(threads, device), settings=settings, ceilings=ceilings, results=tuple(results))
    return Report((run,))


def _ceilings(threads: int, folder: Path, device: str) -> Ceilings:
    return Ceilings(**run_task("measure_ceilings", threads, folder, {"threads": threads, "device": device}))


class _Bench:
    """One case: prepared, then measured."""

    def __init__(
        self, request: Request, model: Model, case: Case, threads: int, folder: Path, say: Say
    ) -> None:
        self.request, self.model, self.case, self.threads, self.say = request, model, case, threads, say
        self.folder = folder
        checkpoint = model.checkpoint
        self.job = Job(
            contestant="torch",
            case=case,
            model=checkpoint.spec,
            checkpoint=str(checkpoint.path),
            inputs=str(folder / "inputs.npz"),
            expected=str(folder / "expected.npz"),
            threads=threads,
            vocab_size=checkpoint.vocab_size,
            picture=request.picture,
        )

    def measure(self) -> Result:
        """The case's result; where there is nothing to compare with, its contestants failed."""
        try:
            return self._measure()
        except (InputError, TargetError, NumericError) as error:
            names = [name for name, _, _ in self._contestants()]
            return Result(
                self.case, 0, 0, 0, tuple(Measurement(name, "failed", str(error)) for name in names)
            )

    def _measure(self) -> Result:
        self.model.write(self.task)
        self.say("PyTorch's results", 0, 0)
        # a cold start ends with the same picture as a warm one
        case = replace(self.case, kind={"open": "run", "cold": "picture"}.get(self.case.kind, self.case.kind))
        figures = self.task("reference", job=replace(self.job, case=case).to_json())
        self.job = replace(self.job, limit=figures.pop("limit"))
        runners: list[_Process] = []
        failed: dict[str, Measurement] = {}
        order: list[str] = []
        for name, make, weights in self._contestants():
            order.append(name)
            try:
                job = make()
            except FastdiffError as error:
                failed[name] = Measurement(name, "failed", str(error))
                continue
            if self.case.device == "cuda":  # where the weights go, page by page
                weights = min(weights, _MAPPED_WEIGHTS)
            memory = int(_RUNTIME_BYTES + weights * figures["weights"] + 4 * figures["arrays"])
            runners.append(_Process(name, job, memory, self.folder))
        for name, reason in self._absent().items():
            order.append(name)
            failed[name] = Measurement(name, "missing", reason)
        measured = measure_all(
            runners, self.request.pace, available=lambda: available_memory() or 0, say=self.say
        )
        found = {**failed, **{measurement.name: measurement for measurement in measured}}
        return Result(self.case, measurements=tuple(found[name] for name in order), **figures)

    def _contestants(self) -> list[tuple[str, Callable[[], Job], float]]:
        """Name, how to get the job, and memory as a multiple of the weights; fastdiff's first."""
        found: list[tuple[str, Callable[[], Job], float]] = []
        for label, path in self.model.engines:

            def given(label: str = label, path: Path = path) -> Job:
                return replace(self.job, contestant=label, engine=str(path))

            found.append((label, given, ENGINE_WEIGHTS))
        for target in self.model.targets(self.request):

            def built(target: str = target) -> Job:
                self.say(f"build for {target}", 0, 0)
                engine = self.model.engine(target, self.case, self.task)
                return replace(self.job, contestant=f"fastdiff:{target}", engine=str(engine))

            found.append((f"fastdiff:{target}", built, ENGINE_WEIGHTS))
        for name in self._peers():

            def peer(name: str = name) -> Job:
                onnx = ""
                if PEERS[name].onnx:
                    self.say("ONNX export", 0, 0)
                    onnx = str(self.model.onnx(self.case.module, self.task))
                return replace(self.job, contestant=name, onnx=onnx)

            found.append((name, peer, PEERS[name].weights))
        return found

    def _peers(self) -> list[str]:
        """The peers that can be measured here."""
        absent = self._absent()
        return [name for name in self._wanted() if name not in absent]

    def _absent(self) -> dict[str, str]:
        """The other peers and targets, and why: the report names whoever is not in it."""
        reasons = {}
        if self.case.device == "cuda" and not self.request.targets and not self.model.engines:
            targets = ((f"fastdiff:{name}", missing_target(name)) for name in GPU_TARGETS)
            reasons.update({name: reason for name, reason in targets if reason})
        for name in self._wanted():
            if reason := missing(name, self.case.device, not self.case.module):
                reasons[name] = reason
            elif not self.case.module and self.case.kind not in PEERS[name].pictures:
                reasons[name] = "not measured with whole pictures: see its modules"
        return reasons

    def _wanted(self) -> tuple[str, ...]:
        on_device = tuple(name for name, peer in PEERS.items() if self.case.device in peer.devices)
        return on_device if self.request.against is None else self.request.against

    def task(self, name: str, /, **arguments: Any) -> Any:
        """Run a preparation in a process of its own."""
        return run_task(name, self.threads, self.folder, arguments)


class _Process:
    """A contestant as ``measure_all`` wants it: a worker process that is started when its turn comes."""

    def __init__(self, name: str, job: Job, memory: int, folder: Path) -> None:
        self.name, self.memory = name, memory
        self.version = version(name) if name in PEERS else ""
        self._job, self._folder = job, folder
        self._process: WorkerProcess | None = None

    @property
    def _worker(self) -> WorkerProcess:
        assert self._process is not None
        return self._process

    def start(self) -> dict[str, float]:
        import time

        folder = Path(tempfile.mkdtemp(dir=self._folder))
        self._process = WorkerProcess(self.name, self._job.threads, folder)
        figures: dict[str, float] = self._worker.ask("open", job=self._job.to_json())
        return {**figures, "cold_s": time.perf_counter() - self._worker.started}

    def check(self) -> Agreement:
        if self._job.case.kind == "open":
            self._worker.ask("rerun")
        return Agreement(**self._worker.ask("check"))

    def turn(self, calls: int) -> list[float]:
        seconds: list[float] = self._worker.ask("turn", calls=calls)
        return seconds

    def rss(self) -> int:
        return int(self._worker.ask("memory"))

    def pause(self) -> None:
        self._worker.pause()

    def resume(self) -> None:
        self._worker.resume()

    def close(self) -> None:
        if self._process is not None:
            self._process.close()
            self._process = None
