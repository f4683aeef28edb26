"""Solvers in σ against diffusers' schedulers, step by step: every class and option at 5, 10, 25 and 50 steps.

Known differences:
- KDPM2AncestralDiscreteScheduler computes σ_down as a difference in float32, of which little is left where a
  step is large: it runs here with float64 in its place.
- With one step, diffusers' exponential levels of EDM start at sigma_min instead of sigma_max.
- DPMSolverSDEScheduler and CosineDPMSolverMultistepScheduler draw from a Brownian tree of torchsde: they run
  here with Brownian motion made of the noises that the table draws.
- In the latter and EDMDPMSolverMultistepScheduler, the last level sigma_min may lie above the one before it
  by rounding, which makes the SDE's samples NaN: it is set to that one here.
"""

from __future__ import annotations

import importlib.util
import itertools
import math
import sys
import types
import unittest.mock
from collections.abc import Callable, Iterator
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from fastdiff.errors import InputError
from fastdiff.samplers import NoiseSchedule, make_table
from tests.samplers.oracle import assert_follows_diffusers, model, table_run

# NumPy's complaint about diffusers' way of passing tensors to it.
pytestmark = pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning")

COUNTS = (5, 10, 25, 50)
SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
V = {"prediction_type": "v_prediction"}
SAMPLE = {"prediction_type": "sample"}
LEADING = {"timestep_spacing": "leading", "steps_offset": 1}
TRAILING = {"timestep_spacing": "trailing"}
COSINE = {"beta_schedule": "squaredcos_cap_v2"}
TRAINED = {"trained_betas": (np.linspace(0.0002, 0.03, 200) ** 1.1).tolist(), "num_train_timesteps": 200}
SHORT = {"num_train_timesteps": 100, "beta_end": 0.1}  # these classes take 0.4 s to make with 1,000 timesteps
FLAGS = [{f"use_{kind}_sigmas": True} for kind in ("karras", "exponential", "beta")]
PLACES = [{}, SD, LEADING, {**TRAILING, **SD}, TRAINED, {**COSINE, **V}, V]
EDM_OPTIONS = [
    {},
    V,
    {"sigma_schedule": "exponential", "sigma_min": 0.02},
    {"final_sigmas_type": "sigma_min", "rho": 5.0},
    {"sigma_max": 50.0, "sigma_data": 1.0},
]
CASES: dict[str, list[dict[str, Any]]] = {
    "EulerDiscreteScheduler": [
        *PLACES,
        *FLAGS,
        SAMPLE,
        {**SAMPLE, **FLAGS[0]},
        {"interpolation_type": "log_linear"},
        {"interpolation_type": "log_linear", **FLAGS[0]},
        {"timestep_type": "continuous", **V},
        {"timestep_type": "continuous", **FLAGS[1]},
        {**FLAGS[0], "sigma_min": 0.1, "sigma_max": 9.0},
        {**FLAGS[1], "sigma_min": 0.1},
        {**FLAGS[2], "sigma_max": 20.0},
        {"final_sigmas_type": "sigma_min"},
        {"final_sigmas_type": "sigma_min", **FLAGS[2]},
        {"rescale_betas_zero_snr": True, **TRAILING, **V},
    ],
    "EulerAncestralDiscreteScheduler": [*PLACES, {"rescale_betas_zero_snr": True, **TRAILING, **V}],
    "HeunDiscreteScheduler": [
        *PLACES,
        *FLAGS,
        SAMPLE,
        {"clip_sample": True},
        {"clip_sample": True, "clip_sample_range": 0.6, **V},
    ],
    "KDPM2DiscreteScheduler": [{}, *({**SHORT, **config} for config in (*PLACES, *FLAGS))],
    "KDPM2AncestralDiscreteScheduler": [{}, *({**SHORT, **config} for config in (*PLACES, *FLAGS))],
    "LMSDiscreteScheduler": [{}, {**LEADING, **V}, {**TRAILING, **SAMPLE}, *FLAGS],
    "EDMEulerScheduler": EDM_OPTIONS,
    "EDMDPMSolverMultistepScheduler": [
        *EDM_OPTIONS,
        *({"solver_order": order} for order in (1, 3)),
        *({"solver_type": kind} for kind in ("heun", "logrho", "bh1", "bh2")),
        {"solver_order": 3, "solver_type": "heun", "lower_order_final": False},
        {"lower_order_final": False, "final_sigmas_type": "sigma_min"},
        {"euler_at_final": True, "final_sigmas_type": "sigma_min", "lower_order_final": False},
        {"thresholding": True, "sample_max_value": 1.5, "dynamic_thresholding_ratio": 0.9},
        {"thresholding": True, "solver_order": 3},
        {"algorithm_type": "deis", "final_sigmas_type": "sigma_min"},
        {"algorithm_type": "sde-dpmsolver++"},
        {"algorithm_type": "sde-dpmsolver++", "solver_type": "heun", "thresholding": True},
        {"algorithm_type": "sde-dpmsolver++", "solver_order": 1, "final_sigmas_type": "sigma_min"},
    ],
    "DPMSolverSDEScheduler": [{}, *({**SHORT, **config} for config in (*PLACES, *FLAGS))],
    "CosineDPMSolverMultistepScheduler": [
        {},
        {"prediction_type": "epsilon"},
        {"sigma_schedule": "karras", "rho": 5.0},
        {"sigma_min": 0.1, "sigma_max": 100.0, "sigma_data": 0.7},
        {"solver_order": 1},
        *({"solver_type": kind} for kind in ("heun", "logrho", "bh1", "bh2")),
        {"lower_order_final": False},
        {"euler_at_final": True, "final_sigmas_type": "sigma_min", "lower_order_final": False},
    ],
}
STEP_ARGUMENTS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("EulerDiscreteScheduler", {}, {"s_churn": 3.0}),
    ("EulerDiscreteScheduler", V, {"s_churn": 60.0, "s_noise": 1.1}),
    ("EulerDiscreteScheduler", SAMPLE, {"s_churn": 3.0, "s_tmin": 0.2, "s_tmax": 6.0}),
    ("EDMEulerScheduler", {}, {"s_churn": 3.0, "s_tmin": 0.2, "s_tmax": 20.0, "s_noise": 1.003}),
    ("EDMEulerScheduler", V, {"s_churn": 60.0}),
    *(("LMSDiscreteScheduler", {}, {"order": order}) for order in (1, 2, 3, 5)),
    ("DPMSolverSDEScheduler", SD, {"s_noise": 1.1}),
    ("DPMSolverSDEScheduler", SD, {"s_noise": 0.0}),
]


