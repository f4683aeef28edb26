"""What runs a call: measured, recorded, looked up."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fastdiff.errors import CaptureError
from fastdiff.targets.cuda import implementations, tune
from fastdiff.targets.cuda.calls import Call
from fastdiff.targets.cuda.choices import Choices, Measured
from fastdiff.targets.cuda.compiler import run
from fastdiff.targets.cuda.implementations import Implementation, Option
from fastdiff.targets.cuda.tune import Tuner
from fastdiff.targets.graph import Node
from tests.targets.cuda.models import arrays_of, executor_of, graph_of, model

FAST, SLOW = Option("torch", "fast"), Option("torch", "slow")


def call(rows: int, channels: int = 8, op: str = "silu") -> Call:
    return Call(Node(op, (0,), 1), (torch.ones(2, rows, channels),), {}, (2, rows, channels))


def test_the_nearest_measured_size_decides() -> None:
    choices = Choices()
    choices.add(call(64), Measured((2, 64), ((SLOW, 1.0), (FAST, 2.0))))
    choices.add(call(4096), Measured((2, 4096), ((FAST, 1.0), (SLOW, 2.0))))
    assert [choices(call(n)) for n in (1, 64, 500, 520, 4096, 10**6)] == [SLOW, SLOW, SLOW, FAST, FAST, FAST]


def test_a_kind_that_was_not_measured_runs_by_pytorch() -> None:
    choices = Choices()
    choices.add(call(64), Measured((2, 64), ((FAST, 1.0),)))
    assert choices(call(64, channels=16)) == Option("torch")
    assert choices(call(64, op="relu")) == Option("torch")


def test_kinds_are_what_sizes_do_not_change() -> None:
    assert call(1).kind == call(77).kind != call(1, 9).kind
    assert call(1).key != call(77).key
    merged = torch.ones(2, 5, 24)
    parts = [Call(Node("silu", (0,), 1), (x,), {}, (2, 5, 8)) for x in merged.split(8, 2)]
    assert parts[0].key == parts[1].key != call(5).key  # strides differ, not which part it is
    assert parts[0].kind == call(5).kind


def test_an_option_that_does_not_take_the_call_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    picky = Implementation("picky", lambda call, config: call.x, applies=lambda call: call.x.is_contiguous())
    implementations.candidates(call(1), 90)  # fills the table
    monkeypatch.setitem(
        implementations.IMPLEMENTATIONS, "silu", (*implementations.IMPLEMENTATIONS["silu"], picky)
    )
    choices = Choices()
    choices.add(call(5), Measured((2, 5), ((Option("picky"), 1.0), (FAST, 2.0))))
    strided = Call(Node("silu", (0,), 1), (torch.ones(2, 5, 24)[..., :8],), {}, (2, 5, 8))
    assert choices(call(5)) == Option("picky")
    assert choices(strided) == FAST


def norm(pixels: int) -> Call:
    return Call(
        Node("group_norm_silu", (0,), 1, {"groups": 4, "eps": 1e-5, "silu": 1}),
        (torch.ones(2, pixels, 32),),
        {},
        (2, pixels, 32),
    )


def test_a_tiling_that_holds_a_picture_runs_no_larger_one(monkeypatch: pytest.MonkeyPatch) -> None:
    held = {"blocks": {"P_BLOCK": 64, "C_BLOCK": 16}, "num_warps": 4, "num_stages": 1}
    split = {
        "blocks": {"P_BLOCK": 32, "C_BLOCK": 16, "APPLY_P": 8, "APPLY_C": 32},
        "num_warps": 4,
        "num_stages": 1,
    }
    one_pass, two_passes = Option("triton", held), Option("triton", split)
    implementations.candidates(call(1), 90)
    everywhere = [
        dataclasses.replace(found, applies=lambda call: True)
        for found in implementations.IMPLEMENTATIONS["group_norm_silu"]
    ]
    monkeypatch.setitem(implementations.IMPLEMENTATIONS, "group_norm_silu", tuple(everywhere))
    choices = Choices()
    options = ((one_pass, 1.0), (two_passes, 2.0), (Option("torch"), 3.0))
    choices.add(norm(64), Measured((2, 64), options))
    assert choices(norm(64)) == choices(norm(49)) == choices(norm(17)) == one_pass
    assert choices(norm(65)) == choices(norm(4096)) == two_passes
    assert choices(norm(16)) == two_passes  # three quarters of the tile would be idle
    assert choices.elsewhere(norm(64)) == two_passes


def test_json_and_back() -> None:
    choices = Choices()
    config = {"blocks": {"BLOCK_M": 64}, "num_warps": 4, "num_stages": 2}
    refused = ((Option("cuda"), "OutOfResources"),)
    choices.add(call(64), Measured((2, 64), ((Option("triton", config), 1e-5), (SLOW, 2e-5)), refused))
    again = Choices.from_json(json.loads(json.dumps(choices.to_json())))
    assert again == choices
    assert again.measured[call(64).kind][0].options[0] == (Option("triton", config), 1e-5)


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Replaces the implementations of one op."""

    def replace(op: str, *found: Implementation) -> None:
        implementations.candidates(call(1), 90)
        own = implementations.IMPLEMENTATIONS[op][0]
        monkeypatch.setitem(implementations.IMPLEMENTATIONS, op, (own, *found))

    return replace


