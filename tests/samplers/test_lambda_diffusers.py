"""DPM-Solver and its relatives against diffusers, step by step, for every class and option.

Left out, because diffusers itself fails there: thresholding with algorithm_type "dpmsolver" in the singlestep
class and "noise_prediction" in SA-Solver, variance_type in SA-Solver, stochastic forms of the inverse class
(NaN) and of order 3 in ε, paths of order 2 or more with lower_order_final=False to σ = 0 in UniPC (NaN).
test_lambda_paths.py says what happens to these here.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

import diffusers
import numpy as np
import pytest
import torch

from fastdiff.samplers import NoiseSchedule, make_table, sampler_of
from tests.compare import relative_l2
from tests.samplers.oracle import assert_follows_diffusers, model, table_run

MULTISTEP = "DPMSolverMultistepScheduler"
SINGLESTEP = "DPMSolverSinglestepScheduler"
INVERSE = "DPMSolverMultistepInverseScheduler"
UNIPC = "UniPCMultistepScheduler"
DEIS = "DEISMultistepScheduler"
SA = "SASolverScheduler"
ALL = (MULTISTEP, SINGLESTEP, INVERSE, UNIPC, DEIS, SA)
FORWARD = tuple(name for name in ALL if name != INVERSE)
STEPS = (5, 10, 25, 50)
HALVES = (STEPS[::2], STEPS[1::2])
"""Step counts for products of options, taken in turn, so that every value meets all of them."""
BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
SIGMA_MIN = {"final_sigmas_type": "sigma_min"}
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}


pytestmark = [
    pytest.mark.filterwarnings("ignore:.*algorithm_type.*deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning"),
]


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """diffusers warns, again and again, that it changes lower_order_final."""
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


def follows(class_name: str, config: dict, *, steps: tuple[int, ...] = STEPS, **arguments: object) -> None:
    for count in steps:
        assert_follows_diffusers(class_name, {**BETAS, **config}, count, **arguments)


@pytest.mark.parametrize("solver_type", ["midpoint", "heun"])
@pytest.mark.parametrize(
    ("algorithm_type", "orders", "ends"),
    [
        ("dpmsolver++", (1, 2, 3), ("zero", "sigma_min")),
        ("dpmsolver", (1, 2, 3), ("sigma_min",)),
        ("sde-dpmsolver++", (1, 2, 3), ("zero", "sigma_min")),
        ("sde-dpmsolver", (1, 2), ("sigma_min",)),
    ],
)
@pytest.mark.parametrize("class_name", [MULTISTEP, SINGLESTEP])
def test_algorithms_and_orders(class_name, algorithm_type, orders, ends, solver_type):
    if class_name == SINGLESTEP and algorithm_type == "sde-dpmsolver":
        return
    for order in orders:
        for end in ends:
            for lower in (True, False):
                config = {
                    "algorithm_type": algorithm_type,
                    "solver_order": order,
                    "solver_type": solver_type,
                    "final_sigmas_type": end,
                    "lower_order_final": lower,
                    "euler_at_final": order == 2 and not lower,
                }
                if class_name == SINGLESTEP:
                    del config["euler_at_final"]
                steps = HALVES[(order + lower) % 2]
                follows(class_name, config, steps=(*steps, 12) if class_name == SINGLESTEP else steps)


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("algorithm_type", ["dpmsolver++", "dpmsolver", "deis"])
def test_inversion(algorithm_type, order):
    config = {"algorithm_type": algorithm_type, "solver_order": order}
    follows(INVERSE, config)
    follows(
        INVERSE, {**config, "solver_type": "heun", "lower_order_final": False, "timestep_spacing": "leading"}
    )
    follows(INVERSE, {**config, "lower_order_final": False, "euler_at_final": True, "steps_offset": 1})


@pytest.mark.parametrize("predict_x0", [True, False])
@pytest.mark.parametrize("solver_type", ["bh1", "bh2"])
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_unipc(order, solver_type, predict_x0):
    config = {"solver_order": order, "solver_type": solver_type, "predict_x0": predict_x0, **SIGMA_MIN}
    follows(UNIPC, config, steps=HALVES[predict_x0])
    follows(UNIPC, {**config, "lower_order_final": False}, steps=HALVES[not predict_x0])
    follows(UNIPC, {**config, "disable_corrector": [0, 1, 4]}, steps=HALVES[predict_x0])
    if predict_x0 and solver_type == "bh2":  # diffusers' "bh1" gives NaN at σ = 0
        follows(UNIPC, {**config, "final_sigmas_type": "zero"})


@pytest.mark.parametrize("order", [1, 2, 3])
def test_deis(order):
    follows(DEIS, {"solver_order": order})
    follows(DEIS, {"solver_order": order, "lower_order_final": False})


@pytest.mark.parametrize("algorithm_type", ["data_prediction", "noise_prediction"])
@pytest.mark.parametrize("predictor", [1, 2, 3, 4])
def test_sa_solver(predictor, algorithm_type):
    for corrector in (1, 2, 3, 4):
        config = {
            "predictor_order": predictor,
            "corrector_order": corrector,
            "algorithm_type": algorithm_type,
            "lower_order_final": (predictor + corrector) % 2 == 0,
        }
        follows(SA, config, steps=HALVES[(predictor + corrector // 2) % 2])


@pytest.mark.parametrize(
    ("tau", "first", "last"), [(0.0, 800, 200), (1.0, 1000, 0), (0.6, 700, 300), (1.0, 800, 200)]
)
def test_tau_of_sa_solver(tau, first, last):
    def set_tau(scheduler):
        scheduler.tau_func = lambda t: tau if last <= t <= first else 0

    for algorithm_type, steps in zip(("data_prediction", "noise_prediction"), HALVES, strict=True):
        config = {"algorithm_type": algorithm_type, "predictor_order": 3, "corrector_order": 4}
        options = {"tau": tau, "tau_first": first, "tau_last": last}
        follows(SA, config, steps=steps, options=options, prepare=set_tau)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample", "flow_prediction"])
@pytest.mark.parametrize("class_name", ALL)
def test_predictions(class_name, prediction):
    if (class_name, prediction) != (DEIS, "flow_prediction"):
        follows(class_name, {"prediction_type": prediction})
    if class_name != INVERSE:
        follows(class_name, {"prediction_type": prediction, "use_flow_sigmas": True})


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_predictions_of_solvers_in_epsilon(prediction):
    config = {"prediction_type": prediction, "algorithm_type": "dpmsolver", "solver_order": 3, **SIGMA_MIN}
    follows(MULTISTEP, config)
    follows(SINGLESTEP, config)
    follows(UNIPC, {"prediction_type": prediction, "predict_x0": False, "solver_order": 3, **SIGMA_MIN})
    follows(SA, {"prediction_type": prediction, "algorithm_type": "noise_prediction"})
    follows(MULTISTEP, {**config, "use_flow_sigmas": True})


SPACINGS = ({"timestep_spacing": "leading", "steps_offset": 1}, {"timestep_spacing": "trailing"})


@pytest.mark.parametrize("class_name", ALL)
def test_timestep_spacings(class_name):
    """Those of other classes than the singlestep one, which takes no notice of the options."""
    for spacing in SPACINGS:
        follows(class_name, spacing)
        if class_name not in (UNIPC, DEIS):
            follows(class_name, {**spacing, "lambda_min_clipped": -2.0})
    if class_name not in (UNIPC, DEIS):
        follows(class_name, {"lambda_min_clipped": -2.0, "beta_schedule": "squaredcos_cap_v2"})


@pytest.mark.parametrize("beta_schedule", ["linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize(
    "flag", ["use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas"]
)
@pytest.mark.parametrize("class_name", ALL)
def test_sigma_spacings(class_name, flag, beta_schedule):
    def start_at_the_first(scheduler):
        scheduler._step_index = 0  # else it starts at the second of two equal timesteps and leaves its table

    if flag == "use_lu_lambdas" and class_name != MULTISTEP:
        return
    config = {flag: True, "beta_schedule": beta_schedule}
    prepare = start_at_the_first if class_name == INVERSE else None
    follows(class_name, config, prepare=prepare)
    if class_name != INVERSE:
        follows(class_name, {**config, **SIGMA_MIN}, steps=HALVES[beta_schedule == "linear"])
    if class_name != INVERSE and flag != "use_lu_lambdas":
        follows(class_name, {**config, "sigma_min": 0.1, "sigma_max": 5.0}, steps=(10,))


@pytest.mark.parametrize("class_name", FORWARD)
def test_flow_sigmas(class_name):
    follows(class_name, {**FLOW, "flow_shift": 3.0})
    follows(class_name, {**FLOW, **SIGMA_MIN, "flow_shift": 1.5})
    kinds = {UNIPC: ("exponential", "linear"), SA: ()}.get(class_name, ("exponential",))
    for kind in kinds:
        config = {**FLOW, "use_dynamic_shifting": True, "time_shift_type": kind}
        follows(class_name, config, set_timesteps={"mu": 0.7}, options={"mu": 0.7})
    if kinds and class_name != UNIPC:
        follows(class_name, {**FLOW, "use_dynamic_shifting": True, "flow_shift": 2.0})


@pytest.mark.parametrize("end", ["zero", "sigma_min"])
def test_flow_options_of_unipc(end):
    config = {**FLOW, "final_sigmas_type": end}
    follows(UNIPC, {**config, "shift_terminal": 0.1, "flow_shift": 2.0})
    follows(UNIPC, {**config, "use_karras_sigmas": True})
    follows(UNIPC, {**config, "use_karras_sigmas": True, "sigma_min": 0.1, "sigma_max": 80.0})
    sigmas = [1.0, 0.8, 0.5, 0.2]
    given = {"num_inference_steps": None, "sigmas": np.array(sigmas)}
    follows(UNIPC, {**config, "flow_shift": 2.0}, steps=(4,), set_timesteps=given, options={"sigmas": sigmas})


@pytest.mark.parametrize("class_name", [MULTISTEP, SINGLESTEP])
def test_given_timesteps(class_name):
    timesteps = [900, 500, 300, 10]
    given = {"num_inference_steps": None, "timesteps": timesteps}
    follows(class_name, {}, steps=(4,), set_timesteps=given, options={"timesteps": timesteps})


@pytest.mark.parametrize("class_name", [MULTISTEP, UNIPC])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_zero_terminal_snr(class_name, prediction):
    for spacing in ("linspace", "trailing"):
        config = {"rescale_betas_zero_snr": True, "prediction_type": prediction, "timestep_spacing": spacing}
        follows(class_name, config)


@pytest.mark.parametrize("class_name", ALL)
def test_thresholding(class_name):
    """Of all orders: what is kept for later steps is thresholded too, and ε follows from it."""
    order = "predictor_order" if class_name == SA else "solver_order"
    config = {"thresholding": True, "sample_max_value": 1.7, "dynamic_thresholding_ratio": 0.7}
    follows(class_name, {"thresholding": True})
    follows(class_name, {**config, order: 3})
    if class_name in (MULTISTEP, INVERSE):
        follows(class_name, {**config, order: 3, "algorithm_type": "dpmsolver", **SIGMA_MIN})
    if class_name == MULTISTEP:
        follows(class_name, {**config, "algorithm_type": "sde-dpmsolver", **SIGMA_MIN})
        follows(class_name, {**config, order: 3, "algorithm_type": "sde-dpmsolver++"})


def with_variance(sample: np.ndarray, timestep: float) -> np.ndarray:
    output = model(sample, timestep)
    return np.concatenate([output, np.cos(output)], axis=1)


@pytest.mark.parametrize("variance_type", ["learned", "learned_range"])
@pytest.mark.parametrize("class_name", [MULTISTEP, SINGLESTEP, INVERSE])
def test_learned_variance_is_dropped(class_name, variance_type):
    config = {"variance_type": variance_type}
    if class_name != INVERSE:
        config["algorithm_type"] = "sde-dpmsolver++"
    follows(class_name, config, model=with_variance)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("class_name", ALL)
def test_as_shipped(class_name):
    """Against diffusers' own rounding to float32, everywhere else turned off."""
    config = {**BETAS, "_class_name": class_name}
    scheduler = getattr(diffusers, class_name).from_config(config)
    scheduler.set_timesteps(25)
    options = {}
    if class_name == SA:
        scheduler.tau_func, options = (lambda _: 0), {"tau": 0.0}
    name = sampler_of(config)
    table = make_table(name, NoiseSchedule.from_config(config), 25, options=options)
    start = np.random.default_rng(6).standard_normal((2, 3, 4)).astype(np.float32)
    found = [x for _, x in table_run(table, start.astype(np.float64))][1:]
    sample = torch.from_numpy(start)
    for timestep, x in zip(scheduler.timesteps, found, strict=True):
        output = torch.from_numpy(model(sample.numpy(), float(timestep)).astype(np.float32))
        sample = scheduler.step(output, timestep, sample, return_dict=False)[0]
        assert sample.dtype == torch.float32
        assert relative_l2(x, sample) < 1e-4


