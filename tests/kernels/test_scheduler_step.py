from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fastdiff.errors import InputError
from fastdiff.kernels import library, reference, scheduler_step
from tests.compare import assert_close

SHAPES = [
    pytest.param((0,), id="nothing"),
    pytest.param((1, 4, 0, 8), id="one empty dimension"),
    pytest.param((1,), id="one element: tail only"),
    pytest.param((3,), id="less than the narrowest register"),
    pytest.param((16,), id="exactly one AVX-512 register"),
    pytest.param((17,), id="a register and a tail of one"),
    pytest.param((111,), id="unrolled block, registers and tail of 15 with AVX-512"),
    pytest.param((64,), id="exactly one unrolled block with AVX-512"),
    pytest.param((), id="no dimensions: a scalar array"),
    pytest.param((2, 4, 9, 7), id="latents with odd sizes"),
    pytest.param((989,), id="prime-ish length"),
    pytest.param((2, 4, 64, 64), id="two Stable Diffusion latents"),
]


def random(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return np.asarray(rng.standard_normal(shape), np.float32).reshape(shape)


def to_double(value, of=lambda array: array):
    if isinstance(value, np.ndarray):
        return torch.from_numpy(np.asarray(of(value)).copy()).double()
    if isinstance(value, list):
        return [to_double(item, of) for item in value]
    return value


def expected(*arguments):
    """The reference in double precision."""
    return reference.scheduler_step(*to_double(list(arguments)))


def sum_of_sizes(*arguments):
    """What (out, guided) would be if no term cancelled another: rounding errors are relative to this."""
    sample, cond, uncond, guidance, sample_coef, output_coef, history, history_coefs, noise, noise_coef = (
        to_double(list(arguments), np.abs)
    )
    guided = cond if uncond is None else uncond + abs(guidance) * (cond + uncond)
    out = abs(sample_coef) * sample + abs(output_coef) * guided
    for coef, array in zip(history_coefs, history, strict=True):
        out = out + abs(coef) * array
    return out if noise is None else out + abs(noise_coef) * noise, guided


@pytest.mark.smoke
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("history_count", "with_uncond", "with_noise"),
    [
        pytest.param(0, False, False, id="Euler without guidance"),
        pytest.param(0, True, True, id="DDIM with noise"),
        pytest.param(3, True, False, id="PNDM"),
        pytest.param(8, False, True, id="the longest history"),
    ],
)
def test_matches_reference(rng, isa, shape, history_count, with_uncond, with_noise):
    sample, cond = random(rng, shape), random(rng, shape)
    uncond = random(rng, shape) if with_uncond else None
    noise = random(rng, shape) if with_noise else None
    history = [random(rng, shape) for _ in range(history_count)]
    coefs = [float(c) for c in rng.standard_normal(history_count)]
    arguments = (sample, cond, uncond, 7.5, 0.97, -0.21, history, coefs, noise, 0.4 if with_noise else 0.0)
    guided = np.full(shape, np.nan, np.float32)
    out = scheduler_step(*arguments, estimate=guided, isa=isa)
    assert out.dtype == np.float32
    terms = zip((out, guided), expected(*arguments), sum_of_sizes(*arguments), strict=True)
    for label, (found, wanted, size) in zip(("out", "guided"), terms, strict=True):
        # Half an ulp, 6e-8, for each rounding on the way; at most a dozen, which do not all point one way.
        size = size.numpy()
        assert_close(found / size, wanted.numpy() / size, max_abs=2.5e-7, label=label)


def test_estimate_is_exactly_the_output_by_default(rng, isa):
    """Also where the sample is none that 0 could be multiplied with."""
    cond, kept = random(rng, (111,)), np.empty(111, np.float32)
    cond[3] = -0.0
    sample = np.full(111, np.inf, np.float32)
    scheduler_step(sample, cond, None, 7.5, 1.0, 1.0, estimate=kept, isa=isa)
    assert np.array_equal(kept.view(np.int32), cond.view(np.int32))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("limit", [0.4, math.inf])