class Brownian:
    """In place of torchsde's tree: W(σ) − W(σ') over √(σ − σ'), from independent noises of the parts."""

    def __init__(self, draw: Callable[[], torch.Tensor]) -> None:
        self.draw = draw
        self.start = math.nan

    def __call__(self, sigma: torch.Tensor, following: torch.Tensor) -> torch.Tensor:
        start, end = float(sigma), float(following)
        if not math.isclose(start, self.start, rel_tol=1e-5):
            self.start = self.reached = start
            self.moved = torch.zeros(1, dtype=torch.float64)
        if math.isclose(self.reached, end, rel_tol=1e-5):
            return self.draw()  # no time passes: the factor of this noise is 0
        self.moved = self.moved + math.sqrt(self.reached - end) * self.draw()
        self.reached = end
        return self.moved / math.sqrt(start - end)


@pytest.fixture(scope="module", autouse=True)
def classes_of_torchsde() -> Iterator[None]:
    """Their modules, whether torchsde is installed or not; nothing of it is called."""
    names = {
        "DPMSolverSDEScheduler": "scheduling_dpmsolver_sde",
        "CosineDPMSolverMultistepScheduler": "scheduling_cosine_dpmsolver_multistep",
    }
    installed = importlib.util.find_spec("torchsde") is not None
    if not installed:
        sys.modules["torchsde"] = types.ModuleType("torchsde")
    modules = {name: importlib.import_module(f"diffusers.schedulers.{file}") for name, file in names.items()}
    if not installed:
        del sys.modules["torchsde"]
    with unittest.mock.patch.multiple(
        diffusers, **{name: getattr(module, name) for name, module in modules.items()}
    ):
        for module in modules.values():
            module.randn_tensor = None  # what the oracle replaces
        yield
        for module in modules.values():
            del module.randn_tensor


class _Float64Numpy:
    float32 = np.float64

    def __getattr__(self, name: str) -> object:
        return getattr(np, name)


def prepare(class_name: str, steps: int) -> Callable[[Any], None] | None:
    def level_end(scheduler: Any) -> None:
        if scheduler.config.get("final_sigmas_type") == "sigma_min":
            scheduler.sigmas[-1] = scheduler.sigmas[-2]

    def brownian(scheduler: Any) -> None:
        level_end(scheduler)
        module = sys.modules[type(scheduler).__module__]
        scheduler.noise_sampler = Brownian(lambda: module.randn_tensor((2, 3, 4)))

    def float64(scheduler: Any) -> None:
        module = sys.modules[type(scheduler).__module__]
        with unittest.mock.patch.object(module, "np", _Float64Numpy()):
            scheduler.set_timesteps(steps)
        scheduler.set_begin_index(0)

    if class_name in ("DPMSolverSDEScheduler", "CosineDPMSolverMultistepScheduler"):
        return brownian
    if class_name == "EDMDPMSolverMultistepScheduler":
        return level_end
    return float64 if class_name == "KDPM2AncestralDiscreteScheduler" else None


