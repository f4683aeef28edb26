"""The algebra of guidance: what folds, what runs, which outputs a step needs, what is refused."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastdiff.errors import InputError
from fastdiff.samplers import (
    Guidance,
    NoiseSchedule,
    Point,
    Prediction,
    Step,
    StepTable,
    make_table,
    read_guidance,
    sample,
    step_at,
)
from fastdiff.samplers.guidance import (
    APG,
    CFG,
    SHAPES,
    CFGPlusPlus,
    CFGZeroStar,
    Interval,
    PerpNeg,
    PerStep,
    Schedule,
)
from fastdiff.samplers.guidance.read import written
from tests.compare import assert_close
from tests.samplers.configs import STABLE_DIFFUSION
from tests.samplers.guided import guided_run, last
from tests.samplers.oracle import EXACT, model

SCHEDULE = NoiseSchedule.from_config(STABLE_DIFFUSION)
CLIPPED = NoiseSchedule.from_config({**STABLE_DIFFUSION, "clip_sample": True})
TABLES = {name: make_table(name, SCHEDULE, 12) for name in EXACT}
SHAPE = (2, 4, 5, 3)
LATENTS = np.random.default_rng(1).standard_normal(SHAPE).astype(np.float32)

ALL = {
    "plain": Guidance(3.0),
    "interval and schedule": Guidance(
        3.0, schedule=Schedule("linear", floor=1.5), interval=Interval(0.2, 0.8, "share")
    ),
    "rescale": Guidance(4.0, rescale=0.7, interval=Interval(0.0, 0.5, "share")),
    "zero star": Guidance(4.0, CFGZeroStar(2), rescale=0.3),
    "apg": Guidance(6.0, APG(0.3, -0.5, 2.0, "output"), schedule=Schedule("cosine"), rescale=0.5),
    "all at once": Guidance(
        6.0,
        APG(0.0, 0.4, 3.0, "output", "uncond"),
        Schedule("powered_cosine", 2.0, floor=2.0),
        Interval(0.1, 0.9, "share"),
        0.7,
        original=True,
    ),
    "perp neg": Guidance(3.0, PerpNeg(1.5), rescale=0.2),
}


def denoise(x: np.ndarray, timestep: float, guided: int) -> tuple[np.ndarray | None, ...]:
    parts = [model(factor * x, timestep).astype(x.dtype) for factor in (1, 0.5, -0.3)[: guided + 1]]
    return tuple(parts) if guided else (*parts, None)


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


def levels(draw: st.DrawFn, count: int, kind: str) -> list[Point]:
    """Points that go down in noise, of one process and prediction."""
    prediction = draw(st.sampled_from(list(Prediction)))
    ratio, ratios = draw(st.floats(0.5, 50)), []
    for _ in range(count):
        ratios.append(ratio)
        ratio /= draw(st.floats(1.01, 5))
    points = []
    for t, ratio in enumerate(ratios):
        if kind == "vp":
            alpha, scale = 1 / math.hypot(1, ratio), 1.0
        elif kind == "flow":
            alpha, scale = 1 / (1 + ratio), 1.0
        else:
            alpha, scale = 1.0, 1 / math.hypot(1, ratio)
        points.append(Point(float(t), alpha, alpha * ratio, prediction, scale))
    return points


@st.composite
def first_order_tables(draw: st.DrawFn) -> StepTable:
    """A·x₀ + B·ε with noise, for any process: DDIM with η, ancestral steps and the like."""
    points = levels(draw, draw(st.integers(2, 6)), draw(st.sampled_from(["vp", "flow", "ve"])))
    rows = []
    for point, following in pairwise(points):
        churn = draw(st.floats(0, 0.5))
        kept = math.sqrt(1 - churn**2) * following.sigma
        update = following.alpha * point.x0 + kept * point.epsilon
        rows.append(step_at(point, update, noise_coef=churn * following.sigma or None))
    return StepTable("random", tuple(rows))


@settings(max_examples=60, deadline=None)
@given(first_order_tables(), st.floats(0, 3), st.integers(0, 2**32 - 1))
def test_folded_cfg_pp_is_the_unfolded(table: StepTable, scale: float, seed: int) -> None:
    """x' = A·x₀(guided) + B·ε(uncond), evaluated as it is written, for outputs of any kind."""
    rng = np.random.default_rng(seed)
    outputs = rng.standard_normal((len(table.steps), 2, 7))
    noises = rng.standard_normal((len(table.steps), 7))
    start = rng.standard_normal(7)
    calls, draws = iter(outputs), iter(noises)

    def given_outputs(x: np.ndarray, timestep: float, guided: int) -> tuple[np.ndarray, ...]:
        return tuple(next(calls))

    run = guided_run(table, Guidance(scale, CFGPlusPlus()), given_outputs, start, lambda: next(draws))
    draws_again = iter(noises)
    x = start
    next(run)
    for (_, found), step, (cond, uncond) in zip(run, table.steps, outputs, strict=True):
        x0, epsilon = step.point.x0, step.point.epsilon
        (a, b), *_ = np.linalg.lstsq(
            np.array([[x0.sample, epsilon.sample], [x0.output, epsilon.output]]),
            np.array([step.update.sample, step.update.output]),
            rcond=None,
        )
        guided = uncond + scale * (cond - uncond)
        clean = x0.sample * x + x0.output * guided
        noise = epsilon.sample * x + epsilon.output * uncond
        x = a * clean + b * noise
        if step.noise_coef is not None:
            x = x + step.noise_coef * next(draws_again)
        size = np.abs(a * clean).max() + np.abs(b * noise).max() + 1
        assert np.abs(found - x).max() <= 1e-8 * size
        x = found