@pytest.mark.parametrize("coef", [0.0, -0.7])
def test_estimate_and_next_input(rng, isa, shape, limit, coef):
    """d is a combination of its own, clipped; the model's next input is written in the same call."""
    sample, cond, uncond, history, noise = (random(rng, shape) for _ in range(5))
    arguments = (sample, cond, uncond, 2.5, 0.97, -0.21, [history], [0.3], noise, 0.4)
    kept, following, again = (np.full(shape, np.nan, np.float32) for _ in range(3))
    numbers = {"estimate_sample": 1.2, "estimate_output": -0.6}
    numbers |= {"estimate_limit": limit, "estimate_coef": coef}
    out = scheduler_step(
        *arguments,
        **numbers,
        next_scale=0.3,
        estimate=kept,
        next_input=following,
        next_again=again,
        isa=isa,
    )
    wanted_out, wanted_kept = reference.scheduler_step(*to_double(list(arguments)), **numbers)
    assert_close(kept, wanted_kept.numpy(), max_abs=2e-6)
    assert_close(out, wanted_out.numpy(), max_abs=2e-6)
    assert np.array_equal(following, np.float32(0.3) * out)
    assert np.array_equal(again, following)
    assert np.abs(kept).max(initial=0) <= np.float32(limit)


def test_what_is_not_asked_for_changes_nothing_else(rng, isa):
    """The estimate's value does not depend on whether it is kept, nor the sample on the next input."""
    sample, cond = random(rng, (111,)), random(rng, (111,))
    arguments = (sample, cond, None, 1.0, 0.5, 0.25)
    numbers = {"estimate_sample": 1.2, "estimate_output": -0.6, "estimate_limit": 0.8, "estimate_coef": 0.9}
    buffers = {"estimate": np.empty_like(sample), "next_input": np.empty_like(sample)}
    found = scheduler_step(*arguments, **numbers, **buffers, isa=isa)
    assert np.array_equal(found, scheduler_step(*arguments, **numbers, isa=isa))


@pytest.mark.parametrize("size", [5, 64, 111], ids=["tail", "block", "block and tail"])
@pytest.mark.parametrize(
    ("out_is", "estimate_is"),
    [
        ("sample", "cond"),
        ("sample", "uncond"),
        ("cond", "sample"),
        ("uncond", "history"),
        ("history", "cond"),
        ("noise", "history"),
    ],
)
def test_outputs_may_be_inputs(rng, isa, size, out_is, estimate_is):
    arrays = {name: random(rng, (size,)) for name in ("sample", "cond", "uncond", "history", "noise")}

    def step(a, **outputs):
        return scheduler_step(
            a["sample"],
            a["cond"],
            a["uncond"],
            3.0,
            0.9,
            -0.3,
            [a["history"]],
            [0.7],
            a["noise"],
            0.2,
            estimate_sample=0.6,
            estimate_output=0.8,
            estimate_limit=1.0,
            estimate_coef=0.5,
            next_scale=0.25,
            isa=isa,
            **outputs,
        )

    wanted, kept, following = (np.empty(size, np.float32) for _ in range(3))
    step(arrays, out=wanted, estimate=kept, next_input=following)
    aliased = {name: array.copy() for name, array in arrays.items()}
    third = next(name for name in arrays if name not in (out_is, estimate_is))
    out = step(aliased, out=aliased[out_is], estimate=aliased[estimate_is], next_input=aliased[third])
    assert out is aliased[out_is]
    assert np.array_equal(out, wanted)
    assert np.array_equal(aliased[estimate_is], kept)
    assert np.array_equal(aliased[third], following)


def test_nothing_is_written_beyond_the_end(rng, isa):
    for size in range(1, 70):
        out, kept, following = (np.full(size + 32, 7.0, np.float32) for _ in range(3))
        a = random(rng, (size,))
        scheduler_step(
            *(a, a, None, 1.0, 1.0, 1.0),
            out=out[:size],
            estimate=kept[:size],
            next_input=following[:size],
            isa=isa,
        )
        assert np.array_equal(out[:size], a + a)
        assert all((array[size:] == 7.0).all() for array in (out, kept, following))


def test_unaligned_arrays(rng, isa):
    # A slice that starts one element in: no load or store may assume alignment.
    buffer = random(rng, (4, 200))
    sample, cond, uncond = (buffer[k, 1 : 1 + 111] for k in range(3))
    out = scheduler_step(sample, cond, uncond, 2.0, 1.0, 0.5, isa=isa)
    assert_close(out, expected(sample, cond, uncond, 2.0, 1.0, 0.5, [], [])[0], rel_l2=1e-6)


def test_nan_and_infinity_pass_through(isa):
    sample = np.zeros(5, np.float32)
    cond = np.array([1, np.nan, np.inf, -np.inf, 2], np.float32)
    clipped = np.empty_like(sample)
    out = scheduler_step(*(sample, cond, None, 1.0, 1.0, 2.0), estimate_limit=1.5, estimate=clipped, isa=isa)
    assert np.array_equal(out, np.array([2, np.nan, np.inf, -np.inf, 4], np.float32), equal_nan=True)
    assert np.array_equal(clipped, np.array([1, np.nan, 1.5, -1.5, 1.5], np.float32), equal_nan=True)