@pytest.mark.parametrize("class_name", CASES)
def test_follows_diffusers(class_name):
    for config, steps in itertools.product(CASES[class_name], COUNTS):
        assert_follows_diffusers(class_name, config, steps, prepare=prepare(class_name, steps))


@pytest.mark.parametrize(("class_name", "config", "arguments"), STEP_ARGUMENTS)
def test_arguments_of_step(class_name, config, arguments):
    options = dict(arguments)
    if "s_churn" in options:
        options["churn_noise"] = "after"
    for steps in COUNTS:
        assert_follows_diffusers(
            class_name,
            config,
            steps,
            options=options,
            step_arguments=arguments,
            prepare=prepare(class_name, steps),
        )


@pytest.mark.parametrize("steps", COUNTS)
@pytest.mark.parametrize("class_name", ["EulerDiscreteScheduler", "HeunDiscreteScheduler"])
def test_given_timesteps(class_name, steps):
    timesteps = [int(t) for t in np.linspace(990, 3, steps)]
    arguments = {"num_inference_steps": None, "timesteps": timesteps}
    assert_follows_diffusers(class_name, SD, steps, options={"timesteps": timesteps}, set_timesteps=arguments)


@pytest.mark.parametrize("config", [SD, {**SD, **V, "timestep_type": "continuous"}])
@pytest.mark.parametrize("steps", COUNTS)
def test_given_sigmas(config, steps):
    sigmas = np.geomspace(13.0, 0.05, steps).tolist()
    arguments = {"num_inference_steps": None, "sigmas": [*sigmas, 0.0]}
    assert_follows_diffusers(
        "EulerDiscreteScheduler", config, steps, options={"sigmas": sigmas}, set_timesteps=arguments
    )


@pytest.mark.parametrize("steps", COUNTS)
@pytest.mark.parametrize(
    "config", [{}, {"s_churn": 200, "s_min": 0.5, "s_max": 3000, "s_noise": 1.1}, {"s_churn": 0}]
)
def test_karras_ve(config, steps):
    """The class has methods of its own: here as its pipeline calls them, with a model that returns −ε."""
    from diffusers.schedulers.deprecated import KarrasVeScheduler
    from diffusers.schedulers.deprecated import scheduling_karras_ve as module

    config = {"sigma_min": 0.05, "sigma_max": 60.0, **config}
    shape = (2, 3, 4)
    noises = [np.random.default_rng(i).standard_normal(shape) for i in range(steps)]
    scheduler = KarrasVeScheduler(**config)
    scheduler.set_timesteps(steps)
    start = np.random.default_rng(9).standard_normal(shape)
    x = torch.from_numpy(start) * scheduler.init_noise_sigma
    wanted = []
    tensors = (torch.from_numpy(noise) for noise in noises)
    with unittest.mock.patch.object(module, "randn_tensor", side_effect=tensors) as randn:
        for t in scheduler.timesteps.tolist():
            sigma = float(scheduler.schedule[t])
            sigma_prev = float(scheduler.schedule[t - 1]) if t else 0.0
            raised, sigma_hat = scheduler.add_noise_to_input(x, sigma)
            output = torch.from_numpy(model(raised.numpy(), sigma_hat))
            x, derivative = scheduler.step(output, sigma_hat, sigma_prev, raised, return_dict=False)
            if sigma_prev:
                output = torch.from_numpy(model(x.numpy(), sigma_prev))
                x, _ = scheduler.step_correct(
                    output, sigma_hat, sigma_prev, raised, x, derivative, return_dict=False
                )
            wanted.append(x.numpy())
    assert randn.call_count == steps
    table = make_table(
        "karras_ve", NoiseSchedule.from_config({"_class_name": "KarrasVeScheduler", **config}), steps
    )
    drawn = iter(noises)
    _, *found = table_run(table, start, noise=lambda: next(drawn))
    assert next(drawn, None) is None
    scale = np.abs(wanted).max()
    # A step's second row also adds the noise of the step after it, which diffusers adds at its start.
    starts = [*(row.noise_coef or 0.0 for row in table.steps[1::2]), 0.0]
    for i, (row, x) in enumerate(zip([*found[1::2], found[-1]], wanted, strict=True)):
        later = starts[i] * noises[i + 1] if i + 1 < steps else 0.0
        assert np.abs(row[1] - later - x).max() <= 1e-5 * scale


def test_third_order_of_the_sde_is_refused():
    """In diffusers it ends in an error of Python's."""
    for config in (
        {"_class_name": "EDMDPMSolverMultistepScheduler", "algorithm_type": "sde-dpmsolver++"},
        {"_class_name": "CosineDPMSolverMultistepScheduler"},
    ):
        name = "edm_dpmpp" if "algorithm_type" in config else "cosine_dpmpp_sde"
        with pytest.raises(InputError, match="does not support solver_order=3"):
            make_table(name, NoiseSchedule.from_config({**config, "solver_order": 3}), 10)
