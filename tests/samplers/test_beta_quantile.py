"""Quantiles of the beta distribution against SciPy's."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from fastdiff.errors import InputError
from fastdiff.samplers.beta_quantile import beta_quantiles

P = np.array([0, 1e-12, 1e-6, 0.01, 0.3, 0.5, 0.77, 0.99, 1 - 1e-6, 1])


@pytest.mark.parametrize(("a", "b"), [(0.6, 0.6), (0.5, 0.5), (1, 1), (0.5, 0.9), (0.3, 0.4)])
def test_quantiles_are_those_of_scipy(a: float, b: float) -> None:
    found, wanted = beta_quantiles(P, a, b), stats.beta.ppf(P, a, b)
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(("a", "b"), [(2, 0.5), (0.5, 1.5), (0, 0.5)])
def test_other_parameters_are_refused(a: float, b: float) -> None:
    with pytest.raises(InputError, match=r"above 0 and at most 1"):
        beta_quantiles(P, a, b)


def test_the_spacings_own_parameters_are_exact() -> None:
    p = np.linspace(0, 1, 51)
    np.testing.assert_allclose(beta_quantiles(p, 0.6, 0.6), stats.beta.ppf(p, 0.6, 0.6), rtol=1e-10)
