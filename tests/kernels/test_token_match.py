"""token_match on the CPU against its reference, and against the matching written out token by token."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastdiff.errors import InputError
from fastdiff.kernels import reference, token_match

pytestmark = pytest.mark.smoke

SIZES = [
    pytest.param((1, 2, 2, 1), id="one square, one channel"),
    pytest.param((2, 8, 8, 40), id="no full panel of destinations"),
    pytest.param((1, 16, 24, 37), id="three panels, a tail of channels"),
    pytest.param((2, 5, 7, 16), id="odd sides"),
    pytest.param((1, 3, 2, 8), id="a row beyond the squares"),
    pytest.param((1, 33, 18, 64), id="the last block not full"),
]


def by_hand(x: np.ndarray, merged: int) -> np.ndarray:
    """The plan of one picture (H, W, C), in float64."""
    height, width, channels = x.shape
    tokens = x.reshape(-1, channels).astype(np.float64)
    unit = tokens / np.linalg.norm(tokens, axis=1, keepdims=True)
    places = [(i, j) for i in range(height) for j in range(width)]
    chosen = [i % 2 == 0 and j % 2 == 0 and i < height // 2 * 2 and j < width // 2 * 2 for i, j in places]
    destinations = [n for n, flag in enumerate(chosen) if flag]
    sources = [n for n, flag in enumerate(chosen) if not flag]
    best = {}
    for n in sources:
        cosines = [float(unit[n] @ unit[d]) for d in destinations]
        best[n] = (max(cosines), int(np.argmax(cosines)))
    gone = sorted(sources, key=lambda n: -best[n][0])[:merged]
    plan = np.empty(len(places), np.int64)
    plan[destinations] = np.arange(len(destinations))
    left = len(destinations)
    for n in sources:
        if n in gone:
            plan[n] = best[n][1]
        else:
            plan[n] = left
            left += 1
    return plan


@pytest.mark.parametrize("share", [0, 0.3, 0.5, 0.75])
@pytest.mark.parametrize("shape", SIZES)
def test_plan(rng, isa, shape, share):
    x = rng.standard_normal(shape).astype(np.float32)
    merged = int(shape[1] * shape[2] * share)
    if shape[3] == 1:  # where all cosines are 1 or -1 and rounding decides
        x = np.abs(x)
    wanted = np.stack([by_hand(picture, merged) for picture in x])
    for threads in (1, 3):
        found = token_match(x, merged, threads=threads, isa=isa)
        assert found.dtype == np.int64
        assert np.array_equal(found, wanted)
    if shape[3] > 1:
        percent = round(100 * share)
        assert np.array_equal(reference.token_match(torch.from_numpy(x), percent, 100).numpy(), wanted)


def test_equal_tokens_and_zeros(isa):
    """Ties go to the first, with tokens of any norm, zero among them."""
    x = np.ones((1, 4, 4, 8), np.float32) * np.arange(1, 17, dtype=np.float32).reshape(1, 4, 4, 1)
    x[0, 1, 0] = 0
    wanted = reference.token_match(torch.from_numpy(x), 1, 4).numpy()
    found = token_match(x, 4, isa=isa)
    assert found[0, 4] >= 4, "a token of zeros is like none"
    assert len(set(found[0].tolist())) == 12 == len(set(wanted[0].tolist()))


def test_nan_gives_a_plan(isa):
    x = np.full((1, 6, 6, 8), np.nan, np.float32)
    found = token_match(x, 18, isa=isa)
    assert sorted(set(found[0].tolist())) == list(range(18))


X = np.ones((2, 4, 6, 3), np.float32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": X[0]}, r"x: found .*\(4, 6, 3\)"),
        ({"x": X[:, :1]}, "wanted a height and width of 2 or more|C-contiguous"),
        ({"x": np.ones((1, 1, 4, 3), np.float32)}, "wanted a height and width of 2 or more"),
        ({"x": X[:, ::2]}, "x: .* not C-contiguous"),
        ({"x": X.astype(np.float64)}, "x: found dtype float64"),
        ({"merged": 19}, "merged: found 19, wanted 0 to 18"),
        ({"merged": -1}, "merged: found -1, wanted 0 to 18"),
        ({"out": np.zeros((2, 23), np.int64)}, r"plan: found shape \(2, 23\), wanted .* \(2, 24\)"),
        ({"out": np.zeros((2, 24), np.int32)}, "plan: found"),
        ({"threads": 0}, "threads: found 0"),
    ],
)
def test_refuses_bad_arguments(change, message):
    with pytest.raises(InputError, match=message):
        token_match(**{"x": X, "merged": 3, **change})