def test_noise_with_zero_coefficient_changes_nothing(rng):
    a, b, noise = (random(rng, (50,)) for _ in range(3))
    with_noise = scheduler_step(a, b, None, 1.0, 0.5, 0.5, noise=noise, noise_coef=0.0)
    without = scheduler_step(a, b, None, 1.0, 0.5, 0.5)
    assert np.array_equal(with_noise, without)


A = np.zeros((2, 6), np.float32)
READ_ONLY = np.zeros((2, 6), np.float32)
READ_ONLY.flags.writeable = False
LINE = np.zeros(20, np.float32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cond": A.astype(np.float64)}, "cond: found dtype float64, wanted float32"),
        ({"cond": A.astype(">f4")}, "cond: found dtype >f4, wanted float32"),
        ({"cond": [1.0]}, "cond: found list, wanted a float32 NumPy array"),
        ({"sample": None}, "sample: found NoneType, wanted a float32 NumPy array"),
        ({"uncond": A[:1]}, r"uncond: found shape \(1, 6\), wanted \(2, 6\)"),
        ({"noise": A.reshape(12)}, r"noise: found shape \(12,\), wanted \(2, 6\)"),
        ({"history": [A, A[:, :3]], "history_coefs": [1, 1]}, r"history\[1\]: found shape \(2, 3\)"),
        ({"cond": np.zeros((6, 2), np.float32).T}, "cond: .* not C-contiguous.*ascontiguousarray"),
        ({"history": [A]}, "history_coefs: found 0 coefficients, wanted one for each of the 1 arrays"),
        ({"history": [A] * 9, "history_coefs": [1] * 9}, "history: found 9 arrays, wanted at most 8"),
        ({"noise_coef": 0.5}, r"noise: found None with noise_coef 0\.5"),
        ({"out": READ_ONLY}, "out: found a read-only array"),
        ({"estimate": A[:, ::2]}, r"estimate: found shape \(2, 3\)"),
        ({"next_input": READ_ONLY}, "next: found a read-only array"),
        ({"next_again": A.copy()}, "next_again: found an array without next"),
        ({"estimate_limit": -1.0}, r"estimate_limit: found -1\.0+, wanted 0 or more"),
        ({"estimate_limit": math.nan}, "estimate_limit: found nan"),
        ({"isa": "sse9"}, "isa: unknown instruction set 'sse9'; wanted one of avx512, avx2, portable"),
    ],
)
def test_refuses_bad_arguments(change, message):
    arguments = {
        "sample": A,
        "cond": A,
        "uncond": None,
        "guidance": 1.0,
        "sample_coef": 1.0,
        "output_coef": 1.0,
    }
    with pytest.raises(InputError, match=message):
        scheduler_step(**{**arguments, **change})


def test_refuses_overlap():
    first, shifted, other = LINE[:10], LINE[4:14], np.zeros(10, np.float32)
    with pytest.raises(InputError, match="out: found an array that overlaps sample"):
        scheduler_step(first, other, None, 1.0, 1.0, 1.0, out=shifted)
    with pytest.raises(InputError, match="estimate: found an array that overlaps cond"):
        scheduler_step(other, first, None, 1.0, 1.0, 1.0, estimate=shifted)
    outputs = ("out", "estimate", "next_input", "next_again")
    buffers = {name: np.zeros(10, np.float32) for name in outputs}
    for index, name in enumerate(outputs):
        for before in outputs[:index]:
            given = buffers | {before: first, name: first}
            with pytest.raises(InputError, match=f"{name[:4]}.*overlaps {before[:4]}"):
                scheduler_step(other, other, None, 1.0, 1.0, 1.0, **given)


def test_torch_op():
    tensors = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(0)).unbind()
    arguments = (tensors[0], tensors[1], tensors[2], 2.0, 0.5, 0.25, [tensors[3]], [0.1])
    torch.library.opcheck(library.scheduler_step, arguments)
    torch.library.opcheck(library.scheduler_step, (tensors[0], tensors[1], None, 1.0, 0.5, 0.25, [], []))
    out, guided = torch.ops.fastdiff.scheduler_step(*arguments)
    wanted_out, wanted_guided = reference.scheduler_step(*arguments)
    assert torch.equal(out, wanted_out)
    assert torch.equal(guided, wanted_guided)
