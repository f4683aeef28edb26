"""The CUDA generator on the CPU: numbers that GPUs printed, and the state that carries over."""

from __future__ import annotations

import numpy as np
import pytest

from fastdiff import _C
from fastdiff.errors import InputError
from fastdiff.samplers import CudaGenerator
from fastdiff.samplers.random import philox_increment, philox_threads
from tests.compare import assert_close

PRINTED = 5e-5 + 5e-6  # four places, and what the approximate sine leaves


def test_numbers_printed_by_pytorch() -> None:
    """torch.manual_seed(42), then torch.randn(4, device="cuda") three times; and the start of seed 0."""
    generator = CudaGenerator(42, 132, 2048)
    for wanted in (
        [0.1940, 2.1614, -0.1721, 0.8491],
        [0.1391, -0.1082, -0.7174, 0.7566],
        [-0.5187, 1.2268, 0.6255, -0.9117],
    ):
        assert_close(generator.randn(4), wanted, max_abs=PRINTED)
    wanted = [[-0.9247, -0.4253, -2.6438], [0.1452, -0.1209, -0.5797]]
    assert_close(CudaGenerator(0, 80, 1024).randn((2, 3)), wanted, max_abs=PRINTED)


def test_numbers_printed_by_a_named_gpu() -> None:
    """PyTorch issue 97097: seed 14, normal_(5, 5**.5) of 1000 × 100 on an RTX A4000 (48 × 1536 threads).

    The last rows are second shares of their threads; on a GPU that holds them all at once they are others.
    """
    columns = [0, 1, 2, -3, -2, -1]
    last = [
        [8.6297, 2.3137, 6.2596, 7.9358, 4.4697, 2.7475],
        [7.0551, 7.8583, 3.9990, 4.1139, 8.9315, 4.2042],
        [2.7337, 2.2106, 7.7815, 8.2207, 6.5395, 4.2604],
    ]
    first = [2.8731, 5.2727, 2.9889, 1.6853, 9.6331, 6.6319]
    found = CudaGenerator(14, 48, 1536).randn((1000, 100)) * 5**0.5 + 5
    assert_close(found[0, columns], first, max_abs=3 * PRINTED)
    assert_close(found[-3:, columns], last, max_abs=3 * PRINTED)
    larger = CudaGenerator(14, 132, 2048).randn((1000, 100)) * 5**0.5 + 5
    assert_close(larger[0, columns], first, max_abs=3 * PRINTED)
    assert np.abs(larger[-3:, columns] - last).max() > 1


def test_small_draws_are_alike_on_gpus_that_hold_them() -> None:
    shape = (2, 4, 64, 64)
    assert np.array_equal(CudaGenerator(5, 16, 2048).randn(shape), CudaGenerator(5, 132, 2048).randn(shape))


def test_normal() -> None:
    """A million numbers: moments, and no dependence between the four that a thread makes at once."""
    numbers = CudaGenerator(3, 2, 1024).randn((512, 2048)).astype(np.float64)  # 2048 threads: rows are shares
    bound = 5 / numbers.size**0.5
    assert abs(numbers.mean()) < bound
    assert abs(numbers.var() - 1) < bound * 2**0.5
    assert abs((numbers**3).mean()) < bound * 15**0.5
    correlations = np.corrcoef(numbers[:4])
    assert np.abs(correlations - np.eye(4)).max() < 5 / 2048**0.5


def test_state() -> None:
    generator = CudaGenerator(-1, 3, 767)  # 767 threads hold two blocks of 256
    assert generator.seed == 2**64 - 1
    assert philox_threads(10_000, 3, 767) == 1536
    offsets = []
    for size in (1, 1536, 4 * 1536, 4 * 1536 + 1):
        generator.randn(size)
        offsets.append(generator.offset)
    assert offsets == [4, 8, 12, 20]
    assert philox_increment(4 * 1536 + 1, 1536) == 8
    assert generator.randn(0).shape == (0,)
    assert generator.randn((2, 0, 3)).shape == (2, 0, 3)
    assert generator.offset == 20
    out = np.empty((3, 5), np.float32)
    assert generator.randn((3, 5), out=out) is out
    assert not np.array_equal(CudaGenerator(2**32, 1, 256).randn(9), CudaGenerator(0, 1, 256).randn(9))


def test_refusals() -> None:
    with pytest.raises(InputError, match=r"seed is 1\.5"):
        CudaGenerator(1.5, 132, 2048)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="found 0 multiprocessors of 2048 threads"):
        CudaGenerator(0, 0, 2048)
    with pytest.raises(InputError, match="of 255 threads"):
        CudaGenerator(0, 1, 255)
    generator = CudaGenerator(0, 132, 2048)
    with pytest.raises(InputError, match="negative dimension"):
        generator.randn((-1, 2))
    with pytest.raises(InputError, match=r"out has shape \(2,\)"):
        generator.randn(3, out=np.empty(2, np.float32))
    with pytest.raises(InputError, match="out"):
        generator.randn(2, out=np.empty(2, np.float64))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="threads: found 0"):
        _C.philox_normal(0, 0, 0, np.empty(1, np.float32))
    assert generator.offset == 0
