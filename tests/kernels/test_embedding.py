"""embedding on the CPU: rows of a table, exactly."""

from __future__ import annotations

import numpy as np
import pytest

from fastdiff.errors import InputError
from fastdiff.kernels import embedding


@pytest.mark.smoke
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize(
    ("shape", "channels"),
    [
        pytest.param((), 5, id="one id without an axis"),
        pytest.param((7,), 1, id="one channel"),
        pytest.param((2, 77), 768, id="the text encoder's"),
        pytest.param((3, 5), 37, id="a tail of every register"),
        pytest.param((500,), 64, id="items of 253 rows, the last not full"),
        pytest.param((2, 0), 8, id="no ids"),
        pytest.param((3,), 0, id="no channels"),
    ],
)
def test_rows(rng, isa, shape, channels, dtype):
    table = rng.standard_normal((41, channels)).astype(dtype)
    ids = np.asarray(rng.integers(0, 41, shape), np.int64)
    wanted = table[ids].astype(np.float32)
    for threads in (1, 2, 3):
        found = embedding(ids, table, threads=threads, isa=isa)
        assert found.dtype == np.float32
        assert found.shape == wanted.shape
        assert np.array_equal(found, wanted)


def test_every_half(isa):
    # All 65536 of them: subnormal numbers, infinities, NaN.
    table = np.arange(1 << 16, dtype=np.uint16).view(np.float16).reshape(-1, 16)
    found = embedding(np.arange(len(table)), table, isa=isa)
    assert np.array_equal(found, table.astype(np.float32), equal_nan=True)
    assert np.array_equal(np.signbit(found), np.signbit(table))


def test_strides_and_nothing_else_written(rng, isa):
    ids = np.array([[1, 0, 3], [2, 2, 0]])
    for channels in range(1, 40):
        table = rng.standard_normal((4, channels)).astype(np.float32)
        wide = np.full((2, 3, channels + 32), 7.0, np.float32)
        out = wide[..., 16 : 16 + channels]
        assert embedding(ids, table, out=out, isa=isa) is out
        assert np.array_equal(out, table[ids])
        out[...] = 7.0
        assert (wide == 7.0).all()


IDS = np.zeros((2, 3), np.int64)
TABLE = np.zeros((5, 8), np.float32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ids": IDS.astype(np.int32)}, "ids: found dtype int32, wanted int64"),
        ({"ids": [0, 1]}, "ids: found list, wanted a NumPy array of int64"),
        ({"ids": IDS[:, ::2]}, "ids: .* not C-contiguous"),
        ({"ids": IDS + 5}, "ids: found 5 at element 0, wanted 0 to 4"),
        ({"ids": np.array([0, 4, -1])}, "ids: found -1 at element 2, wanted 0 to 4"),
        ({"table": TABLE.astype(np.float64)}, "table: found dtype float64, wanted float32 or float16"),
        ({"table": TABLE[0]}, r"table: found shape \(8,\), wanted two axes"),
        ({"table": TABLE[:, ::2]}, "table: .* not C-contiguous"),
        ({"out": np.zeros((2, 8), np.float32)}, r"out: found shape \(2, 8\), wanted \(2, 3, 8\)"),
        ({"threads": 0}, "threads: found 0"),
    ],
)
def test_refuses_bad_arguments(change, message):
    with pytest.raises(InputError, match=message):
        embedding(**{"ids": IDS, "table": TABLE, **change})