@pytest.mark.parametrize(
    ("class_name", "config", "name"),
    [
        (MULTISTEP, {}, "dpmpp_2m"),
        (MULTISTEP, {"solver_order": 1}, "dpmpp_1m"),
        (MULTISTEP, {"solver_order": 3, "algorithm_type": "deis"}, "dpmpp_3m"),
        (MULTISTEP, {"algorithm_type": "dpmsolver"}, "dpm_solver_2m"),
        (MULTISTEP, {"algorithm_type": "sde-dpmsolver"}, "dpm_solver_2m_sde"),
        (MULTISTEP, {"algorithm_type": "sde-dpmsolver++"}, "dpmpp_2m_sde"),
        (MULTISTEP, {"algorithm_type": "sde-dpmsolver++", "solver_order": 3}, "dpmpp_3m_sde_diffusers"),
        (SINGLESTEP, {}, "dpmpp_2s"),
        (SINGLESTEP, {"solver_order": 3, "algorithm_type": "dpmsolver"}, "dpm_solver_3s"),
        (SINGLESTEP, {"solver_order": 1, "algorithm_type": "sde-dpmsolver++"}, "dpmpp_1s_sde"),
        (INVERSE, {}, "dpmpp_2m_inverse"),
        (INVERSE, {"solver_order": 3, "algorithm_type": "dpmsolver"}, "dpm_solver_3m_inverse"),
        (UNIPC, {}, "unipc"),
        (DEIS, {"solver_order": 3}, "deis"),
        (SA, {}, "sa_solver"),
    ],
)
def test_sampler_of_a_class_by_its_options(class_name, config, name):
    assert sampler_of({"_class_name": class_name, **config}) == name
