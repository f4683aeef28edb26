"""What the Triton kernels share: tilings as JSON, checks of tensors, strides, the launch on a GPU."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor

from fastdiff.errors import InputError
from fastdiff.kernels import reference
from fastdiff.kernels.triton import attention as attention_module
from fastdiff.kernels.triton.attention import attention
from fastdiff.kernels.triton.geglu import geglu
from fastdiff.kernels.triton.launch import (
    Config,
    architecture,
    check_kernel_tensors,
    output,
    row_stride,
    rows_of,
)
from tests.compare import assert_close

GPU = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]


def test_config_as_json() -> None:
    config = Config.of(8, 3, BLOCK_N=64, BLOCK_M=128)
    assert Config.from_json(json.loads(json.dumps(config.to_json()))) == config
    assert config["BLOCK_M"] == 128
    assert config == Config.of(8, 3, BLOCK_M=128, BLOCK_N=64)
    assert len({config, Config.of(8, 3, BLOCK_M=128, BLOCK_N=64), Config.of(4, 3, BLOCK_M=128)}) == 2


@pytest.mark.parametrize(
    ("tensor", "wanted"),
    [
        (torch.ones(3, 4, 5), 5),
        (torch.ones(3, 4, 15)[..., 5:10], 15),
        (torch.ones(12, 5)[::2], 10),
        (torch.ones(3, 4, 5)[:, :1], 20),
        (torch.ones(1, 1, 5), 5),
        (torch.ones(5), 5),
        (torch.ones(7, 1, 5).expand(7, 3, 5)[:1], 0),
    ],
)
def test_row_stride(tensor: Tensor, wanted: int) -> None:
    assert row_stride(tensor, "x") == wanted


def test_rows_that_are_not_evenly_spaced() -> None:
    with pytest.raises(InputError, match=r"x: found strides \(20, 5, 1\) for shape \(3, 2, 5\)"):
        row_stride(torch.ones(3, 4, 5)[:, :2], "x")


@pytest.mark.parametrize(("shape", "wanted"), [((3, 4, 5), 12), ((5,), 1), ((3, 0), 0), ((0, 3), 0)])
def test_rows_of(shape: tuple[int, ...], wanted: int) -> None:
    assert rows_of(torch.ones(shape)) == wanted


@pytest.mark.parametrize(
    ("second", "words"),
    [
        (torch.ones(4, dtype=torch.int32), "b: found dtype int32, wanted one of float16, bfloat16, float32"),
        (torch.ones(4).half(), "b: found torch.float16 on cpu, wanted torch.float32 on cpu as a"),
        (torch.ones(4, device="meta"), "on meta, wanted torch.float32 on cpu"),
        (torch.ones(8)[::2], "b: found stride 2 on the last axis"),
    ],
)
def test_tensors_refused(second: Tensor, words: str) -> None:
    with pytest.raises(InputError, match=words):
        check_kernel_tensors(a=torch.ones(4), left_out=None, b=second)


def test_output() -> None:
    like = torch.ones(2, 3).half()
    assert output(None, (4, 5), like).shape == (4, 5)
    assert output(None, (4,), like, dtype=torch.float32).dtype == torch.float32
    given = torch.ones(4, 5).half()
    assert output(given, (4, 5), like) is given
    for wrong in (torch.ones(4, 5), torch.ones(5, 4).half(), torch.ones(5, 4).half().t()):
        with pytest.raises(InputError, match="given: found"):
            output(wrong, (4, 5), like, "given")


def test_cpu_tensors_run_the_tilings_of_a_named_architecture() -> None:
    assert architecture(torch.ones(1)) == 90


@pytest.mark.parametrize("replays", [pytest.param(3, marks=GPU)])
def test_inside_graph_capture(replays: int) -> None:
    """Captured once, replayed with other contents of the same buffers, on PyTorch's current stream."""
    x = torch.randn(70, 256, device="cuda").half()
    out = geglu(x)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        geglu(x, out=out)
    for _ in range(replays):
        x.normal_()
        graph.replay()
        assert_close(out.float().cpu(), reference.geglu(x.double()).cpu(), rel_l2=4e-4, label="geglu")


@pytest.mark.parametrize("sizes", [pytest.param(((1, 16, 16), (2, 77, 77), (3, 100, 33)), marks=GPU)])
def test_one_binary_for_all_sizes(sizes: tuple[tuple[int, int, int], ...]) -> None:
    """Batch, queries and keys are no part of what a kernel is compiled for."""
    kernels = attention_module._attention_kernel.device_caches[torch.cuda.current_device()][0]
    before = set(kernels)
    for batch, n, m in sizes:
        query, key, value = (torch.randn(batch, x, 64, device="cuda").half() for x in (n, m, m))
        attention(query, key, value, 1, 0.1)
    assert len(set(kernels) - before) <= 1
