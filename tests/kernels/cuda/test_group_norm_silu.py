"""group_norm_silu in CUDA C++ against the reference, and how its work is shared out."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from fastdiff.errors import InputError
from fastdiff.kernels import reference
from fastdiff.kernels.cuda.group_norm_silu import Gpu, Plan, configs, group_norm_silu, plan, shared_memory
from tests.compare import assert_close, relative_l2

H200 = Gpu(132, shared_memory(9, 0), True)
A100 = Gpu(108, shared_memory(8, 0), False)
RTX = Gpu(128, shared_memory(8, 9), False)
# N, pixels, C with 32 groups
SD = [
    (2, 4096, 320),
    (2, 4096, 960),
    (2, 1024, 640),
    (2, 256, 1280),
    (2, 64, 2560),
    (2, 16384, 320),
    (1, 1024, 512),
]
DECODER = [(1, 1024 * 1024, 128), (1, 512 * 512, 512), (1, 1024 * 1024, 256)]


def made(shape: tuple[int, ...], dtype: torch.dtype, device: str, centre: float = 0.0) -> list[Tensor]:
    """x, weight, bias."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator) + centre
    weight, bias = (torch.randn(shape[-1], generator=generator) for _ in range(2))
    return [tensor.to(device=device, dtype=dtype) for tensor in (x, weight, bias)]


def check(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, groups: int, found: Tensor, silu: bool = True
) -> None:
    """At most twice the error that PyTorch's own arithmetic in the same type has, both against float64."""
    exact = [None if tensor is None else tensor.double() for tensor in (x, weight, bias)]
    wanted = reference.group_norm_silu(*exact, groups, 1e-5, silu)
    assert found.dtype == x.dtype
    # Rounding float64 to the type is the least error that there can be, a rounding more is PyTorch's.
    own = 2 * relative_l2(wanted.to(x.dtype).float(), wanted) + 1e-6
    assert_close(found.float(), wanted, rel_l2=own)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("shape", "groups"),
    [
        pytest.param((2, 3, 7, 80), 8, id="groups of 10 channels, 21 pixels"),
        pytest.param((1, 5, 5, 128), 32, id="groups of 4, the decoder's"),
        pytest.param((2, 23, 37), 1, id="a prime number of channels: the scalar path"),
        pytest.param((3, 64), 8, id="no pixels' axis"),
    ],
)
def test_reference(device: str, shape: tuple[int, ...], groups: int, dtype: torch.dtype) -> None:
    x, weight, bias = made(shape, dtype, device)
    check(x, weight, bias, groups, group_norm_silu(x, weight, bias, groups))


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(Plan("cluster", 40, 4, 64), id="four blocks of a cluster"),
        pytest.param(Plan("cluster", 80, 1, 96), id="one block"),
        pytest.param(Plan("split", 80, 3, 64), id="split, whole rows"),
        pytest.param(Plan("split", 32, 2, 32), id="split, groups of 10 cut at 32 channels"),
        pytest.param(Plan("scalar", 7, 2, 32), id="scalar, groups cut at 7"),
    ],
)
def test_every_kind_of_plan(device: str, config: Plan) -> None:
    x, weight, bias = made((2, 5, 6, 80), torch.float16, device, centre=5.0)
    found = group_norm_silu(x, weight, None, 8, silu=False, config=config)
    check(x, weight, None, 8, found, silu=False)
    found = group_norm_silu(x, weight.float(), bias.float(), 8, config=config)
    check(x, weight, bias, 8, found)


def test_rows_of_a_wider_tensor_are_read_where_they_lie(device: str) -> None:
    wide, weight, bias = made((2, 4, 5, 96), torch.float16, device)
    for part in (wide[..., 16:80], wide[..., 3:67]):  # at 16-byte addresses, and between them
        found = group_norm_silu(part, weight[:64], bias[:64], 8)
        check(part, weight[:64], bias[:64], 8, found)


def test_out_may_be_the_input(device: str) -> None:
    x, weight, bias = made((1, 8, 8, 64), torch.float16, device)
    before = x.clone()
    assert group_norm_silu(x, weight, bias, 32, out=x) is x
    check(before, weight, bias, 32, x)


def test_large_values_do_not_overflow_or_cancel(device: str) -> None:
    x, weight, bias = made((1, 6, 6, 64), torch.float16, device, centre=30000.0)
    assert x.float().square().isfinite().all()
    assert not x.square().isfinite().all()
    check(x, weight, bias, 8, group_norm_silu(x, weight, bias, 8))


def test_nothing(device: str) -> None:
    x, weight, bias = made((0, 4, 4, 32), torch.float16, device)
    assert group_norm_silu(x, weight, bias, 8).shape == (0, 4, 4, 32)


