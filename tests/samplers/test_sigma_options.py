"""Options, errors and edge cases of the solvers in σ."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from fastdiff.errors import InputError
from fastdiff.samplers import SAMPLERS, NoiseSchedule, StepTable, make_table, sampler_of
from fastdiff.samplers.placement import SIGMA_SPACINGS
from fastdiff.samplers.restart import PRESETS
from fastdiff.zoo.mixture import GaussianMixture
from tests.samplers.exact import START, states
from tests.samplers.oracle import table_run

SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
ON_A_CHAIN = (
    *("euler", "euler_ancestral", "heun", "dpm2", "dpm2_ancestral", "lms", "edm_heun", "edm_stochastic"),
    *("dpmpp_sde", "dpmpp_2s_ancestral", "dpmpp_2m_sde_eta", "dpmpp_3m_sde", "res_multistep"),
    *("res_multistep_ancestral", "er_sde", "restart"),
)
CONTINUOUS = ("edm_euler", "edm_dpmpp", "cosine_dpmpp_sde", "karras_ve")
CLIPPING = ("heun", "restart", "dpmpp_sde", "dpmpp_2s_ancestral", "dpmpp_3m_sde", "er_sde", "res_multistep")
NAMES = (*ON_A_CHAIN, *CONTINUOUS)
CLASSES = {
    "EulerDiscreteScheduler": "euler",
    "EulerAncestralDiscreteScheduler": "euler_ancestral",
    "HeunDiscreteScheduler": "heun",
    "KDPM2DiscreteScheduler": "dpm2",
    "KDPM2AncestralDiscreteScheduler": "dpm2_ancestral",
    "LMSDiscreteScheduler": "lms",
    "DPMSolverSDEScheduler": "dpmpp_sde",
    "EDMEulerScheduler": "edm_euler",
    "EDMDPMSolverMultistepScheduler": "edm_dpmpp",
    "CosineDPMSolverMultistepScheduler": "cosine_dpmpp_sde",
    "KarrasVeScheduler": "karras_ve",
}


def table_of(name: str, steps: int, options: dict | None = None, config: dict | None = None) -> StepTable:
    return make_table(
        name, NoiseSchedule.from_config(SD if config is None else config), steps, options=options
    )


def check(table: StepTable) -> None:
    """Finite, with slots that were saved before and exist, and no more history than the kernel takes."""
    assert table.is_finite()
    saved: set[int] = set()
    for step in table.steps:
        slots = [slot for slot, _ in step.history]
        assert set(slots) <= saved
        assert len(set(slots)) == len(slots)
        assert len(slots) + (step.estimate is not None) <= 8
        assert step.point is not None
        assert step.noise_coef is None or step.noise_coef >= 0
        saved |= {step.save_output, step.save_sample} - {None}
        assert all(slot < table.slots for slot in saved)


# karras_ve refuses a single step, which the test of refusals asserts.
@pytest.mark.parametrize(
    ("name", "steps"),
    sorted({*itertools.product(NAMES, (1, 2, 3, 4, 50, 1000))} - {("karras_ve", 1)}),
)
def test_one_to_a_thousand_steps(name, steps):
    """A data set of one picture is reached whatever the way: at σ = 0 the sample is the denoiser's."""
    table = table_of(name, steps)
    check(table)
    if name != "karras_ve":  # its σ of 10,000 leaves rounding errors
        picture = np.array([[0.3, -1.2]])
        data = GaussianMixture(np.ones(1), picture, np.zeros(1))
        assert np.abs(states(table, data, table.init_noise_sigma * START)[-1] - picture).max() <= 1e-7


@pytest.mark.parametrize(("class_name", "name"), CLASSES.items())
def test_classes(class_name, name):
    assert sampler_of({"_class_name": class_name}) == name
    assert SAMPLERS[name].any_steps == (name in CONTINUOUS)