def tuned(seconds: dict[str, float]) -> tuple[Tuner, list[str]]:
    """A tuner of the U-Net on the CPU, with made-up times by implementation."""
    choices, told = Choices(), list[str]()
    executor = executor_of(graph_of("sd15"), choose=choices)

    def timer(function: Any) -> float:
        function()
        option = function.args[1]
        return seconds.get(option.implementation, 1.0)

    tuner = Tuner(executor, choices, 90, timer, told.append)
    with executor.watched(tuner):
        run(executor, model("sd15").spec, arrays_of("sd15"))
    return tuner, told


def _norm(call: Call, config: Any) -> Tensor:
    return implementations.implementation("layer_norm", "torch").run(call, config)


def test_every_distinct_call_is_measured_once_and_the_fastest_runs(table: Callable[..., None]) -> None:
    table("layer_norm", Implementation("other", _norm))
    tuner, told = tuned({"other": 0.5})
    executor = tuner._executor
    ran: dict[str, set[str]] = {}

    def watch(index: int, call: Call, result: Tensor) -> None:
        ran.setdefault(call.node.op, set()).add(tuner.choices(call).implementation)

    with executor.watched(watch):
        run(executor, model("sd15").spec, arrays_of("sd15"))
    assert ran["layer_norm"] == {"other"}
    assert ran["conv2d"] == {"torch"}  # phases are no faster by this clock
    assert len(told) < len(executor.graph.nodes) / 2
    conv = [
        entry for kind, entries in tuner.choices.measured.items() if "upsample=2" in kind for entry in entries
    ]
    assert conv
    assert all({o.implementation for o, _ in e.options} == {"torch", "phases"} for e in conv)


def test_an_option_that_is_wrong_or_fails_is_refused_with_the_reason(table: Callable[..., None]) -> None:
    def fail(call: Call, config: Any) -> Tensor:
        raise RuntimeError("no kernel\nfor this")

    table(
        "layer_norm",
        Implementation("wrong", lambda call, config: _norm(call, config) * 1.001),
        Implementation("nan", lambda call, config: _norm(call, config) * float("nan")),
        Implementation("fails", fail),
        Implementation("narrow", lambda call, config: _norm(call, config)[..., :-1]),
    )
    tuner, _ = tuned({"wrong": 0.1, "nan": 0.1, "fails": 0.1, "narrow": 0.1})
    entries = [e for kind, es in tuner.choices.measured.items() if kind.startswith("layer_norm") for e in es]
    assert entries
    for entry in entries:
        assert [option.implementation for option, _ in entry.options] == ["torch"]
        reasons = {option.implementation: reason for option, reason in entry.refused}
        assert reasons["wrong"].startswith("differs from PyTorch by 1.0e-03")
        assert reasons["nan"] == reasons["narrow"] == "differs from PyTorch by inf"
        assert reasons["fails"] == "RuntimeError: no kernel for this"


def test_a_call_that_nothing_runs_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(call: Call, config: Any) -> Tensor:
        raise RuntimeError("broken driver")

    tuner, _ = tuned({})
    only = (Implementation("torch", fail),)
    monkeypatch.setitem(implementations.IMPLEMENTATIONS, "silu", only)
    with pytest.raises(CaptureError, match="cannot be run on this GPU: RuntimeError: broken driver"):
        tuner.measure(call(3))


@pytest.mark.gpu
def test_times_are_those_of_the_kernels() -> None:
    """A product of 4096² takes what a GPU needs at least, and two of them about twice as long."""
    a = torch.randn(4096, 4096, device="cuda", dtype=torch.float16)
    once = tune.graph_seconds(lambda: a @ a)
    twice = tune.graph_seconds(lambda: (a @ a, a @ a))
    assert once > 2 * 4096**3 / 3e15
    assert 1.7 < twice / once < 2.3
