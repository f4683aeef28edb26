"""The order of convergence of every deterministic sampler, as the registry states it.

Global error at the noise level of the last evaluation, against the probability-flow ODE solved to 13 digits;
the slope of its logarithm over that of the step count.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fastdiff.samplers import SAMPLERS, NoiseSchedule, StepTable, make_table
from fastdiff.zoo.mixture import GaussianMixture
from tests.samplers.configs import BETAS
from tests.samplers.exact import GAUSSIAN, MIXTURE, slope_of_error

LEVELS = NoiseSchedule.from_config(BETAS["scaled_linear"])
# Solvers that stop at timesteps of the training need levels that are smooth in them: a chain whose first step
# leaves no singularity at t = 0.
CHAIN = NoiseSchedule.from_config(
    {
        "trained_betas": [0.1, *np.linspace(0.001, 0.006, 999).tolist()],
        "clip_sample": False,
        "set_alpha_to_one": False,
    }
)
# The first steps of a linear multistep method have a lower order. At σ = 14.6 the solution is so straight in
# σ that their error does not show, and the slope is that of the later steps.
OPTIONS: dict[str, dict[str, Any]] = {"lms": {"sigma_spacing": "log_snr", "sigma_max": 1.0}}
ON_CHAIN = (
    *("ddim", "ddim_inverse", "ddim_cogvideox", "pndm", "plms", "s_pndm", "f_pndm", "ipndm"),
    *(name for name in SAMPLERS if name.endswith("_inverse") and name != "ddim_inverse"),
)
DETERMINISTIC = [
    name for name, sampler in SAMPLERS.items() if not sampler.stochastic and sampler.adaptive is None
]


def table_of(name: str, steps: int) -> StepTable:
    if name in ON_CHAIN:
        return make_table(name, CHAIN, steps)
    return make_table(name, LEVELS, steps, options=OPTIONS.get(name, {"sigma_spacing": "log_snr"}))


@pytest.mark.parametrize("data", [GAUSSIAN, MIXTURE], ids=["gaussian", "mixture"])
@pytest.mark.parametrize("name", DETERMINISTIC)
def test_order_of_convergence(name: str, data: GaussianMixture) -> None:
    counts = (125, 250, 500) if name in ON_CHAIN else (120, 240, 480)
    found = slope_of_error(lambda steps: table_of(name, steps), counts, data)
    assert found == pytest.approx(SAMPLERS[name].order, abs=0.15)
