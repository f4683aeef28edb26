"""When results agree: figures worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fastdiff.bench.agreement import Agreement, compare

pytestmark = pytest.mark.smoke


def test_relative_l2_of_the_worst_output() -> None:
    # ‖(0, 0, 0.05)‖ / ‖(3, 4, 0)‖ = 0.01, in float32 up to its rounding
    expected = {"a": np.array([3, 4, 0], np.float32), "b": np.ones(3, np.float32)}
    found = {"a": np.array([3, 4, 0.05], np.float32), "b": np.ones(3, np.float32)}
    agreement = compare(found, expected)
    assert agreement.measure == "relative_l2"
    assert agreement.value == pytest.approx(0.01, rel=1e-6)
    assert not agreement.ok
    assert compare(expected, expected) == Agreement("relative_l2", 0.0)
    assert Agreement("relative_l2", 9.9e-4).ok


@pytest.mark.parametrize(
    "found",
    [
        {"a": np.full(3, math.nan, np.float32)},
        {"a": np.ones((1, 3), np.float32)},
        {"b": np.ones(3, np.float32)},
        {},
    ],
    ids=["NaN", "shape", "name", "nothing"],
)
def test_what_never_agrees(found: dict[str, np.ndarray]) -> None:
    agreement = compare(found, {"a": np.ones(3, np.float32)})
    assert agreement.value == math.inf
    assert not agreement.ok


def test_pictures_are_compared_by_psnr() -> None:
    picture = np.full((1, 5, 7, 3), 100, np.uint8)
    other = picture + np.uint8(1)
    # 10 log₁₀(255² / 1)
    assert compare({"p": other}, {"p": picture}).value == pytest.approx(48.1308, abs=1e-4)
    assert compare({"p": other}, {"p": picture}).ok
    assert not compare({"p": picture + np.uint8(3)}, {"p": picture}).ok
    assert compare({"p": picture}, {"p": picture}) == Agreement("psnr", 100.0)
    assert not compare({"p": picture[:, :4]}, {"p": picture}).ok
    # uint8 must not wrap around: 255 and 0 are far apart
    black, white = np.zeros((1, 2, 2, 3), np.uint8), np.full((1, 2, 2, 3), 255, np.uint8)
    assert compare({"p": black}, {"p": white}).value == pytest.approx(0.0)
