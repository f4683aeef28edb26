"""token_unmerge on the CPU: rows chosen by a plan, exactly."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastdiff.errors import InputError
from fastdiff.kernels import reference, token_unmerge

pytestmark = pytest.mark.smoke


@pytest.mark.parametrize(
    ("rows", "tokens", "channels"), [(1, 1, 1), (5, 9, 37), (70, 130, 320), (9, 2000, 65)]
)
def test_rows(rng, isa, rows, tokens, channels):
    x = rng.standard_normal((2, rows, channels)).astype(np.float32)
    plan = rng.integers(0, rows, (2, tokens))
    wanted = np.stack([x[b][plan[b]] for b in range(2)])
    for threads in (1, 3):
        assert np.array_equal(token_unmerge(x, plan, threads=threads, isa=isa), wanted)
    again = reference.token_unmerge(torch.from_numpy(x), torch.from_numpy(plan))
    assert np.array_equal(again.numpy(), wanted)


X, PLAN = np.ones((2, 3, 5), np.float32), np.zeros((2, 4), np.int64)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": X[0]}, "x: found"),
        ({"plan": PLAN + 3}, "plan: found 3 at element 0, wanted 0 to 2"),
        ({"plan": PLAN - 1}, "plan: found -1 at element 0, wanted 0 to 2"),
        ({"plan": PLAN[:1]}, r"plan: found shape \(1, 4\)|out: found shape"),
        ({"out": np.zeros((2, 4, 4), np.float32)}, "out: found shape"),
    ],
)
def test_refuses_bad_arguments(change, message):
    with pytest.raises(InputError, match=message):
        token_unmerge(**{"x": X, "plan": PLAN, **change})
