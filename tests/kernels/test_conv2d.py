"""conv2d: the reference against PyTorch in double precision, the registered op, the CPU kernel."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from fastdiff import _C
from fastdiff.errors import InputError
from fastdiff.kernels import conv2d, library, pack_conv2d, reference
from fastdiff.kernels.conv2d import ALGORITHMS
from tests.compare import assert_close

PYTORCH = {
    "none": lambda x: x,
    "silu": functional.silu,
    "gelu": functional.gelu,
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
}


def tensors(*shapes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator) for shape in shapes]


def expected(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: Any, up: int, size: Any = None
) -> Tensor:
    """What PyTorch makes of NCHW float64 copies, back in NHWC."""
    top, bottom, left, right = padding
    size = size or (up * x.shape[1], up * x.shape[2])
    picture = functional.interpolate(x.double().permute(0, 3, 1, 2), size=size, mode="nearest")
    padded = functional.pad(picture, (left, right, top, bottom))
    y = functional.conv2d(padded, weight.double(), None if bias is None else bias.double(), stride)
    return y.permute(0, 2, 3, 1)


# (batch, height, width, in, out, kernel, stride, padding, upsample)
SIZES = [
    pytest.param((1, 1, 1, 1, 1, (1, 1), 1, (0, 0, 0, 0), 1), id="one pixel, one channel"),
    pytest.param((2, 5, 7, 3, 4, (3, 3), 1, (1, 1, 1, 1), 1), id="odd map, channels below any register"),
    pytest.param((1, 6, 9, 17, 13, (3, 3), 2, (1, 1, 1, 1), 1), id="stride 2 over an odd and an even side"),
    pytest.param((1, 6, 9, 4, 5, (3, 3), 2, (0, 1, 0, 1), 1), id="a VAE encoder's asymmetric padding"),
    pytest.param((2, 4, 5, 6, 7, (3, 3), 1, (1, 1, 1, 1), 2), id="upsampled by 2"),
    pytest.param((1, 3, 3, 2, 2, (3, 3), 1, (1, 1, 1, 1), 3), id="upsampled by 3"),
    pytest.param((1, 4, 6, 3, 5, (1, 3), 1, (0, 2, 3, 1), 1), id="a flat kernel, four different paddings"),
    pytest.param((0, 4, 4, 3, 5, (3, 3), 1, (1, 1, 1, 1), 1), id="empty batch"),
]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("biased", [False, True])
def test_against_pytorch(size: Any, biased: bool) -> None:
    batch, height, width, inner, outer, kernel, stride, padding, up = size
    x, weight, bias = tensors((batch, height, width, inner), (outer, inner, *kernel), (outer,))
    arguments = (x, weight, bias if biased else None)
    found = reference.conv2d(*arguments, None, None, stride, padding, up)
    assert_close(found, expected(*arguments, stride, padding, up), rel_l2=1e-6, label="conv2d")
    assert found.is_contiguous()


# of a picture of 4 × 5 pixels, enlarged: both sides odd, either one, none
CROPPED = [(7, 9), (7, 10), (8, 9), (8, 10)]


@pytest.mark.parametrize("size", CROPPED)
def test_enlarged_to_a_size_against_pytorch(size: Any) -> None:
    arguments = tensors((2, 4, 5, 6), (7, 6, 3, 3), (7,))
    found = reference.conv2d(*arguments, None, None, 1, (1, 1, 1, 1), 2, "none", 1.0, size)
    assert_close(found, expected(*arguments, 1, (1, 1, 1, 1), 2, size), rel_l2=1e-6, label="conv2d")


@pytest.mark.parametrize("activation", PYTORCH)
def test_epilogues(activation: str) -> None:
    x, weight, bias, vector, residual = tensors((2, 5, 6, 4), (7, 4, 3, 3), (7,), (2, 7), (2, 3, 3, 7))
    padding = (1, 1, 1, 1)
    found = reference.conv2d(x, weight, bias, vector, residual, 2, padding, 1, activation, 0.7)
    y = expected(x, weight, bias, 2, padding, 1) + vector[:, None, None, :]
    assert_close(found, 0.7 * (PYTORCH[activation](y) + residual), rel_l2=1e-6, label=activation)


def test_the_registered_op() -> None:
    x, weight, bias, vector, residual = tensors((2, 5, 6, 4), (7, 4, 3, 3), (7,), (2, 7), (2, 5, 6, 7))
    torch.library.opcheck(library.conv2d, (x, weight, None, None, None, 2, [0, 1, 0, 1], 2))
    sized = (x, weight, None, None, None, 1, [1, 1, 1, 1], 2, "none", 1.0, [9, 12])
    torch.library.opcheck(library.conv2d, sized)
    fused = (x, weight, bias, vector, residual, 1, [1, 1, 1, 1], 1, "silu", 0.5)
    torch.library.opcheck(library.conv2d, fused)
    # a picture whose channels are a part of another's: strided in memory
    torch.library.opcheck(library.conv2d, (tensors((2, 5, 6, 9))[0][..., 2:6], *fused[1:]))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"x": (2, 4, 5)}, "four axes"),
        ({"weight": (7, 5, 3, 3)}, r"wanted \(O, 4, kh, kw\)"),
        ({"bias": (6,)}, r"bias: found shape \(6,\), wanted \(7,\)"),
        ({"vector": (1, 7)}, r"vector: found shape \(1, 7\), wanted \(2, 7\)"),
        ({"residual": (2, 5, 6, 4)}, r"residual: .* wanted \(2, 5, 6, 7\)"),
        ({"stride": 0}, "stride: found 0"),
        ({"upsample": 0}, "upsample: found 0"),
        ({"padding": [1, 1]}, r"padding: found \[1, 1\]"),
        ({"padding": [1, 1, -1, 1]}, "none negative"),
        ({"padding": [0, 0, 0, 0], "x": (2, 5, 2, 4)}, "found 5 × 2 pixels"),
        ({"activation": "geglu"}, "activation: found 'geglu'"),
        ({"upsample": 2, "size": [8, 12]}, r"size: found \[8, 12\], wanted rows and columns of \[10, 12\]"),
        ({"upsample": 2, "size": [10, 13]}, r"size: found \[10, 13\]"),
        ({"size": [4, 6]}, r"size: found \[4, 6\]"),
    ],
)
def test_refused(change: dict[str, Any], words: str) -> None:
    shapes = {"x": (2, 5, 6, 4), "weight": (7, 4, 3, 3), "bias": (7,), "vector": (2, 7)}
    options = {"stride": 1, "padding": [1, 1, 1, 1], "upsample": 1, "activation": "none"}
    arguments: dict[str, Any] = {**shapes, "residual": (2, 5, 6, 7), **options, **change}
    with pytest.raises(InputError, match=words):
        library.conv2d(
            **{name: torch.ones(v) if isinstance(v, tuple) else v for name, v in arguments.items()}
        )


HALF = 2**-11  # largest relative error of rounding to half precision
BOUNDS = {
    # One sum after the other: the error grows with the root of the number of terms, 5,400 at most here.
    ("direct", "fp32"): 2e-6,
    ("direct", "fp16"): 2e-6,
    # The transforms lose some bits (Lavin and Gray 2016, section 5.3). Rounding transformed weights to halves
    # loses more, as large ones cancel.
    ("winograd2", "fp32"): 1e-6,
    ("winograd2", "fp16"): 1.5 * HALF,
    ("winograd2_plain", "fp32"): 1e-6,
    ("winograd2_plain", "fp16"): 1e-6,  # of halves as they are: nothing is rounded after the transform
    ("winograd4", "fp32"): 3e-6,
    ("winograd4", "fp16"): 4 * HALF,
}


def arrays(rng: np.random.Generator, *shapes: tuple[int, ...]) -> list[np.ndarray]:
    return [rng.standard_normal(shape).astype(np.float32) for shape in shapes]


def doubles(*values: np.ndarray | None) -> list[Tensor | None]:
    return [None if v is None else torch.from_numpy(v.copy()).double() for v in values]


# (batch, height, width, in, out, padding, upsample) of 3×3 kernels
KERNEL_SIZES = [
    pytest.param((1, 1, 1, 1, 1, (1, 1, 1, 1), 1), id="one pixel, one channel"),
    pytest.param((2, 5, 7, 17, 19, (1, 1, 1, 1), 1), id="odd map, channels that end inside a register"),
    pytest.param((1, 8, 8, 32, 33, (1, 1, 1, 1), 1), id="whole tiles, one output more than two panels"),
    pytest.param((1, 4, 30, 4, 40, (1, 1, 1, 1), 1), id="a latent's 4 channels, rows wider than a tile"),
    pytest.param((2, 9, 5, 700, 20, (1, 1, 1, 1), 1), id="more channels than a depth block"),
    pytest.param((1, 6, 4, 130, 18, (0, 1, 0, 1), 1), id="asymmetric padding"),
    pytest.param((1, 3, 5, 8, 16, (2, 0, 1, 3), 1), id="four different paddings"),
    pytest.param((1, 3, 3, 8, 16, (0, 0, 0, 0), 1), id="no padding: one output pixel"),
    pytest.param((2, 3, 5, 20, 24, (1, 1, 1, 1), 2), id="upsampled"),
    pytest.param((3, 40, 44, 3, 5, (1, 1, 1, 1), 1), id="more tiles than a round"),
    pytest.param((0, 4, 4, 3, 5, (1, 1, 1, 1), 1), id="empty batch"),
]


@pytest.mark.smoke
@pytest.mark.parametrize("size", KERNEL_SIZES)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_kernel(rng, isa, size, algorithm, precision):
    batch, height, width, inner, outer, padding, up = size
    x, weight, bias = arrays(rng, (batch, height, width, inner), (outer, inner, 3, 3), (outer,))
    packed = pack_conv2d(weight, algorithm, precision)
    found = conv2d(x, packed, bias, padding=padding, upsample=up, isa=isa)
    stored = weight if precision == "fp32" else weight.astype(np.float16)
    wanted = reference.conv2d(*doubles(x, stored, bias), None, None, 1, padding, up)
    assert_close(found, wanted, rel_l2=BOUNDS[algorithm, precision], label=algorithm)


@pytest.mark.smoke
@pytest.mark.parametrize("size", CROPPED)
@pytest.mark.parametrize(
    ("algorithm", "kernel"), [*((name, (3, 3)) for name in ALGORITHMS), ("direct", (5, 1))]
)
def test_kernel_enlarges_to_a_size(rng, isa, size, algorithm, kernel):
    x, weight, bias = arrays(rng, (2, 4, 5, 20), (24, 20, *kernel), (24,))
    padding = (kernel[0] // 2, kernel[0] // 2, kernel[1] // 2, kernel[1] // 2)
    given = pack_conv2d(weight, algorithm), bias
    found = conv2d(x, *given, padding=padding, upsample=2, size=size, isa=isa)
    wanted = reference.conv2d(*doubles(x, weight, bias), None, None, 1, padding, 2, "none", 1.0, size)
    assert_close(found, wanted, rel_l2=BOUNDS[algorithm, "fp32"], label=algorithm)
    for threads in (2, 3):
        again = conv2d(x, *given, padding=padding, upsample=2, size=size, isa=isa, threads=threads)
        assert np.array_equal(again, found)


@pytest.mark.parametrize(
    ("kernel", "stride", "padding"),
    [
        pytest.param((3, 3), 2, (1, 1, 1, 1), id="a U-Net's downsampling"),
        pytest.param((3, 3), 2, (0, 1, 0, 1), id="a VAE encoder's downsampling"),
        pytest.param((1, 1), 2, (0, 0, 0, 0), id="strided, nothing to pad: read where it lies"),
        pytest.param((5, 1), 1, (2, 2, 0, 0), id="a tall kernel"),
        pytest.param((7, 7), 3, (3, 3, 3, 3), id="49 taps, stride 3"),
    ],
)
def test_kernel_other_kernels(rng, isa, kernel, stride, padding):
    x, weight, bias = arrays(rng, (2, 9, 12, 21), (37, 21, *kernel), (37,))
    found = conv2d(x, pack_conv2d(weight), bias, stride=stride, padding=padding, isa=isa)
    wanted = reference.conv2d(*doubles(x, weight, bias), None, None, stride, padding)
    assert_close(found, wanted, rel_l2=1e-6, label="direct")


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("activation", PYTORCH)
def test_kernel_epilogue(rng, isa, algorithm, activation):
    x, weight, bias, vector, residual = arrays(
        rng, (2, 5, 6, 8), (18, 8, 3, 3), (18,), (2, 18), (2, 5, 6, 18)
    )
    packed, padding = pack_conv2d(weight, algorithm), (1, 1, 1, 1)
    for terms in ((bias, vector, residual), (None, None, residual), (None, vector, None)):
        found = conv2d(x, packed, *terms, padding=padding, activation=activation, scale=0.7, isa=isa)
        wanted = reference.conv2d(*doubles(x, weight, *terms), 1, padding, activation=activation, scale=0.7)
        assert_close(found, wanted, rel_l2=BOUNDS[algorithm, "fp32"], label=activation)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_kernel_does_not_depend_on_the_threads(rng, isa, algorithm, precision):
    for size, outer in (((2, 14, 30, 20), 70), ((1, 4, 4, 40), 130)):
        x, weight = arrays(rng, size, (outer, size[3], 3, 3))
        packed = pack_conv2d(weight, algorithm, precision)
        one, *others = (conv2d(x, packed, padding=(1, 1, 1, 1), threads=n, isa=isa) for n in (1, 2, 3))
        assert all(np.array_equal(one, other) for other in others)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_kernel_on_slices(rng, isa, algorithm):
    # The inputs of a concatenation are slices of its result.
    x, residual, out, weight = arrays(rng, (2, 5, 6, 40), (2, 5, 6, 30), (2, 5, 6, 50), (18, 20, 3, 3))
    before, padding = out.copy(), (1, 1, 1, 1)
    conv2d(
        x[..., 7:27],
        pack_conv2d(weight, algorithm),
        None,
        None,
        residual[..., 1:19],
        padding=padding,
        out=out[..., 16:34],
        isa=isa,
    )
    wanted = reference.conv2d(*doubles(x[..., 7:27], weight, None, None, residual[..., 1:19]), 1, padding)
    assert_close(out[..., 16:34], wanted, rel_l2=BOUNDS[algorithm, "fp32"], label=algorithm)
    assert np.array_equal(out[..., :16], before[..., :16])
    assert np.array_equal(out[..., 34:], before[..., 34:])


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_kernel_in_place_of_the_residual(rng, isa, algorithm):
    x, weight, residual = arrays(rng, (1, 9, 7, 20), (33, 20, 3, 3), (1, 9, 7, 33))
    packed, padding = pack_conv2d(weight, algorithm), (1, 1, 1, 1)
    wanted = conv2d(x, packed, None, None, residual, padding=padding, isa=isa)
    conv2d(x, packed, None, None, residual, padding=padding, out=residual, isa=isa)
    assert np.array_equal(residual, wanted)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"x": np.ones((1, 4, 4, 4), np.float32)}, "wanted (batch, height, width, 5)"),
        ({"x": np.ones((1, 4, 4, 5))}, "found dtype float64"),
        ({"x": np.ones((1, 2, 4, 5), np.float32)}, "fits into the padded 2×4"),
        ({"bias": np.ones(4, np.float32)}, "wanted (6,)"),
        ({"vector": np.ones((2, 6), np.float32)}, "wanted (1, 6)"),
        ({"residual": np.ones((1, 4, 4, 6), np.float32)}, "wanted (1, 2, 2, 6)"),
        ({"activation": "geglu"}, "found 'geglu'"),
        ({"upsample": 3}, "found 3, wanted 1 or 2"),
        ({"upsample": 2, "size": (1, 9)}, "size: found [1, 9], wanted rows and columns of [8, 8]"),
        ({"stride": 0}, "stride 1 or more"),
        ({"padding": (-1, 0, 0, 0)}, "no negative padding"),
        (
            {"weight": pack_conv2d(np.ones((6, 5, 3, 3), np.float32), "winograd4"), "stride": 2},
            "wanted direct",
        ),
    ],
)
def test_kernel_refuses(change: dict[str, Any], words: str) -> None:
    good = {"x": np.ones((1, 4, 4, 5), np.float32), "weight": pack_conv2d(np.ones((6, 5, 3, 3), np.float32))}
    assert conv2d(**good).shape == (1, 2, 2, 6)
    with pytest.raises(InputError) as error:
        conv2d(**{**good, **change})
    assert words in str(error.value)


def test_pack_refuses_what_an_algorithm_cannot_do() -> None:
    for kernel in ((1, 1), (5, 5)):
        with pytest.raises(InputError, match="wanted direct"):
            pack_conv2d(np.ones((2, 2, *kernel), np.float32), "winograd2")
    with pytest.raises(InputError, match="49 taps"):
        pack_conv2d(np.ones((2, 2, 8, 8), np.float32))


def call(
    x: np.ndarray, weight: np.ndarray, algorithm: str, up: int, isa: str, threads: int, **split: Any
) -> Any:
    """(y, sums) of a padded 3×3 convolution, with the arguments that take group_norm_silu apart."""
    shape = (x.shape[0], up * x.shape[1], up * x.shape[2], weight.shape[0])
    y = np.full(shape, np.nan, np.float32)
    fixed = (None, None, None, 1, (1, 1, 1, 1), up, (0, 0), "none", 1.0, algorithm, "fp32")
    packed = pack_conv2d(weight, algorithm).packed
    return y, _C.conv2d(x, packed, weight.shape, *fixed, y, threads, isa, **split)


# Odd maps, channels that end inside a register; several images in a round; more than a round.
SPLIT_SIZES = [(2, 5, 7, 21, 33), (3, 4, 4, 32, 16), (2, 60, 64, 5, 3)]


@pytest.mark.parametrize("size", SPLIT_SIZES)
@pytest.mark.parametrize("up", [1, 2])
@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_kernel_normalises_while_it_loads(rng, isa, algorithm, silu, up, size):
    batch, height, width, inner, outer = size
    x, weight = arrays(rng, (batch, height, width, inner), (outer, inner, 3, 3))
    affine = np.zeros((batch, 3, -(-inner // 16) * 16), np.float32)
    affine[:, :, :inner] = rng.standard_normal((batch, 3, inner))
    mean, scale, shift = (a[:, None, None, :inner].astype(np.float64) for a in np.moveaxis(affine, 1, 0))
    normal = torch.from_numpy((x - mean) * scale + shift)
    normal = functional.silu(normal) if silu else normal
    y, _ = call(x, weight, algorithm, up, isa, 2, affine=affine, affine_silu=silu)
    wanted = expected(normal, torch.from_numpy(weight), None, 1, (1, 1, 1, 1), up)
    assert_close(y, wanted, rel_l2=BOUNDS[algorithm, "fp32"], label=algorithm)


@pytest.mark.parametrize("size", SPLIT_SIZES)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_kernel_sums_what_it_stores(rng, isa, algorithm, size):
    x, weight = arrays(rng, size[:4], (size[4], size[3], 3, 3))
    y, sums = call(x, weight, algorithm, 1, isa, 1, sums=True)
    total = sums.sum(1)[:, :, : size[4]]
    flat = y.reshape(size[0], -1, size[4]).astype(np.float64)
    assert_close(total[:, 0], flat.sum(1), max_abs=1e-9 * np.abs(flat).sum(1).max(), label="sums")
    assert_close(total[:, 1], (flat**2).sum(1), rel_l2=1e-12, label="sums of squares")
    # The parts, and so the sums' rounding, are the same for every number of threads.
    for threads in (2, 3):
        assert np.array_equal(call(x, weight, algorithm, 1, isa, threads, sums=True)[1], sums)
