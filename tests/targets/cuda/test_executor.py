"""The fused graph, run node by node, against the library's module."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from fastdiff.config import Precision
from fastdiff.errors import NumericError
from fastdiff.targets.cuda.calls import Call
from fastdiff.targets.cuda.compiler import run
from fastdiff.targets.cuda.finite import check_finite
from fastdiff.targets.cuda.implementations import Option
from fastdiff.targets.cuda.types import value_dtypes
from tests.compare import assert_close, relative_l2
from tests.targets.cuda.models import MODELS, arrays_of, executor_of, expected, graph_of, model, outputs


@pytest.mark.parametrize("name", MODELS)
def test_the_graph_is_the_module(name: str) -> None:
    executor = executor_of(graph_of(name))
    for step in (1, 2):  # two sizes, one graph
        arrays = arrays_of(name, step)
        found = outputs(executor, name, arrays)
        for output, wanted in expected(name, arrays).items():
            assert_close(found[output], wanted, rel_l2=1e-5, label=output)


@pytest.mark.parametrize("name", ["sd15", "sdxl", "vae_decoder", "clip"])
@pytest.mark.parametrize("precision", [Precision.FP16, Precision.BF16])
def test_in_halves_it_is_as_close_as_pytorch(name: str, precision: Precision) -> None:
    dtype = {Precision.FP16: torch.float16, Precision.BF16: torch.bfloat16}[precision]
    arrays = arrays_of(name)
    wanted = expected(name, arrays)
    found = outputs(executor_of(graph_of(name), precision), name, arrays)
    module = model(name)
    rounded = [torch.from_numpy(arrays[spec.name]) for spec in module.spec.inputs]
    rounded = [x.to(dtype) if x.is_floating_point() and x.dim() > 1 else x for x in rounded]
    halves = copy.deepcopy(module.eager).to(dtype)  # the graph's weights are those of the module itself
    with torch.inference_mode():
        results = halves(*rounded)
    (first, *_) = results if isinstance(results, tuple) else (results,)
    (output, *_) = wanted
    yardstick = relative_l2(first.float(), wanted[output])
    assert relative_l2(found[output], wanted[output]) <= 2 * yardstick


def test_timesteps_keep_their_digits() -> None:
    graph = graph_of("sdxl")
    dtypes = value_dtypes(graph, Precision.FP16)
    kept = {graph.values[i].name for i in graph.inputs if dtypes[i] == torch.float32}
    assert kept == {"timestep", "time_ids"}
    embeddings = [node.output for node in graph.nodes if node.op == "timestep_embedding"]
    assert all(dtypes[value] == torch.float32 for value in embeddings)
    assert sum(dtype == torch.float32 for dtype in dtypes) < 12


def test_values_are_dropped_when_they_have_been_used() -> None:
    executor = executor_of(graph_of("vae_decoder"))
    left = run(executor, model("vae_decoder").spec, arrays_of("vae_decoder"))
    assert set(left) == set(executor.graph.inputs) | set(executor.graph.outputs)


def test_stages_one_by_one_give_the_same() -> None:
    executor = executor_of(graph_of("sd15"))
    arrays = arrays_of("sd15")
    graph = executor.graph
    values = {v: torch.from_numpy(arrays[graph.values[v].name]) for v in graph.inputs}
    sizes = executor.sizes_of(values)
    for stage in ("prompt", "schedule", "step"):
        executor.run(values, sizes, (stage,))
    (output,) = graph.outputs
    assert_close(values[output], outputs(executor, "sd15", arrays)["sample"], max_abs=0.0)


def test_a_layer_that_overflows_is_named() -> None:
    executor = executor_of(graph_of("vae_decoder"), Precision.FP16)
    node = next(n for n in executor.graph.nodes if n.path.endswith("resnets.1.conv1"))
    executor.weights[node.weights["layer"]].fill_(6e4)
    with executor.watched(check_finite("vae_decoder")), pytest.raises(NumericError) as raised:
        run(executor, model("vae_decoder").spec, arrays_of("vae_decoder"))
    assert str(raised.value).startswith(f"vae_decoder: conv2d in {node.path} ")
    assert "--precision bf16" in str(raised.value)


def test_a_wrong_shape_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    executor = executor_of(graph_of("clip"))
    perform = executor.perform

    def shorten(call: Call, option: Option) -> torch.Tensor:
        result = perform(call, option)
        return result[:, :-1] if call.node.op == "layer_norm" else result

    monkeypatch.setattr(executor, "perform", shorten)
    with pytest.raises(NumericError, match=r"layer_norm in .* gave shape"):
        run(executor, model("clip").spec, arrays_of("clip"))


def test_an_island_computes_in_float32() -> None:
    """What is stored in float32 is computed in it, its weights included, and its readers round it."""
    graph = graph_of("vae_decoder")
    executor = executor_of(graph, Precision.FP16)
    index = next(i for i, n in enumerate(graph.nodes) if n.path.endswith("conv_in"))
    executor.dtypes[graph.nodes[index].output] = torch.float32
    seen: dict[int, torch.dtype] = {}

    def watch(at: int, call: Call, result: torch.Tensor) -> None:
        seen[at] = result.dtype
        floating = [x.dtype for x in (*call.inputs, *call.weights.values()) if x is not None]
        assert set(floating) == {result.dtype}

    with executor.watched(watch):
        run(executor, model("vae_decoder").spec, arrays_of("vae_decoder"))
    assert [at for at, dtype in seen.items() if dtype == torch.float32] == [index]
    assert np.isfinite(len(seen))
