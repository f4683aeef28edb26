"""fp16 safety: a decoder whose residual stream leaves the range of halves gives a picture all the same."""

from __future__ import annotations

import dataclasses
from functools import cache

import numpy as np
import pytest
import torch

from fastdiff.config import Precision
from fastdiff.errors import NumericError
from fastdiff.targets.cuda.choices import Choices
from fastdiff.targets.cuda.compiler import load_weights, run, weight_dtypes
from fastdiff.targets.cuda.executor import Executor
from fastdiff.targets.cuda.finite import check_finite
from fastdiff.targets.cuda.ranges import (
    LIMIT,
    Scales,
    calibration_inputs,
    measure_ranges,
    plan_scales,
    scaled,
)
from fastdiff.targets.cuda.types import value_dtypes
from fastdiff.targets.graph import Graph, Node, Value, Weight
from tests.compare import assert_close, relative_l2
from tests.targets.cuda.models import CPU, VOCABULARY, arrays_of, executor_of, graph_of, model, outputs

NAME = "vae_decoder"
SIZES = {"batch": 2, "height": 5, "width": 3}


def magnified(graph: Graph, pattern: str, factor: float) -> Graph:
    """The graph with the weights and biases of some layers multiplied."""
    chosen = {
        weight
        for node in graph.nodes
        if node.op in ("conv2d", "linear") and pattern in node.path
        for weight in node.weights.values()
    }
    assert chosen

    def times(weight: Weight) -> Weight:
        return dataclasses.replace(weight, load=lambda: np.float32(factor) * weight.load())

    weights = tuple(times(w) if i in chosen else w for i, w in enumerate(graph.weights))
    return dataclasses.replace(graph, weights=weights)


@cache
def overflowing() -> Graph:
    """The decoder with a stream of up to 10⁶; the norms take that out again."""
    return magnified(magnified(graph_of(NAME), "conv_in", 2e5), "mid_block.resnets.1.conv2", 3e5)


def scales_of(graph: Graph, limit: float = LIMIT) -> tuple[list[float], Scales]:
    spec = model(NAME).spec
    names = [tensor.name for tensor in spec.inputs]
    ranges = measure_ranges(executor_of(graph), calibration_inputs(spec, SIZES), names)
    return ranges, plan_scales(graph, ranges, limit)


def safe_executor(graph: Graph, scales: Scales) -> Executor:
    graph = scaled(graph, scales)
    dtypes = value_dtypes(graph, Precision.FP16)
    for value in scales.islands:
        dtypes[value] = torch.float32
    return Executor(graph, load_weights(graph, weight_dtypes(graph, dtypes), CPU), dtypes, Choices())


def test_what_overflows_in_halves_does_not_when_scaled() -> None:
    graph, arrays = overflowing(), arrays_of(NAME)
    plain = outputs(executor_of(graph, Precision.FP16), NAME, arrays)["sample"]
    assert not np.isfinite(plain).all()  # the black picture
    ranges, scales = scales_of(graph)
    assert max(ranges) > 65504
    assert not scales.islands  # the whole stream can be scaled: no layer has to leave the tensor cores
    wanted = outputs(executor_of(graph), NAME, arrays)["sample"]
    found = outputs(safe_executor(graph, scales), NAME, arrays)["sample"]
    # as exact as the same decoder without the magnified weights is in halves
    plain = outputs(executor_of(graph_of(NAME), Precision.FP16), NAME, arrays)["sample"]
    yardstick = relative_l2(plain, outputs(executor_of(graph_of(NAME)), NAME, arrays)["sample"])
    assert relative_l2(found, wanted) <= 2 * yardstick


def test_scaled_values_are_the_values_divided() -> None:
    """Powers of two change no digit in float32: every stored value times its factor is the value."""
    graph = overflowing()
    _, scales = scales_of(graph)
    small = scaled(graph, scales)
    seen: list[dict[int, torch.Tensor]] = []
    for each in (graph, small):
        found: dict[int, torch.Tensor] = {}
        executor = executor_of(each)
        with executor.watched(lambda i, call, result, found=found: found.update({call.node.output: result})):
            run(executor, model(NAME).spec, arrays_of(NAME))
        seen.append(found)
    exponents = scales.exponents
    assert max(exponents) >= 8
    for value, wanted in seen[0].items():
        assert_close(seen[1][value] * 2.0 ** exponents[value], wanted, rel_l2=1e-6, label=str(value))


def test_nothing_changes_where_everything_fits() -> None:
    graph = graph_of(NAME)
    _, scales = scales_of(graph)
    assert scales.empty
    small = scaled(graph, scales)
    assert small.nodes == graph.nodes
    assert [weight.name for weight in small.weights] == [weight.name for weight in graph.weights]


