"""The child process of one contestant or one preparation: requests on standard input, replies on a pipe.

``python -m fastdiff.bench.worker FD``: each line is a request ``{"op": …}``, each reply ``{"ok": …}`` or
``{"error": …, "kind": …}``. What libraries print goes to standard output and error, which are files.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import resource
import sys
import time
from pathlib import Path
from typing import Any

from fastdiff.bench.case import Job
from fastdiff.errors import FastdiffError
from fastdiff.workers.lifetime import die_with_parent

__all__ = ["Worker", "main"]

_TASKS = {
    "build": "fastdiff.bench.prepare",
    "export": "fastdiff.bench.prepare",
    "reference": "fastdiff.bench.prepare",
    "write_weights": "fastdiff.bench.prepare",
    "measure_ceilings": "fastdiff.bench.ceilings",
}
"""Functions that ``task`` calls, and where they are."""


class Worker:
    """Answers requests. A contestant is opened once and then called in turns."""

    def __init__(self) -> None:
        self._job: Job | None = None
        self._contestant: Any = None
        self._inputs: Any = {}
        self._outputs: Any = {}

    def answer(self, request: dict[str, Any]) -> Any:
        """Run the request's ``op``; what JSON can hold."""
        arguments = {key: value for key, value in request.items() if key != "op"}
        return getattr(self, f"_op_{request['op']}")(**arguments)

    def _op_task(self, name: str, arguments: dict[str, Any]) -> Any:
        if "job" in arguments:
            arguments["job"] = Job.from_json(arguments["job"])
        result = getattr(importlib.import_module(_TASKS[name]), name)(**arguments)
        return vars(result) if hasattr(result, "__dataclass_fields__") else result

    def _op_open(self, job: dict[str, Any]) -> dict[str, float]:
        """Import, load, run once; seconds of each."""
        import numpy as np

        from fastdiff.bench.contestants import open_contestant

        self._job = Job.from_json(job)
        with np.load(self._job.inputs) as stored:
            arrays = {name: stored[name] for name in stored.files}
        start = time.perf_counter()
        self._contestant = open_contestant(self._job)
        imported = time.perf_counter()
        self._contestant.load()
        self._inputs = self._contestant.place(arrays)
        loaded = time.perf_counter()
        self._run()
        first = time.perf_counter()
        return {"import_s": imported - start, "load_s": loaded - imported, "first_s": first - loaded}

    def _op_check(self) -> dict[str, Any]:
        """Agreement of the latest outputs with the expected ones."""
        import numpy as np

        from fastdiff.bench.agreement import compare

        assert self._job is not None
        with np.load(self._job.expected) as stored:
            expected = {name: stored[name] for name in stored.files}
        return vars(compare(self._contestant.fetch(self._outputs), expected, self._job.limit))

    def _op_turn(self, calls: int) -> list[float]:
        """Seconds of each of ``calls`` calls in a row, or of one of the steps that a call makes. Several have
        an untimed one before them, as caches and threads are cold after the others' turns.
        """
        assert self._job is not None
        timed = self._contestant.load if self._job.case.kind == "open" else self._run
        if calls > 1:
            timed()
        seconds = []
        for _ in range(calls):
            start = time.perf_counter()
            timed()
            seconds.append((time.perf_counter() - start) / self._contestant.steps)
        return seconds

    def _run(self) -> None:
        self._outputs = self._contestant.run(self._inputs)
        self._contestant.wait()

    def _op_rerun(self) -> None:
        """One untimed call, so that ``check`` sees outputs of what is open now."""
        self._run()

    def _op_memory(self) -> int:
        """Peak resident bytes of this process and, for processes that it starts, of the largest of those; on
        a GPU the most that PyTorch held there.
        """
        assert self._job is not None
        if self._job.case.device == "cuda" and self._job.case.kind != "cold" and "torch" in sys.modules:
            return int(sys.modules["torch"].cuda.max_memory_reserved())
        if self._job.case.kind == "cold":
            return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
        return peak_rss()


def peak_rss() -> int:
    """Peak resident bytes of this process; mapped files count as far as they were read.

    Not from getrusage, whose figure begins with that of the process before ``exec``.
    """
    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    found = re.search(r"^VmHWM:\s*(\d+) kB", status, re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def main() -> None:
    """Answer until standard input ends."""
    die_with_parent()
    worker = Worker()
    with os.fdopen(int(sys.argv[1]), "w", encoding="utf-8") as replies:
        for line in sys.stdin:
            try:
                reply = {"ok": worker.answer(json.loads(line))}
            except Exception as error:  # noqa: BLE001 (told to the measuring process, which decides)
                kind = type(error).__name__ if isinstance(error, FastdiffError) else ""
                text = str(error) if kind else f"{type(error).__name__}: {error}"
                reply = {"error": " ".join(text.split())[:500], "kind": kind}
            replies.write(json.dumps(reply) + "\n")
            replies.flush()


if __name__ == "__main__":
    main()
