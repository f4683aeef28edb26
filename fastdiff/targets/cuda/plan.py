"""Compiling all Triton kernels that the measurements will try, on all cores, before the first is measured.

A graph runs once with its launches planned instead of done (kernels/triton/planning.py): what PyTorch's
libraries compute is computed, what a Triton kernel would have written is garbage, and every distinct call is
asked which kernels its candidates would launch. No value decides what is launched, so that garbage does as
well.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from fastdiff.kernels.triton.planning import Job, planning
from fastdiff.kernels.triton.pool import compile_all
from fastdiff.targets.cuda.calls import Call
from fastdiff.targets.cuda.executor import Executor
from fastdiff.targets.cuda.implementations import Option, candidates, implementation
from fastdiff.targets.cuda.tune import VIEWS

__all__ = ["Plan"]


@dataclass
class Plan:
    """Kernels to compile for a GPU of compute capability ``arch``, and for which candidates.

    calls     the keys of the distinct calls that can be measured
    jobs      what is to be compiled, by its key
    uses      the jobs of each candidate that is a Triton kernel
    failures  why a job could not be done
    """

    arch: int
    calls: set[str] = field(default_factory=set)
    jobs: dict[str, Job] = field(default_factory=dict)
    uses: dict[tuple[str, str], tuple[str, ...]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    def add(self, executor: Executor, run: Callable[[Executor], Any], *, all_candidates: bool = True) -> None:
        """Plan what ``run`` launches and, with ``all_candidates``, what else could run each of its calls.

        PyTorch's own candidates are those that run, once.
        """

        def watch(index: int, call: Call, result: Tensor) -> None:
            if call.node.op in VIEWS or call.key in self.calls:
                return
            self.calls.add(call.key)
            for option in candidates(call, self.arch):
                if implementation(call.node.op, option.implementation).triton:
                    self._add_candidate(executor, call, option)

        with planning() as planned:
            if all_candidates:
                with executor.watched(watch):
                    run(executor)
            else:
                run(executor)
        self.jobs.update(planned)

    def _add_candidate(self, executor: Executor, call: Call, option: Option) -> None:
        with planning() as planned:
            try:
                executor.perform(call, option)
            except Exception:  # noqa: BLE001 (what it refuses now it refuses again when it is measured)
                return
        self.jobs.update(planned)
        self.uses[_key(call, option)] = tuple(planned)

    def compile(self, progress: Callable[[float], None] = lambda fraction: None) -> None:
        """Compile what is planned; ``progress`` is called with the share that is done."""
        self.failures |= compile_all(self.jobs.values(), progress=lambda done, total: progress(done / total))

    def failed(self, call: Call, option: Option) -> str | None:
        """Why a candidate could not be compiled, None where it could or was not tried."""
        reasons = (self.failures.get(job) for job in self.uses.get(_key(call, option), ()))
        return next((reason for reason in reasons if reason is not None), None)


def _key(call: Call, option: Option) -> tuple[str, str]:
    return call.key, json.dumps([option.implementation, option.config], sort_keys=True)