@st.composite
def any_tables(draw: st.DrawFn) -> StepTable:
    """Rows with history, clipping and saves, whatever they mean."""
    number = st.floats(-1.2, 1.2)
    points = levels(draw, draw(st.integers(2, 6)), "vp")
    table = draw(st.sampled_from(list(TABLES.values())))
    rows = [
        replace(
            step,
            update=replace(step.update, output=draw(number)),
            noise_coef=draw(st.none() | number),
            point=points[index % len(points)],
        )
        for index, step in enumerate(table.steps[:6])
    ]
    return replace(table, steps=tuple(rows))


@settings(max_examples=40, deadline=None)
@given(
    any_tables(),
    st.floats(-2, 9),
    st.sampled_from(sorted(SHAPES)),
    st.booleans(),
    st.none() | st.tuples(st.floats(0, 1), st.floats(0, 1)),
)
def test_folding_equals_combining(
    table: StepTable, scale: float, shape: str, original: bool, share: tuple[float, float] | None
) -> None:
    """Linear guidance as a scale per row, and the same computed from the outputs step by step."""
    interval = None if share is None else Interval(min(share), max(share), "share")
    guidance = Guidance(scale, CFG(), Schedule(shape), interval, original=original)
    x = np.random.default_rng(0).standard_normal((1, 6))

    def combine(sample: np.ndarray, timestep: float, guided: int) -> tuple[np.ndarray, None]:
        index = next(rows)
        w = guidance.schedule.scales(scale, len(table.steps))[index] + original
        cond, uncond = denoise(sample, timestep, 1)[:2]
        count = len(table.steps)
        inside = interval is None or int(interval.low * count) <= index < int(interval.high * count)
        return (uncond + w * (cond - uncond) if inside else cond), None

    rows = iter(range(len(table.steps)))
    folded = [y for _, y in guided_run(table, guidance, denoise, x, lambda: np.ones(6))]
    wanted = [y for _, y in guided_run(table, 1.0, combine, x, lambda: np.ones(6))]
    assert_close(np.array(folded), np.array(wanted), rel_l2=1e-9)


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