def test_refusals(device: str) -> None:
    x, weight, bias = made((2, 4, 4, 64), torch.float16, device)
    with pytest.raises(InputError, match="found 'NCHW'"):
        group_norm_silu(x, weight[:4], bias[:4], 2, layout="NCHW")
    with pytest.raises(InputError, match=r"found torch\.float64, wanted float16"):
        group_norm_silu(x.double(), None, None, 2)
    with pytest.raises(InputError, match=r"pass x\.contiguous\(\)"):
        group_norm_silu(x.transpose(1, 3), None, None, 2)
    with pytest.raises(InputError, match="evenly spaced pixels"):
        group_norm_silu(x[:, :, :3], None, None, 2)
    with pytest.raises(InputError, match="wanted both"):
        group_norm_silu(x, weight, bias.float(), 2)
    with pytest.raises(InputError, match="out: found"):
        group_norm_silu(x, weight, bias, 2, out=torch.empty_like(x, dtype=torch.float32))
    with pytest.raises(InputError, match="wanted 'scalar'"):
        group_norm_silu(x[..., 1:41], None, None, 2, config=Plan("split", 40, 1, 32))


@pytest.mark.parametrize("gpu", [H200, A100, RTX], ids=["H200", "A100", "RTX 4090"])
@pytest.mark.parametrize("itemsize", [2, 4])
def test_plans_can_be_launched(gpu: Gpu, itemsize: int) -> None:
    odd = [(1, 1, 37, 1), (3, 7, 33, 3), (1, 100, 6, 6), (2, 50, 1280, 1), (1, 9, 5120, 2), (1, 33, 12, 4)]
    for images, pixels, channels, groups in [*((*size, 32) for size in SD + DECODER), *odd]:
        for packed in (True, False) if channels * itemsize % 16 == 0 else (False,):
            plans = configs(images, pixels, channels, groups, itemsize, packed, gpu)
            for found in plans:
                pack = 16 // itemsize if packed else 1
                group = channels // groups
                assert found.threads % 32 == 0
                assert 32 <= found.threads <= 512
                assert found.threads >= found.columns // pack >= 1
                assert found.columns % pack == 0
                assert found.shared(pixels, group, itemsize) <= gpu.shared
                assert 1 <= found.parts <= max(1, pixels)
                assert packed == (found.kind != "scalar")
                if found.kind == "cluster":
                    assert channels % found.columns == found.columns % group == 0
                    assert found.parts in ((1, 2, 4, 8) if gpu.clusters else (1,))
            assert len(set(plans)) == len(plans)


@pytest.mark.parametrize("size", SD, ids=str)
def test_the_unet_s_sizes_are_read_once_and_fill_an_h200(size: tuple[int, int, int]) -> None:
    images, _, channels = size
    found = plan(*size, 32, 2, True, H200)
    assert found.kind == "cluster"
    blocks = images * channels // found.columns * found.parts
    assert blocks >= 0.45 * H200.multiprocessors


@pytest.mark.parametrize("size", DECODER, ids=str)
def test_the_decoder_s_sizes_are_split(size: tuple[int, int, int]) -> None:
    found = plan(*size, 32, 2, True, H200)
    assert found.kind == "split"
    assert -(-size[2] // found.columns) * found.parts >= 2 * H200.multiprocessors


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("size", [*SD, (1, 512 * 512, 128)], ids=str)
def test_real_sizes(size: tuple[int, int, int], dtype: torch.dtype) -> None:
    from fastdiff.kernels.cuda.group_norm_silu import gpu_of

    x, weight, bias = made(size, dtype, "cuda", centre=1.0)
    for found in configs(*size, 32, x.itemsize, True, gpu_of(x.device.index)):
        check(x, weight, bias, 32, group_norm_silu(x, weight, bias, 32, config=found))


@pytest.mark.gpu
def test_the_same_bits_every_time() -> None:
    for size in (SD[0], (1, 512 * 512, 128)):
        x, weight, bias = made(size, torch.float16, "cuda")
        first = group_norm_silu(x, weight, bias, 32)
        for _ in range(5):
            assert torch.equal(group_norm_silu(x, weight, bias, 32), first)


@pytest.mark.gpu
def test_captured_into_a_graph() -> None:
    for size, silu in itertools.product((SD[0], SD[3], (1, 512 * 512, 128)), (True, False)):
        x, weight, bias = made(size, torch.float16, "cuda")
        out = group_norm_silu(x, weight, bias, 32, silu=silu)  # loads the kernels
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            group_norm_silu(x, weight, bias, 32, silu=silu, out=out)
        x.copy_(torch.randn(x.shape, generator=torch.Generator().manual_seed(9)))
        graph.replay()
        torch.cuda.synchronize()
        check(x, weight, bias, 32, out, silu)