@pytest.mark.parametrize("name", NAMES)
def test_one_level_for_all_steps(name):
    """σ_min = σ_max: steps that lead nowhere, or an error where a solver divides by their size."""
    options = {"sigma_min": 2.0, "sigma_max": 2.0}
    if name in ON_A_CHAIN:
        options["sigma_spacing"] = "karras"
    if name in ("lms", "er_sde", "dpmpp_sde"):
        with pytest.raises(InputError, match="no finite coefficients for 6 steps"):
            table_of(name, 6, options)
    else:
        check(table_of(name, 6, options))


@pytest.mark.parametrize("name", NAMES)
def test_sigma_range_upside_down(name):
    options = {"sigma_min": 3.0, "sigma_max": 2.0}
    if name in ON_A_CHAIN:
        options["sigma_spacing"] = "exponential"
    with pytest.raises(InputError, match="sigma_min is 3"):
        table_of(name, 6, options)


@pytest.mark.parametrize("spacing", SIGMA_SPACINGS)
@pytest.mark.parametrize("name", NAMES[:-1])
def test_spacings_of_levels(name, spacing):
    """The same levels for every sampler."""
    config = {"sigma_data": 0.5} if name in CONTINUOUS else SD
    options = {"sigma_spacing": spacing, "sigma_min": 0.1, "sigma_max": 9.0}
    table = table_of(name, 7, options, config)
    wanted = [step.point.sigma for step in table_of("edm_euler", 7, options).steps]
    visited = {step.point.sigma for step in table.steps}
    churned = {1.4 * sigma for sigma in wanted} if name == "edm_stochastic" else set()
    assert len(visited & set(wanted)) >= 7 - len(churned)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "euler",
            {"timesteps": [900, 500, 100], "use_karras_sigmas": True},
            "timesteps and the spacing 'karras'",
        ),
        ("euler", {"timesteps": [900, 500, 100], "sigmas": [9.0, 3.0, 1.0]}, "timesteps and sigmas are set"),
        ("euler", {"timesteps": [1200, 500, 100]}, "timesteps starts at 1200, wanted at most 999"),
        ("euler", {"timesteps": [500, 500, 100]}, "wanted numbers that decrease"),
        ("euler", {"timesteps": [500, 100]}, "ask for 2 steps"),
        ("heun", {"sigmas": [9.0, 3.0, 0.0]}, "sigmas ends with 0"),
        ("edm_euler", {"sigmas": [9.0, 3.0, 0.0]}, "sigmas ends with 0"),
        ("heun", {"sigmas": [9.0, 9.0, 1.0]}, "wanted numbers that decrease"),
        ("euler", {"s_churn": -1.0}, "s_churn is -1, wanted a number of 0 or more"),
        ("euler", {"s_noise": float("inf")}, "s_noise is inf"),
        ("euler", {"churn_noise": "never"}, "wants one of 'before', 'after'"),
        ("euler", {"clip_sample": True}, "has no option 'clip_sample'"),
        (
            "euler",
            {"sigma_data": 0.5, "prediction_type": "sample"},
            "prediction_type is 'sample', wanted 'epsilon'",
        ),
        ("euler_ancestral", {"eta": -0.5}, "eta is -0.5"),
        ("lms", {"order": 9}, "order is 9, wanted 1 to 8"),
        ("lms", {"order": 0}, "order=0"),
        ("dpmpp_sde", {"r": 1.0}, "r is 1, wanted a number between 0 and 1"),
        ("dpmpp_sde", {"noise_sampler_seed": 3}, "does not support noise_sampler_seed=3"),
        ("dpmpp_2m_sde_eta", {"solver_type": "bh1"}, "solver_type='bh1'"),
        ("edm_dpmpp", {"solver_order": 4}, "does not support solver_order=4"),
        ("edm_dpmpp", {"algorithm_type": "dpmsolver"}, "algorithm_type='dpmsolver'"),
        ("er_sde", {"solver_order": 4}, "does not support solver_order=4"),
        ("er_sde", {"noise_scale": "er_sde_6"}, "noise_scale='er_sde_6'"),
        ("restart", {"restarts": [3, 2, 0.06]}, "restarts has 3 numbers"),
        ("restart", {"restarts": [1, 2, 0.06, 0.3]}, "restarts has 1, 2, 0.06, 0.3, wanted"),
        ("restart", {"restarts": [3, 1.5, 0.06, 0.3]}, "an integer K"),
        ("restart", {"restarts": [3, 1, 0.3, 0.06]}, "0 < t_min < t_max"),
        ("restart", {"restarts": [3, 1, 1.4, 1.5]}, "use more steps or other restarts"),
        ("restart", {"restart_preset": "sdxl"}, "restart_preset='sdxl'"),
    ],
)
def test_refused(name, options, message):
    with pytest.raises(InputError) as caught:
        table_of(name, 3, options)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_single_steps_that_are_refused():
    with pytest.raises(InputError, match="wants 2 or more"):
        table_of("karras_ve", 1)
    with pytest.raises(InputError, match="use 2 steps or more"):
        table_of("restart", 1, {"restarts": [3, 1, 0.06, 0.3]})


