"""The members of the PNDM family: against diffusers, the paper's formulas and each other."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fastdiff.errors import InputError
from fastdiff.samplers import NoiseSchedule, Part, Prediction, make_table
from tests.samplers.configs import BETAS
from tests.samplers.exact import GAUSSIAN, START, point_of, states
from tests.samplers.oracle import assert_follows_diffusers, table_run

STEPS = (5, 10, 25, 50)
STABLE_DIFFUSION = {**BETAS["scaled_linear"], "steps_offset": 1}


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("name", ["plms", "f_pndm"])
def test_named_samplers_are_those_of_the_class(name: str, steps: int) -> None:
    """With "leading" timesteps steps end where the next ones begin, in diffusers too."""
    for to_one in (True, False):
        config = {**STABLE_DIFFUSION, "set_alpha_to_one": to_one, "skip_prk_steps": name == "plms"}
        assert_follows_diffusers("PNDMScheduler", config, steps, sampler=name)


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("skip", [True, False])
def test_outputs_v_are_extrapolated_as_they_are(skip: bool, steps: int) -> None:
    config = {**STABLE_DIFFUSION, "prediction_type": "v_prediction", "skip_prk_steps": skip}
    for spacing in ("leading", "trailing", "linspace"):
        assert_follows_diffusers("PNDMScheduler", {**config, "timestep_spacing": spacing}, steps)


@pytest.mark.parametrize("name", ["plms", "s_pndm", "f_pndm", "ipndm"])
@pytest.mark.parametrize("kind", Prediction)
def test_every_prediction_gives_the_same(name: str, kind: Prediction) -> None:
    """What the model predicts makes no difference if it predicts perfectly."""
    tables = [
        make_table(name, NoiseSchedule.from_config({**STABLE_DIFFUSION, "prediction_type": prediction}), 12)
        for prediction in (kind.value, "epsilon")
    ]
    found, wanted = (states(table, GAUSSIAN, START)[-1] for table in tables)
    np.testing.assert_allclose(found, wanted, rtol=1e-9)


def test_s_pndm_is_the_paper() -> None:
    """Algorithm 3 written down with φ of Eq. 11."""
    schedule = NoiseSchedule.from_config(STABLE_DIFFUSION)
    alpha_bar = schedule.alphas_cumprod().astype(float)

    def phi(x: np.ndarray, e: np.ndarray, t: int, s: int) -> np.ndarray:
        a, b = alpha_bar[t], alpha_bar[max(s, 0)]
        denominator = np.sqrt(a) * (np.sqrt((1 - b) * a) + np.sqrt((1 - a) * b))
        return np.sqrt(b / a) * x - (b - a) / denominator * e

    def model(x: np.ndarray, t: float) -> np.ndarray:
        return np.tanh(x + t / 300)

    x = START
    before = model(x, 801)
    x1 = phi(x, before, 801, 601)
    x = phi(x, (before + model(x1, 601)) / 2, 801, 601)
    for t in (601, 401, 201, 1):
        e = model(x, t)
        x = phi(x, (3 * e - before) / 2, t, t - 200)
        before = e
    *_, (_, found) = table_run(make_table("s_pndm", schedule, 5), START, model)
    np.testing.assert_allclose(found, x, rtol=1e-9)


def test_evaluations() -> None:
    schedule = NoiseSchedule.from_config(STABLE_DIFFUSION)
    found = {
        name: make_table(name, schedule, 20).evaluations for name in ("plms", "s_pndm", "f_pndm", "ipndm")
    }
    assert found == {"plms": 21, "s_pndm": 21, "f_pndm": 29, "ipndm": 20}
    assert make_table("plms", schedule, 1).evaluations == 1


@pytest.mark.parametrize("steps", STEPS)
def test_ipndm(steps: int) -> None:
    assert_follows_diffusers("IPNDMScheduler", {}, steps)
    levels = np.linspace(0.98, 0.01, steps + 1) ** 1.3
    assert_follows_diffusers("IPNDMScheduler", {"trained_betas": levels.tolist()}, steps)


def test_ipndm_has_no_chain_to_end_on() -> None:
    table = make_table("ipndm", NoiseSchedule.from_config({"_class_name": "IPNDMScheduler"}), 1500 // 2)
    first, last = point_of(table.steps[0]), point_of(table.steps[-1])
    assert (first.timestep, first.sigma, first.alpha) == (1, 1, 0)
    assert 0 < last.sigma < 1e-4


@pytest.mark.parametrize(
    ("sampler", "config", "steps", "message"),
    [
        ("f_pndm", {}, 3, "sampler 'f_pndm' with a Runge-Kutta start"),
        ("pndm", {"prediction_type": "flow_prediction"}, 10, "use sampler 'ddim'"),
        ("ipndm", {"_class_name": "IPNDMScheduler", "trained_betas": [0.9, 0.5, 0.0]}, 3, "use 2 steps"),
        ("ipndm", {"_class_name": "IPNDMScheduler", "trained_betas": [1.5, 0.5, 0.0]}, 2, "beyond 0 to 1"),
        ("plms", {"rescale_betas_zero_snr": True}, 10, "leaves no signal"),
    ],
)
def test_refused(sampler: str, config: dict[str, Any], steps: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_table(sampler, NoiseSchedule.from_config(config), steps)


def test_an_error_of_a_part_speaks_of_the_steps_that_were_asked_for() -> None:
    schedule = NoiseSchedule.from_config({})
    for sampler in ("pndm", "f_pndm"):
        with pytest.raises(InputError, match="steps is 10 and only the last 2 are run") as caught:
            make_table(sampler, schedule, 10, part=Part(skip=8))
        assert "use more steps, start earlier or another sampler" in str(caught.value)
    assert make_table("pndm", schedule, 10, part=Part(skip=6)).evaluations == 4 + 9
