"""Measuring what could run each call, while the graph runs on random inputs.

Every distinct call is measured once: all its candidates on the very tensors that it meets, so with the
strides and the rough values of real ones. A candidate that fails, or that differs from PyTorch's result by
more than rounding, is left out and the reason is recorded.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastdiff.errors import CaptureError
from fastdiff.targets.cuda.calls import Call
from fastdiff.targets.cuda.captures import ended
from fastdiff.targets.cuda.choices import Choices, Measured
from fastdiff.targets.cuda.executor import Executor
from fastdiff.targets.cuda.implementations import Option, candidates

__all__ = ["VIEWS", "Timer", "Tuner", "graph_seconds"]

Timer = Callable[[Callable[[], Any]], float]
"""Seconds of one call of a function."""

_ALLOWED = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
"""Relative L2 distance from PyTorch's result in the same dtype: several of the dtype's roundings, as both
round what they keep between steps."""
_SPARE = 8 << 30
"""Bytes that graphs which are gone may leave with the allocator, where no other graph takes them."""
VIEWS = ("reshape", "expand", "slice", "permute", "constant")
"""Ops that take no time."""


class Tuner:
    """A watch (executor.py) that measures every call it has not seen.

    ``report`` is told of each call before it is measured, ``failed`` says of an option why it need not be
    tried.
    """

    def __init__(
        self,
        executor: Executor,
        choices: Choices,
        arch: int,
        timer: Timer,
        report: Callable[[str], None],
        failed: Callable[[Call, Option], str | None] = lambda call, option: None,
    ) -> None:
        self._executor = executor
        self.choices = choices
        self._arch = arch
        self._timer = timer
        self._report = report
        self._failed = failed
        self._seen: set[str] = set()

    def __call__(self, index: int, call: Call, result: Tensor) -> None:
        """Measure the call unless one like it has been."""
        if call.node.op in VIEWS or call.key in self._seen:
            return
        self._seen.add(call.key)
        self._report(f"{call.node.op} {list(call.shape)}")
        self.choices.add(call, self.measure(call))

    def seconds(self, call: Call) -> float:
        """Of the fastest option of a call, 0 for one that takes no time."""
        return 0.0 if call.node.op in VIEWS else self.choices.best(call)

    def measure(self, call: Call) -> Measured:
        """All candidates of a call, the fastest first. Raises CaptureError when none works."""
        timed: list[tuple[Option, float]] = []
        refused: list[tuple[Option, str]] = []
        wanted: Tensor | None = None
        for option in candidates(call, self._arch):
            if (reason := self._failed(call, option)) is not None:
                refused.append((option, reason))
                continue
            try:
                with warnings.catch_warnings():  # of backends that say why they do not take a call
                    warnings.simplefilter("ignore")
                    found = _one(self._executor.perform(call, option))
                if wanted is None:
                    wanted = found.float()
                error = _distance(found, wanted)
                if error > _ALLOWED[found.dtype]:
                    refused.append((option, f"differs from PyTorch by {error:.1e}"))
                    continue
                del found
                timed.append((option, self._timer(partial(self._executor.perform, call, option))))
            except torch.OutOfMemoryError:
                refused.append((option, "out of memory"))
            except Exception as error:  # noqa: BLE001 (a library that refuses a shape raises what it likes)
                refused.append((option, f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"))
        if not timed:
            reasons = "; ".join(reason for _, reason in refused)
            raise CaptureError(f"{call.node.op} in {call.node.path} cannot be run on this GPU: {reasons}")
        return Measured(call.extent, tuple(sorted(timed, key=lambda pair: pair[1])), tuple(refused))


def _one(result: Any) -> Tensor:
    """A sum and its norm as one tensor, a single result as it is."""
    return torch.cat([part.flatten() for part in result]) if isinstance(result, tuple) else result


def _distance(found: Tensor, wanted: Tensor) -> float:
    """Relative L2; infinite for another shape and where NaN is in one of them only."""
    if found.shape != wanted.shape:
        return float("inf")
    if not found.is_floating_point():
        return 0.0 if torch.equal(found, wanted.to(found.dtype)) else float("inf")
    difference = (found.float() - wanted).norm() / wanted.norm().clamp_min(1e-30)
    return float(difference) if bool(torch.isfinite(difference)) else float("inf")


def graph_seconds(function: Callable[[], Any], seconds: float = 0.004, rounds: int = 3) -> float:
    """Seconds of one call on the current GPU: the best of several replays of a CUDA graph of many calls.

    A graph leaves out what the host does, as the engine's own replays do. About ``seconds`` are spent on each
    round.
    """
    stream: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    with torch.cuda.stream(stream):
        function()
        start.record(stream)
        function()
        end.record(stream)
        end.synchronize()
        once = max(start.elapsed_time(end) * 1e-3, 1e-6)
        calls = max(1, min(50, int(seconds / once)))
        # not torch.cuda.graph, which collects garbage and empties the cache around every capture
        graph = torch.cuda.CUDAGraph()
        pool = torch.cuda.graph_pool_handle()
        torch.cuda.synchronize()
        with ended(torch.cuda.current_device(), pool):
            graph.capture_begin(pool, capture_error_mode="thread_local")
            try:
                for _ in range(calls):
                    function()
            finally:
                graph.capture_end()
        best = float("inf")
        for _ in range(rounds + 1):  # the first replay uploads the graph
            start.record(stream)
            graph.replay()
            end.record(stream)
            end.synchronize()
            best = min(best, start.elapsed_time(end) * 1e-3)
    torch.cuda.current_stream().wait_stream(stream)
    graph.reset()
    if torch.cuda.memory_reserved() - torch.cuda.memory_allocated() > _SPARE:
        torch.cuda.empty_cache()
    return best / calls
