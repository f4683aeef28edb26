"""Compiling before measuring: the kernels of all candidates, once each, and what comes of those that fail."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fastdiff.config import Precision
from fastdiff.kernels.triton import planning, pool
from fastdiff.targets import CompileOptions
from fastdiff.targets.cuda import compiler, implementations, plan
from fastdiff.targets.cuda.calls import Call
from fastdiff.targets.cuda.choices import Choices
from fastdiff.targets.cuda.compiler import Machine, compile_module, run
from fastdiff.targets.cuda.implementations import Implementation, Option, norms
from fastdiff.targets.cuda.plan import Plan
from fastdiff.targets.graph import Node
from tests.targets.cuda.models import CPU, arrays_of, executor_of, graph_of, lowered, model, sizes_of


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> list[Option]:
    """layer_norm alone has a Triton kernel, which takes CPU tensors; PyTorch's own runs are counted."""
    node = Node("layer_norm", (0,), 1)
    implementations.candidates(Call(node, (torch.ones(1, 2),), {}, (1, 2)), 90)  # fills the table
    ran: list[Option] = []

    def torch_run(call: Call, config: Any) -> Any:
        ran.append(Option("torch", config))
        return norms._layer_norm(call, config)

    monkeypatch.setitem(
        implementations.IMPLEMENTATIONS,
        "layer_norm",
        (
            Implementation("torch", torch_run),
            Implementation(
                "triton", norms._layer_norm_triton, configs=norms._layer_norm_configs, triton=True
            ),
            Implementation("other", torch_run, configs=lambda call, arch: ("never planned",)),
        ),
    )
    return ran


def planned(name: str) -> Plan:
    found = Plan(90)
    executor = executor_of(graph_of(name))
    found.add(executor, lambda executor: run(executor, model(name).spec, arrays_of(name)))
    return found


def test_all_candidates_of_distinct_calls_are_planned(on_cpu: list[Option]) -> None:
    found = planned("clip_pooled")
    nodes = sum(node.op == "layer_norm" for node in graph_of("clip_pooled").nodes)
    assert len(on_cpu) == nodes  # in the run itself, and not for the plan
    assert {job.name for job in found.jobs.values()} == {"_layer_norm_kernel"}
    calls = {call for call, _ in found.uses}
    tilings = {option for _, option in found.uses}
    assert 0 < len(calls) < nodes
    assert len(tilings) >= 3
    assert calls < found.calls
    assert {job for jobs in found.uses.values() for job in jobs} == set(found.jobs)
    assert not planning.active()


def test_a_graph_alone_has_no_candidates(on_cpu: list[Option]) -> None:
    found = Plan(90)
    executor = executor_of(graph_of("clip_pooled"))
    found.add(
        executor, lambda x: run(x, model("clip_pooled").spec, arrays_of("clip_pooled")), all_candidates=False
    )
    assert not found.jobs
    assert not found.calls


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.FP16])
def test_what_the_compiler_refused_is_not_measured(
    on_cpu: list[Option], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, precision: Precision
) -> None:
    asked: list[dict[str, Any]] = []

    def refuse_all(jobs: Any, progress: Any) -> dict[str, str]:
        todo = list(jobs)
        asked.append({job.key: job for job in todo})
        progress(1, 2)
        return {job.key: "CompilationError: no" for job in todo}

    monkeypatch.setattr(plan, "compile_all", refuse_all)
    monkeypatch.setattr(compiler, "lower_module", lambda captured: lowered("clip_pooled"))
    measured: list[str] = []

    def timer(function: Any) -> float:
        function()
        measured.append(function.args[1].implementation)
        return 1.0

    fractions: list[float] = []
    module = model("clip_pooled")
    options = CompileOptions(precision, sizes=sizes_of(module, 0), progress=fractions.append)
    kept: list[Choices] = []

    def choices() -> Choices:
        kept.append(Choices())
        return kept[-1]

    monkeypatch.setattr(compiler, "Choices", choices)
    compile_module(module, tmp_path, options, Machine(CPU, 90, timer))
    assert asked.pop()
    assert asked == ([{}] if precision is Precision.FP16 else [])  # PyTorch alone measures the ranges
    assert "triton" not in measured
    refused = [
        (option.implementation, reason)
        for found in kept
        for entries in found.measured.values()
        for entry in entries
        for option, reason in entry.refused
        if option.implementation == "triton"
    ]
    assert refused
    assert set(refused) == {("triton", "CompilationError: no")}
    assert fractions[:2] == [0.25, 0.5]
    assert fractions == sorted(fractions)
    assert 0.9 < fractions[-1] <= 1.0


@pytest.mark.gpu
def test_gpu_a_build_leaves_nothing_to_its_launches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """From an empty cache: every kernel that the build launches has been compiled by the pool."""
    import triton

    if pool._cores() < 2:
        pytest.skip("one core: kernels are compiled by their launches")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    name = "scenes_vae_decoder"
    monkeypatch.setattr(compiler, "lower_module", lambda captured: lowered(name))
    missed: list[str] = []

    def listen(metadata: Any, cache_hit: bool, **rest: Any) -> None:
        if not cache_hit:
            missed.append(metadata["name"])

    module, fractions = model(name), list[float]()
    options = CompileOptions(Precision.FP16, sizes=sizes_of(module, 0), progress=fractions.append)
    with triton.knobs.compilation.scope():
        triton.knobs.compilation.listener = listen
        compile_module(module, tmp_path, options)
    assert list((tmp_path / "cache").rglob("*.cubin"))
    assert missed == []
    assert fractions == sorted(fractions)
