"""The measuring side of a worker: start it, ask it, stop it while others run, end it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from fastdiff import errors
from fastdiff.errors import FastdiffError, TargetError

__all__ = ["WorkerProcess", "run_task"]


class WorkerProcess:
    """A child process with its own thread pools, in a process group of its own.

    ``ask`` waits for the answer. Raises the FastdiffError that the child met, TargetError for any other
    failure or when the child died.
    """

    def __init__(self, name: str, threads: int, folder: Path) -> None:
        self.name = name
        self._log = folder / "worker.log"
        # the package that runs here, also where another one is installed
        root = str(Path(__file__).resolve().parents[2])
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH")))),
            "OMP_NUM_THREADS": str(threads),
            "MKL_NUM_THREADS": str(threads),
            "HF_HUB_OFFLINE": "1",
            "TRANSFORMERS_OFFLINE": "1",
            # compiled once per run, never found from an earlier one: cold starts are cold
            "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),
        }
        read, write = os.pipe()
        self.started = time.perf_counter()
        try:
            with self._log.open("wb") as log:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "fastdiff.bench.worker", str(write)],
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=log,
                    pass_fds=(write,),
                    env=environment,
                    start_new_session=True,
                )
        except BaseException:
            os.close(read)
            raise
        finally:
            os.close(write)
        self._replies = os.fdopen(read, encoding="utf-8")

    def ask(self, op: str, **arguments: Any) -> Any:
        """The answer to one request."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it died: the reading below says how
            self._process.stdin.write((json.dumps({"op": op, **arguments}) + "\n").encode())
            self._process.stdin.flush()
        line = self._replies.readline()
        if not line:
            raise TargetError(f"{self.name}: {self._epitaph()}")
        reply = json.loads(line)
        if "error" not in reply:
            return reply["ok"]
        kind = getattr(errors, reply["kind"], None) if reply["kind"] else None
        if kind is not None and issubclass(kind, FastdiffError):
            raise kind(reply["error"])
        raise TargetError(f"{self.name} failed: {reply['error']}")

    def pause(self) -> None:
        """Stop all its threads where they are: no pool spins while others are measured."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        self._signal(signal.SIGCONT)

    def close(self) -> None:
        """End the process and all that it started."""
        self._signal(signal.SIGKILL)
        self._process.wait()
        self._replies.close()
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()

    def __enter__(self) -> WorkerProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _signal(self, number: int) -> None:
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)

    def _epitaph(self) -> str:
        status = self._process.wait()
        if status == -signal.SIGKILL:
            return "the process was killed, as the system does when memory runs out: use a smaller size"
        lines = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        last = f": {lines[-1][:200]}" if lines else ""
        how = signal.Signals(-status).name if status < 0 else f"status {status}"
        return f"the process ended with {how}{last}"


def run_task(name: str, threads: int, folder: Path, arguments: dict[str, Any]) -> Any:
    """Call one of the worker's tasks in a process of its own; its result. Raises as ``ask``."""
    with WorkerProcess(name, threads, folder) as worker:
        return worker.ask("task", name=name, arguments=arguments)
