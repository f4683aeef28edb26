"""The noise against torch.randn, bit for bit."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastdiff.errors import InputError
from fastdiff.samplers import BatchRows, Generator

SEEDS = [0, 1, 42, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**32 + 5, 2**63 - 1, 2**63, 2**64 - 1, -1, -(2**63)]


def same_bits(found: np.ndarray, wanted: torch.Tensor | np.ndarray) -> bool:
    """Equal including the sign of zero."""
    wanted = np.asarray(wanted.numpy() if isinstance(wanted, torch.Tensor) else wanted)
    return found.dtype == wanted.dtype == np.float32 and found.tobytes() == wanted.tobytes()


def both(seed: int) -> tuple[Generator, torch.Generator]:
    return Generator(seed), torch.Generator().manual_seed(seed)


@pytest.mark.smoke
@pytest.mark.parametrize("seed", SEEDS)
def test_seeds(seed):
    ours, theirs = both(seed)
    assert same_bits(ours.randn((2, 4, 9, 7)), torch.randn((2, 4, 9, 7), generator=theirs))
    assert ours.seed == theirs.initial_seed() % 2**64


def test_all_small_sizes():
    """1 to 15 are drawn in pairs, multiples of 16 in blocks; all others draw their last 16 numbers again."""
    for size in range(1, 131):
        for seed in range(3):
            ours, theirs = both(seed)
            assert same_bits(ours.randn(size), torch.randn(size, generator=theirs)), (size, seed)


@pytest.mark.parametrize(
    "shape",
    [
        pytest.param((), id="scalar"),
        pytest.param((0,), id="nothing"),
        pytest.param((3, 0, 5), id="an empty dimension"),
        pytest.param((111,), id="odd"),
        pytest.param((989,), id="prime-ish"),
        pytest.param((1, 4, 64, 64), id="Stable Diffusion at 512"),
        pytest.param((4, 4, 8, 12), id="four pictures, not square"),
        pytest.param((3, 4, 13, 17), id="three pictures of an odd size"),
        pytest.param((1000, 1001), id="a million"),
    ],
)
def test_shapes(shape):
    for seed in (0, 7):
        ours, theirs = both(seed)
        found = ours.randn(shape)
        assert found.shape == shape
        assert same_bits(found, torch.randn(shape, generator=theirs))


def test_many_seeds():
    for seed in range(400):
        ours, theirs = both(seed * 7919)
        assert same_bits(ours.randn(1024), torch.randn(1024, generator=theirs)), seed


def test_extreme_uniforms():
    """Four million numbers include u = 0, the largest u and nearly every exponent of 1 - u."""
    ours, theirs = both(5)
    assert same_bits(ours.randn(2**22), torch.randn(2**22, generator=theirs))


@settings(deadline=None, max_examples=150)
@given(seed=st.integers(-(2**63), 2**64 - 1), sizes=st.lists(st.integers(0, 70), min_size=1, max_size=12))
def test_state_over_several_calls(seed, sizes):
    """Small calls leave the second number of a pair behind, which large ones neither use nor drop."""
    ours, theirs = both(seed)
    for size in sizes:
        assert same_bits(ours.randn(size), torch.randn(size, generator=theirs))


def test_latents_of_several_pictures_then_noise_of_each_step():
    ours, theirs = both(123)
    for _ in range(6):
        assert same_bits(ours.randn((3, 4, 8, 8)), torch.randn((3, 4, 8, 8), generator=theirs))


@pytest.mark.parametrize(("begin", "rows"), [(0, 5), (0, 1), (3, 2), (2, 1)])
def test_rows_of_a_batch_that_is_drawn_at_once(begin, rows):
    """5 x 4 x 3 x 7 is no multiple of 16: its last numbers are drawn again, which parts would not be."""
    ours, theirs = Generator(8), torch.Generator().manual_seed(8)
    noise = BatchRows(ours, 5, begin)
    out = np.empty((rows, 4, 3, 7), np.float32)
    for step in range(4):
        found = noise.randn(out.shape, out=out if step % 2 else None)
        assert (found is out) == bool(step % 2)
        wanted = torch.randn((5, 4, 3, 7), generator=theirs)
        assert same_bits(found, wanted[begin : begin + rows].contiguous())


def test_rows_that_a_batch_does_not_have():
    with pytest.raises(InputError, match="rows 4 to 6, wanted within a batch of 5"):
        BatchRows(Generator(0), 5, 4).randn((2, 3))
    with pytest.raises(InputError, match=r"out has shape \(3,\)"):
        BatchRows(Generator(0), 5, 4).randn((1, 3), out=np.empty(3, np.float32))


def test_generators_are_independent():
    first, second = Generator(1), Generator(1)
    a = first.randn(20)
    first.randn(20)
    assert same_bits(second.randn(20), a)


def test_out_is_filled_and_returned():
    out = np.full((2, 3, 7), np.nan, np.float32)
    ours, theirs = both(3)
    assert ours.randn((2, 3, 7), out=out) is out
    assert same_bits(out, torch.randn((2, 3, 7), generator=theirs))


@pytest.mark.parametrize("capability", ["default", "avx2", "avx512"])
def test_the_way_of_other_processors(capability):
    """torch told to use less than this CPU has: the C library's log, sin and cos, or Cephes'."""
    code = (
        "import sys, torch; print(torch.backends.cpu.get_cpu_capability(), file=sys.stderr);"
        "g = torch.Generator().manual_seed(9);"
        "sys.stdout.buffer.write(torch.randn(50007, generator=g).numpy().tobytes())"
    )
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": capability}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment, check=True)
    used = run.stderr.decode().split()[-1]
    if used.lower() != capability:
        pytest.skip(f"torch cannot use {capability} here, it used {used}")
    method = "libm" if capability == "default" else "cephes"
    found = Generator(9, box_muller=method).randn(50007)
    assert same_bits(found, np.frombuffer(run.stdout, np.float32))


def test_both_ways_agree():
    ours, other = (Generator(4, box_muller=method).randn(10_000) for method in ("cephes", "libm"))
    assert np.abs(ours - other).max() <= 3e-6


@pytest.mark.parametrize("seed", [2**64, -(2**63) - 1])
def test_seed_out_of_range(seed):
    with pytest.raises(InputError, match=rf"seed is {seed}, wanted -2\*\*63 to 2\*\*64 - 1"):
        Generator(seed)


@pytest.mark.parametrize("seed", [1.0, "1", None, True])
def test_seed_that_is_no_integer(seed):
    with pytest.raises(InputError, match="wanted an integer"):
        Generator(seed)


def test_numpy_seed():
    assert same_bits(Generator(np.int64(5)).randn(3), Generator(5).randn(3))


def test_bad_shapes_and_outputs():
    generator = Generator(0)
    with pytest.raises(InputError, match=r"\(2, -1\) has a negative dimension"):
        generator.randn((2, -1))
    with pytest.raises(InputError, match=r"out has shape \(3,\), wanted \(2,\)"):
        generator.randn(2, out=np.empty(3, np.float32))
    with pytest.raises(InputError, match="float64"):
        generator.randn(2, out=np.empty(2))
    with pytest.raises(InputError, match="contiguous"):
        generator.randn((2, 2), out=np.empty((2, 4), np.float32)[:, ::2])
    with pytest.raises(InputError, match="box_muller"):
        Generator(0, box_muller="exact")