def test_more_steps_than_the_chain_has():
    for name in ON_A_CHAIN:
        if not SAMPLERS[name].any_steps:
            with pytest.raises(InputError, match="wanted 1 to 1000"):
                table_of(name, 1001)
    for name in CONTINUOUS:
        check(table_of(name, 1500))


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_of_restart(preset):
    table = table_of("restart", 36, {"restart_preset": preset}, {"sigma_data": 0.5})
    check(table)
    more = sum(2 * interval.times * (interval.levels - 1) for interval in PRESETS[preset])
    assert table.evaluations == 71 + more
    assert table.stochastic == (preset != "none")


@pytest.mark.parametrize("name", CLIPPING[1:])
@pytest.mark.parametrize("options", [{"clip_sample": True, "clip_sample_range": 0.4}, {"thresholding": True}])
def test_clipping_bounds_the_sample(name, options):
    """The last step to σ = 0 gives the clipped prediction itself, and every step uses a clipped one."""
    table = table_of(name, 6, options)
    assert all(step.estimate is not None for step in table.steps)
    *_, (_, x) = table_run(table, 3 * START.reshape(7, 2, 1), noise=lambda: np.ones((7, 2, 1)))
    assert np.abs(x).max() <= (0.4 if "clip_sample" in options else 1.0) + 1e-12


def test_clipped_and_unclipped_agree_where_nothing_is_clipped():
    """A bound that is never reached changes the form of the steps, not what they compute."""
    for name in CLIPPING:
        runs = []
        for options in ({}, {"clip_sample": True, "clip_sample_range": 1e9}):
            draws = iter(np.random.default_rng(0).standard_normal((500, *START.shape)))
            *_, (_, x) = table_run(table_of(name, 9, options), START, noise=draws.__next__)
            runs.append(x)
        np.testing.assert_allclose(runs[0], runs[1], rtol=1e-9, atol=1e-9)


def test_denoisers_with_preconditioning_are_recognised():
    """Whatever sampler is used with their config: EDM's c_in and levels, Stable Audio's arctan."""
    edm = {"_class_name": "EDMEulerScheduler"}
    for name in ("heun", "dpmpp_2m_sde_eta", "er_sde"):
        first = table_of(name, 5, None, edm).steps[0].point
        assert first.sigma == 80
        assert first.timestep == pytest.approx(np.log(80) / 4, rel=1e-6)
        assert first.input_scale == pytest.approx(1 / np.hypot(80, 0.5), rel=1e-12)
    first = table_of("heun", 5, None, {"_class_name": "CosineDPMSolverMultistepScheduler"}).steps[0].point
    assert first.timestep == pytest.approx(np.arctan(500) * 2 / np.pi, rel=1e-6)
