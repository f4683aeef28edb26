"""token_merge on the CPU: means of the tokens with one row."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastdiff.errors import InputError
from fastdiff.kernels import reference, token_match, token_merge
from tests.compare import assert_close

pytestmark = pytest.mark.smoke


@pytest.mark.parametrize("shape", [(1, 4, 4, 1), (2, 8, 6, 37), (1, 16, 16, 320), (3, 5, 7, 65)])
@pytest.mark.parametrize("percent", [0, 50, 75])
def test_means(rng, isa, shape, percent):
    batch, height, width, channels = shape
    tokens = height * width
    merged = tokens * percent // 100
    x = rng.standard_normal(shape).astype(np.float32)
    plan = token_match(x, merged)
    flat = x.reshape(batch, tokens, channels)
    exact = flat.astype(np.float64)
    rows = tokens - merged
    wanted = np.stack([[exact[b][plan[b] == m].mean(0) for m in range(rows)] for b in range(batch)])
    for threads in (1, 3):
        found = token_merge(flat, plan, rows, threads=threads, isa=isa)
        assert_close(found, wanted, rel_l2=1e-6)
        assert np.array_equal(found, token_merge(flat, plan, rows, isa=isa))
    again = reference.token_merge(torch.from_numpy(flat), torch.from_numpy(plan), percent, 100)
    assert_close(again.numpy(), wanted, rel_l2=1e-6)


def test_a_row_without_tokens_is_zero(isa):
    x = np.ones((1, 3, 5), np.float32)
    found = token_merge(x, np.array([[0, 2, 2]]), 4, isa=isa)
    assert np.array_equal(found[0, :, 0], [1, 0, 1, 0])


X, PLAN = np.ones((2, 3, 5), np.float32), np.zeros((2, 3), np.int64)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": X[0]}, "x: found"),
        ({"x": X[:, :, ::2]}, "x"),
        ({"plan": PLAN + 2}, "plan: found 2 at element 0, wanted 0 to 1"),
        ({"plan": PLAN - 1}, "plan: found -1 at element 0, wanted 0 to 1"),
        ({"plan": PLAN[:1]}, r"plan: found shape \(1, 3\)"),
        ({"plan": PLAN.astype(np.float32)}, "plan: found"),
        ({"out": np.zeros((2, 2, 4), np.float32)}, "out: found shape"),
    ],
)
def test_refuses_bad_arguments(change, message):
    with pytest.raises(InputError, match=message):
        token_merge(**{"x": X, "plan": PLAN, "rows": 2, **change})