def test_the_stream_shares_one_factor() -> None:
    """A residual and what it is added to, the parts of a concatenation, a view and its source."""
    graph = overflowing()
    _, scales = scales_of(graph)
    for node in graph.nodes:
        inputs = [value for value in node.inputs if value is not None]
        if node.op in ("reshape", "slice", "permute", "concat"):
            assert len({scales.exponents[value] for value in (*inputs, node.output)}) == 1
        if node.op == "conv2d" and len(inputs) > 1:
            assert len({scales.exponents[value] for value in (*inputs[1:], node.output)}) == 1
    ends = (*graph.inputs, *graph.outputs)
    assert all(scales.exponents[value] == 0 for value in ends)


def test_what_cannot_be_scaled_becomes_an_island() -> None:
    """Keys that are too large: attention is not linear in them. They and their readers stay in float32."""
    graph = magnified(graph_of(NAME), "attentions.0.to_q", 1e5)
    arrays = arrays_of(NAME)
    ranges, scales = scales_of(graph)
    assert scales.islands
    written = {node.output for node in graph.nodes if node.op == "linear" and "to_q" in node.path}
    readers = {node.output for node in graph.nodes if node.op == "attention"}
    assert written | readers <= scales.islands
    assert len(scales.islands) < len(graph.nodes) / 4
    found = outputs(safe_executor(graph, scales), NAME, arrays)["sample"]
    wanted = outputs(executor_of(graph), NAME, arrays)["sample"]
    assert_close(found, wanted, rel_l2=2e-2)  # of softmax with logits of 10⁹: one key takes all
    assert max(ranges) > LIMIT


def test_a_layer_with_an_activation_keeps_its_scale() -> None:
    def weight(name: str, *shape: int) -> Weight:
        return Weight(name, "float32", shape, lambda: np.full(shape, 1e4, np.float32))

    values = tuple(Value(f"v{i}", "float32", ("batch", 4)) for i in range(4))
    layer = {"in": 4, "out": 4, "activation": "silu", "scale": 1.0}
    nodes = (
        Node("linear", (0, None), 1, layer, {"layer": 0}),
        Node("linear", (1, None), 2, {**layer, "activation": "none"}, {"layer": 0}),
        Node("layer_norm", (2,), 3, {"eps": 1e-5}),
    )
    graph = Graph({}, values, nodes, (weight("w", 4, 4),), (0,), (3,))
    scales = plan_scales(graph, [1.0, 4e4, 1.6e9, 1.0])
    assert scales.exponents[0] == scales.exponents[1] == scales.exponents[3] == 0
    assert 1.6e9 / 2 ** scales.exponents[2] <= LIMIT
    assert scales.islands == {1, 2}  # v1 itself, and the layer that reads it


def test_an_overflow_in_float32_is_an_error_that_names_the_layer() -> None:
    graph = magnified(graph_of(NAME), "conv_in", 3e38)
    with pytest.raises(NumericError, match=r"conv2d in decoder\.conv_in overflows in float32"):
        scales_of(graph)


def test_calibration_covers_what_the_decoder_meets() -> None:
    spec = model(NAME).spec
    arrays = [found["latent_sample"] for found in calibration_inputs(spec, SIZES)]
    assert [a.shape for a in arrays] == [(2, 4, 5, 3)] * 3
    assert np.std(arrays[0]) == pytest.approx(1, abs=0.2)
    assert np.std(arrays[1]) == pytest.approx(8, abs=1.5)  # SDXL divides by 0.13
    assert np.abs(np.diff(arrays[2], axis=2)).max() < np.abs(np.diff(arrays[1], axis=2)).max() / 2
    ids = calibration_inputs(model("clip").spec, {"batch": 1, "tokens": 7}, VOCABULARY)
    assert all(found["input_ids"].dtype == np.int64 for found in ids)


def test_the_check_passes_what_is_finite() -> None:
    executor = executor_of(graph_of(NAME), Precision.FP16)
    with executor.watched(check_finite(NAME)):
        run(executor, model(NAME).spec, arrays_of(NAME))


@pytest.mark.gpu
def test_gpu_what_overflows_in_halves_does_not_when_scaled() -> None:
    """As on the CPU, with the kernels that a GPU runs: their sums must not overflow on the way either."""
    graph, arrays = overflowing(), arrays_of(NAME)
    device = torch.device("cuda", 0)
    _, scales = scales_of(graph)

    def on_gpu(graph: Graph, islands: frozenset[int] = frozenset()) -> Executor:
        dtypes = value_dtypes(graph, Precision.FP16)
        for value in islands:
            dtypes[value] = torch.float32
        return Executor(graph, load_weights(graph, weight_dtypes(graph, dtypes), device), dtypes, Choices())

    plain = outputs(on_gpu(graph), NAME, arrays)["sample"]
    assert not np.isfinite(plain).all()
    wanted = outputs(executor_of(graph), NAME, arrays)["sample"]
    found = outputs(on_gpu(scaled(graph, scales), scales.islands), NAME, arrays)["sample"]
    assert_close(found, wanted, rel_l2=1e-2)  # test_what_overflows… holds the CPU to PyTorch's own error