@pytest.mark.parametrize("guidance", [*ALL.values(), Guidance(0.6, CFGPlusPlus(), interval=Interval())])
def test_json_values_give_it_back(guidance: Guidance) -> None:
    text = json.dumps(written(guidance), allow_nan=False)
    assert read_guidance(json.loads(text)) == guidance


def test_short_forms() -> None:
    assert read_guidance({"scale": 4}) == Guidance(4)
    assert read_guidance({"scale": 4, "method": "apg", "schedule": "linear"}) == Guidance(
        4, APG(), Schedule("linear")
    )
    infinite = Guidance(4, APG(threshold=math.inf), interval=Interval(1.0))
    assert read_guidance(written(infinite)) == infinite


BAD: list[tuple[dict[str, Any], str]] = [
    ({}, "wanted an entry 'scale'"),
    ({"scale": 5, "strength": 1}, "no entry 'strength'; it has scale, method"),
    ({"scale": "5"}, "scale of guidance is '5', wanted a finite number"),
    ({"scale": math.nan}, "scale of guidance is nan"),
    ({"scale": True}, "scale of guidance is True"),
    ({"scale": 5, "method": "abg"}, "unknown guidance method 'abg'; did you mean apg"),
    ({"scale": 5, "method": 7}, "the guidance method is 7, wanted an object"),
    ({"scale": 5, "method": {"name": ["cfg"]}}, "unknown guidance method"),
    ({"scale": 5, "method": {"name": "cfg", "eta": 1}}, "'cfg' has no entry 'eta'; it has none"),
    ({"scale": 5, "method": {"name": "apg", "eta": math.inf}}, "eta of guidance 'apg' is inf"),
    ({"scale": 5, "method": {"name": "apg", "threshold": 0}}, "threshold of guidance 'apg' is 0"),
    (
        {"scale": 5, "method": {"name": "apg", "space": "x0"}},
        "space of guidance 'apg' is 'x0', wanted denoised",
    ),
    ({"scale": 5, "method": {"name": "apg", "base": "x"}}, "base of guidance 'apg' is 'x'"),
    ({"scale": 5, "method": {"name": "cfg_zero_star", "zero_steps": -1}}, "zero_steps .* is -1"),
    ({"scale": 5, "method": {"name": "perp_neg", "weight": None}}, "weight of guidance 'perp_neg' is None"),
    ({"scale": 5, "schedule": "square"}, "schedule 'square' is unknown; use one of constant, linear"),
    ({"scale": 5, "schedule": {"shape": "linear", "power": 2}}, "'linear' has no power"),
    ({"scale": 5, "schedule": {"shape": "power", "power": 0}}, "power .* is 0, wanted a number above 0"),
    ({"scale": 5, "schedule": {"shape": "sine", "floor": math.nan}}, "floor .* is nan"),
    ({"scale": 5, "schedule": {"factors": []}}, "factors .* wanted numbers"),
    ({"scale": 5, "schedule": {"factors": [1, "a"]}}, "factor .* is 'a'"),
    ({"scale": 5, "interval": [1, 2]}, "interval is .*wanted an object"),
    ({"scale": 5, "interval": {"low": 2, "high": 1}}, "interval is 2 to 1, wanted 0 ≤ low ≤ high"),
    ({"scale": 5, "interval": {"low": -1}}, "interval is -1 to inf"),
    ({"scale": 5, "interval": {"low": 0, "high": math.nan}}, "interval is 0 to nan"),
    ({"scale": 5, "interval": {"low": 0, "high": 2, "unit": "share"}}, "0 ≤ low ≤ high ≤ 1"),
    ({"scale": 5, "interval": {"unit": "steps"}}, "unit .* is 'steps', wanted sigma or share"),
    ({"scale": 5, "rescale": 1.5}, "rescale is 1.5, wanted 0 to 1"),
    ({"scale": 5, "original": 1}, "original of guidance is 1, wanted true or false"),
    ({"scale": 1, "method": "cfg_pp", "rescale": 0.5}, "'cfg_pp' cannot be rescaled"),
    ({"scale": 1, "method": "cfg_pp", "original": True}, "'cfg_pp' has no original formulation"),
    ({"scale": 1, "method": "perp_neg", "original": True}, "'perp_neg' has no original formulation"),
]


