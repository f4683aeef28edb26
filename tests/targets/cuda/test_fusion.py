"""Sums that a norm forms: the graph computes the same, and only what pays is fused."""

from __future__ import annotations

import pytest

from fastdiff.config import Precision
from fastdiff.targets.cuda.choices import Choices
from fastdiff.targets.cuda.compiler import _fused_dtypes, load_weights, weight_dtypes
from fastdiff.targets.cuda.executor import Executor
from fastdiff.targets.cuda.fusion import fuse, pairs, worthwhile
from fastdiff.targets.cuda.types import value_dtypes
from tests.compare import assert_close
from tests.targets.cuda.models import CPU, arrays_of, executor_of, graph_of, outputs

NAMES = ["sd15", "sdxl", "vae_decoder", "pixels_scale_shift", "clip"]


@pytest.mark.parametrize("name", NAMES)
def test_the_fused_graph_computes_the_same(name: str) -> None:
    graph = graph_of(name)
    found = pairs(graph)
    assert found
    fused = fuse(graph, found)
    dtypes = _fused_dtypes(fused, value_dtypes(graph, Precision.FP32))
    executor = Executor(fused, load_weights(fused, weight_dtypes(fused, dtypes), CPU), dtypes, Choices())
    arrays = arrays_of(name)
    for output, wanted in outputs(executor_of(graph), name, arrays).items():
        assert_close(outputs(executor, name, arrays)[output], wanted, rel_l2=1e-6, label=output)


def test_every_residual_block_of_the_decoder_fuses() -> None:
    """Both of its convolutions are read by a norm first, but for the last of a level before upsampling."""
    graph = graph_of("vae_decoder")
    paths = {graph.nodes[layer].path for layer, _ in pairs(graph)}
    blocks = {node.path.rpartition(".")[0] for node in graph.nodes if node.path.endswith(".conv1")}
    assert {f"{block}.conv1" for block in blocks} <= paths
    assert "decoder.mid_block.resnets.1.conv2" in paths
    assert "decoder.up_blocks.0.resnets.2.conv2" not in paths  # the upsampling's convolution reads it


def test_transformer_blocks_fuse_their_residuals() -> None:
    graph = graph_of("sd15")
    fused = [graph.nodes[layer].path for layer, norm in pairs(graph) if graph.nodes[norm].op == "layer_norm"]
    assert sum(path.endswith("to_out.0") for path in fused) == 32  # self and cross attention of 16 blocks


def test_a_sum_that_somebody_reads_earlier_stays() -> None:
    graph = graph_of("sd15")
    for layer, norm in pairs(graph):
        value = graph.nodes[layer].output
        readers = [i for i, node in enumerate(graph.nodes) if value in node.inputs]
        assert min(readers) == norm
        assert graph.nodes[norm].inputs[0] == value


def test_only_what_is_faster_is_fused() -> None:
    apart = {0: 4.0, 1: 2.0, 2: 4.0, 3: 2.0}
    together = {0: 3.0, 1: 2.5, 2: 3.0, 3: 3.5}
    assert worthwhile([(0, 1), (2, 3)], apart, together) == [(0, 1)]
