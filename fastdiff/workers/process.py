"""A worker seen from the process that started it, and all workers together as a crew with one queue."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import IO, Any, BinaryIO, cast

from fastdiff import errors
from fastdiff.errors import FastdiffError, TargetError
from fastdiff.workers.wire import Message, receive, send

__all__ = ["Crew", "Job", "Place"]

_JOIN_SECONDS = 10


@dataclass(frozen=True)
class Place:
    """Where a worker runs: what messages call it, and what its process is told to open."""

    name: str
    opening: dict[str, Any]


@dataclass(frozen=True)
class Job:
    """A request and the number of its reply."""

    index: int
    message: Message


class Crew:
    """Processes that take jobs from one queue, each the next one when it is free.

    ``jobs`` go in, ``results`` come out as (index, reply); the first of each worker is (-1, what opening
    gave). ``next_result`` raises what a worker met; the crew is of no more use then and must be stopped.
    """

    def __init__(self, places: Sequence[Place]) -> None:
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._results: SimpleQueue[tuple[int, Message] | BaseException] = SimpleQueue()
        self._workers = [_Worker(place, self._jobs, self._results) for place in places]

    def put(self, job: Job) -> None:
        """Queue a job."""
        self._jobs.put(job)

    def next_result(self) -> tuple[int, Message]:
        """Wait for a result. Raises FastdiffError with the device's name in front."""
        result = self._results.get()
        if isinstance(result, BaseException):
            raise result
        return result

    def stop(self) -> None:
        """End all processes, whatever they do, and wait until they are gone."""
        for worker in self._workers:
            worker.kill()
        with contextlib.suppress(Empty):
            while True:
                self._jobs.get_nowait()
        for _ in self._workers:
            self._jobs.put(None)
        for worker in self._workers:
            worker.join()


class _Worker:
    """One process and the thread that starts it, hands it jobs and reaps it.

    The thread lives as long as the process: the system kills a worker when the thread that started it ends,
    which the caller's own may do sooner.
    """

    def __init__(
        self,
        place: Place,
        jobs: SimpleQueue[Job | None],
        results: SimpleQueue[tuple[int, Message] | BaseException],
    ) -> None:
        self._place = place
        self._jobs = jobs
        self._results = results
        self._process: subprocess.Popen[bytes] | None = None
        self._stopped = False
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._work, name=f"fastdiff {place.name}", daemon=True)
        self._thread.start()

    def kill(self) -> None:
        """End the process and all that it started."""
        with self._lock:
            self._stopped = True
            if self._process is not None and self._process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._process.pid, signal.SIGKILL)

    def join(self) -> None:
        """Wait until process and thread are gone."""
        self._thread.join(_JOIN_SECONDS)

    def _work(self) -> None:
        try:
            with tempfile.TemporaryFile() as log, contextlib.ExitStack() as stack:
                replies = self._start(log, stack)
                self._results.put((-1, self._ask((self._place.opening, {}), replies, log)))
                while (job := self._jobs.get()) is not None:
                    self._results.put((job.index, self._ask(job.message, replies, log)))
        except BaseException as error:  # noqa: BLE001 (raised again in the caller's thread)
            self._results.put(error)

    def _start(self, log: IO[bytes], stack: contextlib.ExitStack) -> BinaryIO:
        """Start the process; ``stack`` ends it. Its replies."""
        # the package that runs here, also where another one is installed
        root = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
        threads = self._place.opening["threads"]
        environment = {**os.environ, "PYTHONPATH": path}
        if threads is not None:
            environment["OMP_NUM_THREADS"] = str(threads)
        read, write = os.pipe()
        replies = stack.enter_context(os.fdopen(read, "rb"))
        try:
            with self._lock:
                if self._stopped:
                    raise TargetError(f"{self._place.name}: stopped before it began")
                self._process = subprocess.Popen(
                    # -P: nothing in the current folder stands for a module
                    [sys.executable, "-P", "-m", "fastdiff.workers", str(write)],
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=log,
                    pass_fds=(write,),
                    env=environment,
                    start_new_session=True,  # Ctrl-C is the parent's business
                )
        finally:
            os.close(write)
        stack.callback(self._reap)
        return replies

    def _reap(self) -> None:
        self.kill()
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.wait()
        with contextlib.suppress(OSError):
            self._process.stdin.close()

    def _ask(self, message: Message, replies: BinaryIO, log: IO[bytes]) -> Message:
        assert self._process is not None
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # it died: the reading below says how
            send(cast(BinaryIO, self._process.stdin), *message)
        reply = receive(replies)
        if reply is None:
            raise TargetError(f"{self._place.name}: {self._epitaph(log)}")
        body = reply[0]
        if "error" not in body:
            return reply
        if body["kind"] == "MemoryError":
            raise TargetError(
                f"{self._place.name}: out of memory: ask for smaller pictures, or for fewer at once"
            )
        kind = getattr(errors, body["kind"], None) if body["kind"] else None
        text = body["error"]
        name = self._place.name
        named = text if text.startswith((f"{name} ", f"{name}:")) else f"{name}: {text}"
        if kind is not None and issubclass(kind, FastdiffError):
            raise kind(named)
        raise TargetError(named)

    def _epitaph(self, log: IO[bytes]) -> str:
        """How the process ended, with the last line that it printed."""
        assert self._process is not None
        status = self._process.wait()
        if status == -signal.SIGKILL:
            return (
                "the process was killed, as the system does when memory runs out: ask for smaller pictures, "
                "or use fewer devices"
            )
        log.seek(0)
        lines = log.read().decode("utf-8", "replace").strip().splitlines()
        last = f": {lines[-1][:200]}" if lines else ""
        how = signal.Signals(-status).name if status < 0 else f"status {status}"
        return f"the process ended with {how}{last}"