@pytest.mark.parametrize(("value", "says"), BAD)
def test_bad_values_are_named(value: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says) as caught:
        read_guidance(value)
    assert "\n" not in str(caught.value)


def test_parts_of_another_type() -> None:
    with pytest.raises(InputError, match="method of guidance is of type str, wanted one of"):
        Guidance(5.0, "apg")  # type: ignore[arg-type]


def placeless(table: StepTable) -> StepTable:
    return replace(table, steps=tuple(replace(step, point=None) for step in table.steps))


@pytest.mark.parametrize(
    ("guidance", "table", "says"),
    [
        (Guidance(0.6, CFGPlusPlus()), TABLES["dpmpp_2m"], "needs steps of first order.*use sampler 'ddim'"),
        (Guidance(0.6, CFGPlusPlus()), TABLES["pndm"], "needs steps of first order"),
        (Guidance(0.6, CFGPlusPlus()), make_table("ddim", CLIPPED, 5), "without history and clipping"),
        (Guidance(0.6, CFGPlusPlus()), placeless(TABLES["ddim"]), "needs steps of first order"),
        (Guidance(5.0, interval=Interval(0.1, 5)), placeless(TABLES["pndm"]), "'pndm' has steps without"),
        (Guidance(5.0, APG()), placeless(TABLES["ddim"]), "'apg' needs the noise level of every step"),
        (Guidance(5.0, schedule=PerStep((1.0, 2.0))), TABLES["ddim"], "2 entries.* makes 12 evaluations"),
    ],
)
def test_tables_that_cannot_have_it(guidance: Guidance, table: StepTable, says: str) -> None:
    with pytest.raises(InputError, match=says) as caught:
        guidance.check(table)
    assert "\n" not in str(caught.value)


def test_cfg_pp_at_a_level_where_the_step_stays() -> None:
    point = Point(3.0, 1.0, 2.0)
    table = StepTable("still", (step_at(point, point.to(point)),))
    with pytest.raises(InputError, match="stays at its noise level; use a spacing without repeated"):
        Guidance(0.6, CFGPlusPlus()).fold(table)


def test_what_does_not_fold() -> None:
    for guidance, name in ((ALL["apg"], "apg"), (ALL["rescale"], "rescale")):
        with pytest.raises(InputError, match=f"{name!r} is not linear"):
            guidance.fold(TABLES["ddim"])


def test_a_denoiser_without_the_outputs() -> None:
    def conditional(x: np.ndarray, timestep: float, guided: int) -> tuple[np.ndarray | None, ...]:
        return denoise(x, timestep, 0)

    with pytest.raises(InputError, match="'perp_neg' needs 3 outputs of the denoiser, found 1"):
        sample(TABLES["ddim"], conditional, LATENTS, guidance=ALL["perp neg"])
    with pytest.raises(InputError, match="denoiser gave no output without the prompt"):
        sample(TABLES["ddim"], conditional, LATENTS, guidance=ALL["plain"])


def test_methods_know_their_step() -> None:
    """The scale of CFG++ grows with the number of steps: each one undoes less of the guidance."""
    for steps in (10, 20, 40):
        table, _ = Guidance(0.6, CFGPlusPlus()).fold(make_table("ddim", SCHEDULE, steps))
        first: Step = table.steps[0]
        assert first.point is not None
        following = table.steps[1].point
        assert following is not None
        wanted = 0.6 * first.point.ratio / (first.point.ratio - following.ratio)
        assert first.guidance == pytest.approx(wanted, rel=1e-9)
