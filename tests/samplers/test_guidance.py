"""The algebra of guidance: what folds, what runs, which outputs a step needs, what is refused."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from fastdiff.errors import InputError
from fastdiff.samplers import (
    SAMPLERS,
    Generator,
    Guidance,
    make_table,
    sample,
)
from fastdiff.samplers.guidance import (
    APG,
    SHAPES,
    CFGPlusPlus,
    CFGZeroStar,
    Interval,
    PerpNeg,
    PerStep,
    Schedule,
)
from tests.compare import assert_close
from tests.samplers.guidances import ALL, LATENTS, SCHEDULE, SHAPE, TABLES, denoise
from tests.samplers.guided import guided_run, last


def images_apart(x: np.ndarray, timestep: float, guided: int) -> tuple[np.ndarray | None, ...]:
    """A denoiser that gives an image the same output in any batch."""
    rows = [denoise(image[None], timestep, guided) for image in x]
    return tuple(None if parts[0] is None else np.concatenate(parts) for parts in zip(*rows, strict=True))


@pytest.mark.smoke
@pytest.mark.parametrize("guidance", ALL.values(), ids=ALL)
@pytest.mark.parametrize("name", TABLES)
def test_the_loop_equals_the_run_in_float64(name: str, guidance: Guidance) -> None:
    table = TABLES[name]
    found = sample(table, denoise, LATENTS * np.float32(table.init_noise_sigma), guidance=guidance)
    assert_close(found, last(guided_run(table, guidance, denoise, LATENTS)), rel_l2=2e-5)


WITH_TABLE = tuple(name for name, sampler in SAMPLERS.items() if not sampler.adaptive)


@pytest.mark.parametrize("name", WITH_TABLE)
def test_every_sampler_takes_guidance_with_state(name: str) -> None:
    """Every step has a noise level, so that an interval and the predicted clean sample are known."""
    table = make_table(name, SCHEDULE, 5)
    guidance = Guidance(3.0, APG(0.5, -0.5, 2.0), Schedule("sine", floor=1.5), Interval(0.3, 8.0), 0.5)
    assert 2 in guidance.evaluations(table)
    start = LATENTS * np.float32(table.init_noise_sigma)
    found = sample(table, denoise, start, guidance=guidance, noise=Generator(1))
    noise = Generator(1)
    wanted = last(guided_run(table, guidance, denoise, LATENTS, lambda: noise.randn(SHAPE)))
    assert_close(found, wanted, rel_l2=1e-4)


@pytest.mark.parametrize("name", WITH_TABLE)
def test_every_sampler_folds_cfg_pp_or_says_why_not(name: str) -> None:
    table = make_table(name, SCHEDULE, 5)
    guidance = Guidance(0.6, CFGPlusPlus())
    saves = any(step.save_output is not None or step.save_sample is not None for step in table.steps)
    if saves or any(step.history or step.estimate or not step.linear for step in table.steps):
        with pytest.raises(InputError, match="first order"):
            guidance.fold(table)
    else:
        assert all(math.isfinite(step.guidance or math.nan) for step in guidance.fold(table)[0].steps)


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_plain_guidance_is_its_scale_bit_for_bit(name: str, scale: float) -> None:
    """Also without any guidance, which asks for no other output."""
    table = TABLES[name]
    wanted = sample(table, denoise, LATENTS, guidance=scale)
    for guidance in (Guidance(scale), Guidance(scale - 1, original=True)):
        assert guidance.fold(table) == (table, scale)
        assert np.array_equal(sample(table, denoise, LATENTS, guidance=guidance), wanted)


@pytest.mark.parametrize(
    "guidance",
    [
        Guidance(1.0, APG(space="output"), rescale=0.5),
        Guidance(1.0, CFGZeroStar(0)),
        Guidance(5.0, rescale=1.0, interval=Interval(0.5, 0.5, "share")),
        Guidance(5.0, interval=Interval(100, 200)),
    ],
)
def test_no_guidance_is_the_prompt_bit_for_bit(guidance: Guidance) -> None:
    def alone(x: np.ndarray, timestep: float, guided: int) -> tuple[np.ndarray, None]:
        assert not guided
        return denoise(x, timestep, 0)

    table = TABLES["ddim"]
    assert set(guidance.evaluations(table)) == {1}
    found = sample(table, alone, LATENTS, guidance=guidance)
    assert np.array_equal(found, sample(table, denoise, LATENTS))


@pytest.mark.parametrize("guidance", ALL.values(), ids=ALL)
def test_an_image_does_not_depend_on_its_batch(guidance: Guidance) -> None:
    table = TABLES["euler"]
    many = sample(table, images_apart, LATENTS, guidance=guidance)
    for index in range(len(LATENTS)):
        one = sample(table, images_apart, LATENTS[index : index + 1], guidance=guidance)
        assert np.array_equal(one[0], many[index])


@pytest.mark.parametrize("guidance", [ALL["apg"], ALL["all at once"], ALL["zero star"]])
def test_a_run_leaves_no_state(guidance: Guidance) -> None:
    first, second = (sample(TABLES["ddim"], denoise, LATENTS, guidance=guidance) for _ in range(2))
    assert np.array_equal(first, second)


EVALUATIONS = [
    (Guidance(3.0), [2] * 10),
    (Guidance(1.0), [1] * 10),
    (Guidance(0.0), [2] * 10),
    (Guidance(0.0, original=True), [1] * 10),
    (Guidance(3.0, interval=Interval(0.3, 0.75, "share")), [1] * 3 + [2] * 4 + [1] * 3),
    (Guidance(3.0, CFGZeroStar(2), interval=Interval(0.1, 0.5, "share")), [0] * 2 + [2] * 3 + [1] * 5),
    (Guidance(3.0, PerpNeg(), interval=Interval(0.0, 0.2, "share")), [3] * 2 + [1] * 8),
    (Guidance(1.0, PerpNeg()), [3] * 10),
    (Guidance(1.0, CFGPlusPlus()), [2] * 10),
    (Guidance(2.0, schedule=PerStep((1.0, 0.5, 0.0) + (1.0,) * 7)), [2, 1] + [2] * 8),
]


@pytest.mark.parametrize(("guidance", "wanted"), EVALUATIONS)
def test_outputs_that_each_step_needs(guidance: Guidance, wanted: list[int]) -> None:
    table = make_table("ddim", SCHEDULE, 10)
    assert list(guidance.evaluations(table)) == wanted
    assert guidance.branches == max(wanted)
    guidance.check(table)
    if guidance.linear:
        folded, call = guidance.fold(table)
        scales = [call if step.guidance is None else step.guidance for step in folded.steps]
        if not isinstance(guidance.method, CFGPlusPlus):
            assert [1 if scale == 1 else 2 for scale in scales] == wanted
        assert (call == 1) == (set(wanted) == {1})
    asked: list[int] = []

    def record(x: np.ndarray, timestep: float, guided: int) -> tuple[np.ndarray | None, ...]:
        asked.append(guided + 1)
        return denoise(x, timestep, guided)

    sample(table, record, LATENTS, guidance=guidance)
    assert asked == [count for count in wanted if count]


@pytest.mark.parametrize("sampler", ["ddim", "euler"])
def test_interval_in_noise_levels(sampler: str) -> None:
    """low < σ ≤ high with σ = noise/signal, the same for every form of the state."""
    table = make_table(sampler, SCHEDULE, 20)
    ratios = [step.point.ratio for step in table.steps if step.point is not None]
    low, high = ratios[12], ratios[5]
    assert Interval(low, high).holds(table) == tuple(5 <= index < 12 for index in range(20))
    assert all(Interval().holds(table))


def test_schedules_have_the_mean_of_the_scale() -> None:
    for shape in SHAPES:
        scales = Schedule(shape).scales(3.0, 400)
        mean = 1.5 if shape == "powered_cosine" else 3.0
        assert np.mean(scales) == pytest.approx(mean, rel=1e-4)
    assert Schedule("power", 3.0).scales(1.0, 2) == pytest.approx((4 * 0.25**3, 4 * 0.75**3))
    assert Schedule("powered_cosine", 2.0).scales(1.0, 1) == pytest.approx(((1 - math.cos(math.pi / 4)) / 2,))


def test_schedules_rise_and_fall_as_they_are_called() -> None:
    """Linear and cosine increase, as the noise goes; their inverse and sine decrease."""
    for shape in ("linear", "cosine", "power", "powered_cosine"):
        assert np.all(np.diff(Schedule(shape).scales(2.0, 9)) > 0)
    for shape, other in (("inverse_linear", "linear"), ("sine", "cosine")):
        assert Schedule(shape).scales(2.0, 9) == pytest.approx(Schedule(other).scales(2.0, 9)[::-1])
    for shape, sign in (("v_shape", 1), ("lambda_shape", -1)):
        scales = np.array(Schedule(shape).scales(2.0, 9))
        assert np.all(np.diff(scales[:5]) * sign < 0)
        assert scales == pytest.approx(scales[::-1])
    assert min(Schedule("linear", floor=1.5).scales(2.0, 9)) == 1.5
    assert PerStep((1.0, 2.0)).scales(3.0, 2) == (3.0, 6.0)


def test_a_rows_own_scale_stays() -> None:
    table = make_table("ddim", SCHEDULE, 3).with_guidance((None, 7.0, 1.0))
    guidance = Guidance(2.0, schedule=PerStep((1.0, 2.0, 3.0)))
    assert guidance.scales(table) == (2.0, 7.0, None)
    assert [step.guidance for step in guidance.fold(table)[0].steps] == [2.0, 7.0, 1.0]


def test_variance_channels_are_those_with_the_prompt() -> None:
    """The second half of the output is no part of norms and spreads."""
    table = replace(make_table("ddim", SCHEDULE, 1), variance_channels=True)
    rng = np.random.default_rng(3)
    cond, uncond = rng.standard_normal((2, 2, 8, 5)).astype(np.float32)
    guidance = Guidance(5.0, APG(0.0, 0.0, 1.0, "output"), rescale=0.5)
    _, _, wrapped = guidance.bind(table, lambda x, t, guided: (cond, uncond))
    found = wrapped(np.zeros((2, 4, 5), np.float32), 0.0, 0)[0]
    plain = replace(table, variance_channels=False)
    _, _, wrapped = guidance.bind(plain, lambda x, t, guided: (cond[:, :4], uncond[:, :4]))
    assert np.array_equal(found[:, :4], wrapped(np.zeros((2, 4, 5), np.float32), 0.0, 0)[0])
    assert np.array_equal(found[:, 4:], cond[:, 4:])
    zero = Guidance(5.0, CFGZeroStar(1)).bind(table, denoise)[2](np.zeros((2, 4, 5), np.float32), 0.0, 0)[0]
    assert zero.shape == (2, 8, 5)
    assert not zero.any()


DEGENERATE = [Guidance(3.0, CFGZeroStar(0)), Guidance(3.0, PerpNeg()), Guidance(3.0, APG(), rescale=1.0)]


@pytest.mark.parametrize("guidance", DEGENERATE)
@pytest.mark.parametrize("same", [True, False])
def test_equal_halves_and_zeros_stay_finite(guidance: Guidance, same: bool) -> None:
    """No norm divides by 0: with equal outputs every method gives that output, also where it is 0."""
    value = 1.0 if same else 0.0

    def constant(x: np.ndarray, timestep: float, guided: int) -> tuple[np.ndarray, ...]:
        return (np.full_like(x, value),) * 3

    found = sample(TABLES["ddim"], constant, LATENTS, guidance=guidance)
    assert_close(found, sample(TABLES["ddim"], constant, LATENTS), rel_l2=1e-6)
