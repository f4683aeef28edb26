"""The nodes of token merging in the native runtime: strided inputs, plans from outside, files that lie."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from fastdiff.config import SizeRange
from fastdiff.errors import EngineError, InputError
from fastdiff.kernels import reference
from tests.compare import assert_close
from tests.targets.native.graphs import GraphBuilder

SIDE = SizeRange(2)


def numbers(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize(("batch", "height", "width"), [(2, 4, 6), (1, 9, 5), (3, 2, 2)])
def test_match_merge_and_unmerge(tmp_path: Path, batch: int, height: int, width: int) -> None:
    """On parts of wider tokens, whose rows do not follow each other."""
    g = GraphBuilder(batch=SizeRange(), height=SIDE, width=SIDE)
    tokens = ("height", "width", "*")
    left = (*tokens, 2, "*", 4, "+", 5, "//")  # of five tokens three are merged
    x = g.input("x", ("batch", "height", "width", 24))
    part = g.node("slice", (x,), ("batch", "height", "width", 20), {"axis": 3, "start": 4})
    plan = g.node(
        "token_match", (part,), ("batch", tokens), {"numerator": 3, "denominator": 5}, dtype="int64"
    )
    flat = g.node("reshape", (x,), ("batch", tokens, 24))
    merged = g.node("token_merge", (flat, plan), ("batch", left, 24))
    some = g.node("slice", (merged,), ("batch", left, 7), {"axis": 2, "start": 3})
    apart = g.node("token_unmerge", (some, plan), ("batch", tokens, 7))
    session = g.session(tmp_path, plan, merged, apart)
    array = numbers(batch, height, width, 24)
    found = session.run({"x": array})
    tensor = torch.from_numpy(array)
    wanted = reference.token_match(tensor[..., 4:], 3, 5)
    assert np.array_equal(found[g.values[plan].name], wanted.numpy())
    means = reference.token_merge(tensor.flatten(1, 2), wanted, 3, 5)
    assert_close(found[g.values[merged].name], means.numpy(), rel_l2=1e-6)
    again = reference.token_unmerge(means[..., 3:10], wanted)
    assert_close(found[g.values[apart].name], again.numpy(), rel_l2=1e-6)


@pytest.mark.parametrize("op", ["token_merge", "token_unmerge"])
def test_a_plan_out_of_range_is_refused(tmp_path: Path, op: str) -> None:
    g = GraphBuilder(batch=SizeRange())
    plan = g.input("plan", ("batch", 6), "int64")
    rows, result = (6, 3) if op == "token_merge" else (3, 6)
    x = g.input("x", ("batch", rows, 5))
    y = g.node(op, (x, plan), ("batch", result, 5))
    session = g.session(tmp_path, y)
    array = numbers(2, rows, 5)
    good = np.zeros((2, 6), np.int64)
    session.run({"x": array, "plan": good})
    for wrong in (-1, 3, 2**40):
        bad = good.copy()
        bad[1, 4] = wrong
        with pytest.raises(InputError, match=f"has row {wrong}, wanted 0 to 2"):
            session.run({"x": array, "plan": bad})


@pytest.mark.parametrize(
    ("attributes", "shape", "result", "message"),
    [
        ({"numerator": 2, "denominator": 1}, (2, 4, 4, 3), (2, 16), "merges more tokens than there are"),
        ({"numerator": 1, "denominator": 0}, (2, 4, 4, 3), (2, 16), "denominator is 0, wanted 1"),
        ({"numerator": 5, "denominator": 6}, (2, 4, 4, 3), (2, 16), "does not fit"),
        ({"numerator": 1, "denominator": 2}, (2, 1, 4, 3), (2, 4), "does not fit"),
        ({"numerator": 1, "denominator": 2}, (2, 4, 4, 3), (2, 15), "does not fit"),
    ],
)
def test_files_that_cannot_be_run(
    tmp_path: Path,
    attributes: dict[str, int],
    shape: tuple[int, ...],
    result: tuple[int, ...],
    message: str,
) -> None:
    g = GraphBuilder()
    x = g.input("x", shape)
    plan = g.node("token_match", (x,), result, attributes, dtype="int64")
    with pytest.raises((EngineError, InputError), match=message):
        g.session(tmp_path, plan).run({"x": numbers(*shape)})


def test_a_plan_of_floats_is_refused(tmp_path: Path) -> None:
    g = GraphBuilder()
    x = g.input("x", (1, 4, 4, 3))
    plan = g.node("token_match", (x,), (1, 16), {"numerator": 1, "denominator": 2})
    with pytest.raises(EngineError, match="its result is not int64"):
        g.session(tmp_path, plan)
