"""Mean and variance of every stochastic sampler on Gaussian data, propagated exactly, against the marginals.

No Monte Carlo: with a perfect denoiser for such data each row is an affine map, so that mean and covariance
of the sample and the slots follow from the table. Their error falls with the steps as the registry states; on
a Gaussian some fall faster.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fastdiff.samplers import SAMPLERS, StepTable, make_table
from tests.samplers.exact import marginal_error, order_of
from tests.samplers.test_orders import CHAIN, LEVELS

COUNTS = (125, 250, 500)
# Its levels spread over 0.02 to 100, of which a small part is that of the data.
MANY = {"karras_ve": (250, 500, 1000)}
SPACED = {"sigma_spacing": "log_snr"}
# s_noise above 1, the default, adds more noise than a level has: a bias that no step count removes. The steps
# within a restart have a number of their own, which has to grow too.
OPTIONS: dict[str, Callable[[int], dict[str, Any]]] = {
    "edm_stochastic": lambda steps: {**SPACED, "s_noise": 1.0},
    "karras_ve": lambda steps: {"s_noise": 1.0, "s_churn": 20.0},
    "pc": lambda steps: {**SPACED, "corrector": "ald"},
    "restart": lambda steps: {**SPACED, "restarts": [steps // 5, 2, 0.1, 2.0]},
}
ON_CHAIN = ("ddpm", "unclip", "karras_ve", "score_sde_vp", "flow_ancestral")
# These jump to an estimate of the clean sample and add noise anew, which a distilled model is trained for; a
# denoiser's estimate has too little variance at any step count.
DISTILLED = ("lcm", "tcd", "consistency", "flow_lcm")
# The first two converge in the steps at each noise level, the step of the last follows norms, which is
# not affine: test_langevin.py, test_predictor_corrector.py.
LANGEVIN = ("ncsn", "ncsnv2", "score_sde_ve")
STOCHASTIC = [
    name
    for name, sampler in SAMPLERS.items()
    if sampler.stochastic and sampler.adaptive is None and name not in (*DISTILLED, *LANGEVIN)
]


def table_of(name: str, steps: int) -> StepTable:
    if name in ON_CHAIN:
        return make_table(name, CHAIN, steps, options=OPTIONS.get(name, lambda steps: {})(steps))
    return make_table(name, LEVELS, steps, options=OPTIONS.get(name, lambda steps: SPACED)(steps))


@pytest.mark.parametrize("name", STOCHASTIC)
def test_mean_and_variance_converge_to_the_marginal(name: str) -> None:
    counts = MANY.get(name, COUNTS)
    errors = np.array([marginal_error(table_of(name, steps)) for steps in counts])
    for what, found in zip(("mean", "variance"), errors.T, strict=True):
        if found.max() < 1e-12:  # exact
            continue
        assert order_of(counts, found) >= SAMPLERS[name].order - 0.2, f"{what}: {found}"
        assert found[-1] < 0.05
