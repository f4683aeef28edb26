"""Compiles Triton kernels in processes of their own, all cores at once, into Triton's cache on disk.

:func:`compile_all` starts ``python -m fastdiff.kernels.triton.pool``, which reads a job per line of standard
input and answers with a line each. Such a process sees no GPU and ends as soon as its input does, so with its
parent; one that crashes takes the kernel with it that it was compiling and nothing else.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from fastdiff.kernels.triton.planning import Job, compile_job, is_compiled

__all__ = ["compile_all"]

_MOST = 32
"""Processes: each takes about half a GB of memory."""


def compile_all(
    jobs: Iterable[Job],
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, str]:
    """Put what ``jobs`` ask for into Triton's cache; by key the reason why the compiler refused one.

    ``workers``: processes, None for one per core, and none at all where there is one core or one job: what
    is not compiled here is compiled by its first launch. The same holds where no process can be started.
    ``progress`` is called in this thread with the number of jobs that are done and that of all.
    """
    todo = list(jobs)
    missing = [job for job in todo if not _is_there(job)]
    count = min(_cores() if workers is None else workers, len(missing), _MOST)
    if not sys.executable or count < (2 if workers is None else 1):
        return {}
    crew = _Crew(missing, count)
    failures: dict[str, str] = {}
    done = len(todo) - len(missing)
    try:
        while (outcome := crew.next()) is not None:
            job, reason = outcome
            if reason is not None:
                failures[job.key] = reason
            done += 1
            if progress is not None:
                progress(done, len(todo))
    finally:
        crew.close()
    return failures


def _is_there(job: Job) -> bool:
    try:
        return is_compiled(job)
    except Exception:  # noqa: BLE001 (options that the compiler does not take, say: it will give its reason)
        return False


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


Outcome = tuple[Job, str | None]
"""A job and why it failed."""


class _Crew:
    """Processes with a thread each, which hands them one job after the other."""

    def __init__(self, jobs: Iterable[Job], count: int) -> None:
        self._pending: SimpleQueue[Job] = SimpleQueue()
        for job in jobs:
            self._pending.put(job)
        self._outcomes: SimpleQueue[Outcome | None] = SimpleQueue()
        self._stopped = threading.Event()
        self._workers: list[_Worker | None] = [None] * count
        self._working = count
        self._threads = [threading.Thread(target=self._serve, args=(place,)) for place in range(count)]
        for thread in self._threads:
            thread.start()

    def next(self) -> Outcome | None:
        """The next job that is done, None when no process works any more."""
        while self._working:
            outcome = self._outcomes.get()
            if outcome is not None:
                return outcome
            self._working -= 1
        return None

    def close(self) -> None:
        """End all processes, also those that still compile."""
        self._stopped.set()
        for worker in self._workers:
            if worker is not None:
                worker.stop()
        for thread in self._threads:
            thread.join()

    def _serve(self, place: int) -> None:
        try:
            while not self._stopped.is_set():
                self._work(place)
        except (Empty, OSError):  # nothing left to do, or no process to do it
            pass
        finally:
            if (worker := self._workers[place]) is not None:
                worker.close()
            self._outcomes.put(None)

    def _work(self, place: int) -> None:
        """One job. Raises Empty when there is none, and OSError where processes do not start."""
        job = self._pending.get_nowait()
        worker = self._workers[place]
        if worker is None:
            worker = self._workers[place] = _Worker()
            if self._stopped.is_set():
                return
            if not worker.ready():
                self._pending.put(job)
                raise OSError("the process did not start")
        answer = worker.ask(job)
        if answer is None:  # it died
            self._workers[place] = None
            answer = {"error": f"the compiler's process ended with {worker.close()}"}
        if not self._stopped.is_set():
            self._outcomes.put((job, answer.get("error")))


class _Worker:
    """One process."""

    def __init__(self) -> None:
        # the package that runs here, also where another one is installed
        root = str(Path(__file__).resolve().parents[3])
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH")))),
            "CUDA_VISIBLE_DEVICES": "",  # no context, whatever a library does
            "OMP_NUM_THREADS": "1",
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", "fastdiff.kernels.triton.pool"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            text=True,
            encoding="utf-8",
        )

    def ready(self) -> bool:
        """Wait until it has loaded what it needs; False when it has ended instead."""
        return self._answer() is not None

    def ask(self, job: Job) -> dict[str, Any] | None:
        """The answer to a job, None when the process has ended."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # it died: the reading below says so
            self._process.stdin.write(json.dumps(job.to_json()) + "\n")
            self._process.stdin.flush()
        return self._answer()

    def stop(self) -> None:
        """End it from another thread than the one that waits for its answers."""
        self._process.kill()

    def close(self) -> str:
        """End it; how it ended."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(OSError):  # what it has not read
            self._process.stdin.close()
        try:
            status = self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            status = self._process.wait()
        self._process.stdout.close()
        return signal.Signals(-status).name if status < 0 else f"status {status}"

    def _answer(self) -> dict[str, Any] | None:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        return json.loads(line) if line.endswith("\n") else None


def main() -> None:
    """Serve jobs until standard input ends, which it does with the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    # What the compiler and its tools print goes nowhere; only answers go to the parent.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    lines: SimpleQueue[str] = SimpleQueue()
    threading.Thread(target=_read, args=(lines,), daemon=True).start()
    import torch  # noqa: F401 (every kernel's module takes its time for it: now, and not within a job)

    answer: dict[str, Any] = {"ready": True}
    while True:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
        answer = _answer_to(lines.get())


def _read(lines: SimpleQueue[str]) -> None:
    for line in sys.stdin:
        lines.put(line)
    os._exit(0)


def _answer_to(line: str) -> dict[str, Any]:
    try:
        _build_launcher(compile_job(Job.from_json(json.loads(line))))
    except Exception as error:  # noqa: BLE001 (a compiler raises what it likes)
        return {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"}
    return {"error": None}


def _build_launcher(compiled: Any) -> None:
    """Compile the C function that launches it too, which Triton caches by the arguments' types.

    It is linked with the driver's library, so that it fails, and nothing is lost, where there is none.
    """
    from triton.backends.nvidia.driver import CudaLauncher

    types = tuple(compiled.src.signature.values())
    if types not in _launchers:
        _launchers.add(types)
        with contextlib.suppress(Exception):
            CudaLauncher(compiled.src, compiled.metadata)


_launchers: set[tuple[str, ...]] = set()


if __name__ == "__main__":
    main()
