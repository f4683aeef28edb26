"""Native sessions against PyTorch: every op, views, concatenations, stages, sharing and errors."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from fastdiff import _C
from fastdiff.config import SizeRange
from fastdiff.errors import InputError
from fastdiff.targets.graph import Tuned
from tests.compare import assert_close
from tests.targets.native.graphs import GraphBuilder

ANY = SizeRange()


def numbers(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def nchw(x: torch.Tensor) -> torch.Tensor:
    return x.permute(0, 3, 1, 2)


def nhwc(x: torch.Tensor) -> torch.Tensor:
    return x.permute(0, 2, 3, 1)


def test_a_residual_block_with_skip(tmp_path: Path) -> None:
    """Convolution, norm, time vector, residual, concatenation and permuted input and output."""
    g = GraphBuilder(batch=ANY, height=ANY, width=ANY)
    shape = ("batch", "height", "width")
    x = g.input("x", ("batch", 3, "height", "width"))
    t = g.input("t", ("batch", 5))
    weights = {
        name: numbers(*size, seed=i)
        for i, (name, size) in enumerate(
            {
                "a": (6, 3, 3, 3),
                "b": (6, 6, 3, 3),
                "c": (4, 12, 1, 1),
                "t": (6, 5),
                "n": (6,),
                "m": (6,),
            }.items()
        )
    }
    w = {name: torch.from_numpy(array) for name, array in weights.items()}
    h = g.node("permute", (x,), (*shape, 3), {"axes": (0, 2, 3, 1)})
    skip = g.conv2d(h, weights["a"], weights["n"], (*shape, 6))
    norm = g.node(
        "group_norm_silu",
        (skip,),
        (*shape, 6),
        {"groups": 3, "eps": 1e-5, "silu": 1},
        {"weight": weights["n"], "bias": weights["m"]},
    )
    vector = g.linear(t, weights["t"], activation="silu")
    block = g.conv2d(norm, weights["b"], None, (*shape, 6), vector=vector, residual=skip, scale=0.5)
    both = g.node("concat", (block, skip), (*shape, 12), {"axis": 3})
    last = g.conv2d(both, weights["c"], weights["n"][:4], (*shape, 4), padding=(0, 0, 0, 0))
    y = g.node("permute", (last,), ("batch", 4, "height", "width"), {"axes": (0, 3, 1, 2)})
    session = g.session(tmp_path, y)
    for sizes in ((2, 5, 7), (1, 1, 3), (2, 5, 7)):  # odd maps, one row, and back to a plan of before
        batch, height, width = sizes
        inputs = {"x": numbers(batch, 3, height, width), "t": numbers(batch, 5)}
        found = session.run(inputs)[f"permute_{len(g.nodes) - 1}"]
        xt, tt = torch.from_numpy(inputs["x"]), torch.from_numpy(inputs["t"])
        s = functional.conv2d(xt, w["a"], w["n"], padding=1)
        v = functional.silu(tt @ w["t"].T)[:, :, None, None]
        n = functional.silu(functional.group_norm(s, 3, w["n"], w["m"]))
        b = 0.5 * (functional.conv2d(n, w["b"], padding=1) + v + s)
        wanted = functional.conv2d(torch.cat([b, s], 1), w["c"], w["n"][:4])
        assert_close(found, wanted, rel_l2=1e-6)
    # Both parts of the concatenation are computed in place: the input is copied once, the output once.
    assert session.plan({"batch": 2, "height": 5, "width": 7}).count("step copy") == 2


def test_a_transformer_block(tmp_path: Path) -> None:
    """Embedding, layer norm, merged projection with slices as views, causal attention, GEGLU."""
    g = GraphBuilder(batch=ANY, tokens=SizeRange(1, 77))
    shape = ("batch", "tokens")
    ids = g.input("ids", shape, "int64")
    table, positions = numbers(11, 8), np.arange(77, dtype=np.int64).reshape(1, 77)
    qkv, out, up = numbers(24, 8, seed=1), numbers(8, 8, seed=2), numbers(40, 8, seed=3)
    gain, shift, bias = numbers(8, seed=4), numbers(8, seed=5), numbers(40, seed=6)
    place_table = numbers(77, 8, seed=7)
    token = g.node("embedding", (ids,), (*shape, 8), weights={"table": table})
    constant = g.node("constant", (), (1, 77), weights={"value": positions}, dtype="int64")
    cut = g.node("slice", (constant,), (1, "tokens"), {"axis": 1, "start": 0}, dtype="int64")
    place = g.node("embedding", (cut,), (1, "tokens", 8), weights={"table": place_table})
    x = g.node("add", (token, place), (*shape, 8))
    norm = g.node("layer_norm", (x,), (*shape, 8), {"eps": 1e-5}, {"weight": gain, "bias": shift})
    merged = g.linear(norm, qkv)
    q, k, v = (g.node("slice", (merged,), (*shape, 8), {"axis": 2, "start": start}) for start in (0, 8, 16))
    attended = g.node("attention", (q, k, v), (*shape, 8), {"heads": 2, "scale": 0.5, "causal": 1})
    y = g.linear(attended, out, residual=x)
    gated = g.linear(y, up, bias, activation="geglu")
    wide = g.linear(y, up)
    alone = g.node("geglu", (wide,), (*shape, 20))
    total = g.node("subtract", (gated, alone), (*shape, 20))
    session = g.session(tmp_path, total, y)
    inputs = {"ids": np.random.default_rng(0).integers(0, 11, (3, 9))}
    found = session.run(inputs)
    tt = torch.from_numpy
    e = tt(table)[inputs["ids"]] + tt(place_table)[:9]
    parts = (functional.layer_norm(e, (8,), tt(gain), tt(shift)) @ tt(qkv).T).reshape(3, 9, 3, 2, 4)
    heads = [part.transpose(1, 2) for part in parts.unbind(2)]
    a = (
        functional.scaled_dot_product_attention(*heads, is_causal=True, scale=0.5)
        .transpose(1, 2)
        .reshape(3, 9, 8)
    )
    wanted = a @ tt(out).T + e
    first = wanted @ tt(up).T
    geglu = [u.chunk(2, -1)[0] * functional.gelu(u.chunk(2, -1)[1]) for u in (first + tt(bias), first)]
    assert_close(found[g.values[y].name], wanted, rel_l2=1e-6)
    assert_close(found[g.values[total].name], geglu[0] - geglu[1], rel_l2=2e-6)
    with pytest.raises(InputError, match="id 11 is out of range"):
        session.run({"ids": np.full((1, 1), 11)})


IDS = np.array([[1, 5, 2, 5], [5, 1, 1, 9], [1, 2, 3, 4], [9, 9, 0, 5]])


@pytest.mark.parametrize(
    ("token", "wanted"),
    [(5, [1, 0, 0, 3]), (9, [0, 3, 0, 0]), (-1, [1, 3, 3, 0]), (2**31 - 1, [0, 0, 0, 0])],
    ids=["in all but one", "twice in one", "the largest", "in none"],
)
def test_selected_tokens(tmp_path: Path, token: int, wanted: list[int]) -> None:
    """The first that has the id; the first of all where none has. From rows, from a part of wider rows that
    one result holds for several readers, and from tokens of which each is behind all batches."""
    g = GraphBuilder(batch=ANY, tokens=ANY)
    shape = ("batch", "tokens", 3)
    ids = g.input("ids", ("batch", "tokens"), "int64")
    x = g.input("x", ("batch", "tokens", 6))
    late = g.input("late", ("tokens", "batch", 3))
    part = g.node("slice", (x,), shape, {"axis": 2, "start": 2})
    turned = g.node("permute", (late,), shape, {"axes": (1, 0, 2)})
    outputs = [
        g.node("select_token", (value, ids), ("batch", g.values[value].shape[2]), {"token": token})
        for value in (x, part, turned)
    ]
    session = g.session(tmp_path, *outputs)
    arrays = {"ids": IDS, "x": numbers(4, 4, 6), "late": numbers(4, 4, 3)}
    found = session.run(arrays)
    values = (arrays["x"], arrays["x"][:, :, 2:5], arrays["late"].transpose(1, 0, 2))
    for output, value in zip(outputs, values, strict=True):
        np.testing.assert_array_equal(found[g.values[output].name], value[np.arange(4), wanted])


UNARY = {
    "copy": lambda x: x,
    "silu": functional.silu,
    "gelu": functional.gelu,
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "relu": functional.relu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "exp": torch.exp,
    "sin": torch.sin,
    "cos": torch.cos,
    "sqrt": lambda x: torch.sqrt(x),
    "negate": torch.neg,
}


def test_elementwise_ops_and_resampling(tmp_path: Path) -> None:
    g = GraphBuilder(batch=ANY)
    x = g.input("x", ("batch", 4, 6, 3))
    row = g.input("row", (3,))
    outputs = {name: g.node(name, (x,), ("batch", 4, 6, 3)) for name in UNARY}
    outputs["clamp"] = g.node("clamp", (x,), ("batch", 4, 6, 3), {"low": -0.5, "high": 0.25})
    outputs["add_scalar"] = g.node("add_scalar", (x,), ("batch", 4, 6, 3), {"scalar": 0.5})
    outputs["mul_scalar"] = g.node("mul_scalar", (x,), ("batch", 4, 6, 3), {"scalar": -1.5})
    for name in ("add", "subtract", "multiply", "divide"):
        outputs[name] = g.node(name, (x, row), ("batch", 4, 6, 3))
    outputs["upsample_nearest2d"] = g.node("upsample_nearest2d", (x,), ("batch", 8, 12, 3), {"factor": 2})
    outputs["avg_pool2d"] = g.node("avg_pool2d", (x,), ("batch", 2, 3, 3), {"factor": 2})
    turned = g.node("permute", (row,), (3,), {"axes": (0,)})
    outputs["expand"] = g.node("expand", (turned,), ("batch", 4, 6, 3))
    frequencies = np.array([1.0, 0.3], np.float32)
    outputs["timestep_embedding"] = g.node(
        "timestep_embedding", (row,), (3, 4), {"sine_first": 1}, {"frequencies": frequencies}
    )
    # The same input at three places of one result, along an axis that is not the last.
    outputs["concat"] = g.node("concat", (x, x, x), ("batch", 12, 6, 3), {"axis": 1})
    session = g.session(tmp_path, *outputs.values())
    inputs = {"x": np.abs(numbers(2, 4, 6, 3)) + 0.1, "row": numbers(3)}
    found = {name: session.run(inputs)[g.values[value].name] for name, value in outputs.items()}
    xt, rt = torch.from_numpy(inputs["x"]), torch.from_numpy(inputs["row"])
    wanted = {name: function(xt) for name, function in UNARY.items()}
    wanted |= {"clamp": xt.clamp(-0.5, 0.25), "add_scalar": xt + 0.5, "mul_scalar": xt * -1.5}
    wanted |= {"add": xt + rt, "subtract": xt - rt, "multiply": xt * rt, "divide": xt / rt}
    wanted["upsample_nearest2d"] = nhwc(functional.interpolate(nchw(xt), scale_factor=2.0))
    wanted["avg_pool2d"] = nhwc(functional.avg_pool2d(nchw(xt), 2))
    wanted["expand"] = rt.expand(2, 4, 6, 3)
    angles = rt[:, None] * torch.from_numpy(frequencies)
    wanted["timestep_embedding"] = torch.cat([angles.sin(), angles.cos()], 1)
    wanted["concat"] = torch.cat([xt, xt, xt], 1)
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert_close(found[name], value, rel_l2=1e-6, label=name)


def staged(folder: Path) -> tuple[GraphBuilder, _C.NativeSession, list[np.ndarray]]:
    """step(x, prompt, t) = conv(x, vector = MLP(t)), plus attention over what the prompt stage projected."""
    g = GraphBuilder(batch=ANY, height=ANY, tokens=ANY)
    x = g.input("x", ("batch", "height", 1, 4))
    t = g.input("t", ("batch",))
    prompt = g.input("prompt", ("batch", "tokens", 6))
    frequencies = np.array([1.0, 0.1, 0.01], np.float32)
    mlp, keys, kernel = numbers(8, 6), numbers(8, 6, seed=1), numbers(4, 4, 1, 1, seed=2)
    wave = g.node(
        "timestep_embedding",
        (t,),
        ("batch", 6),
        {"sine_first": 0},
        {"frequencies": frequencies},
        stage="schedule",
    )
    time = g.linear(wave, mlp, activation="silu", stage="schedule")
    first, second = (
        g.node("slice", (time,), ("batch", 4), {"axis": 1, "start": start}, stage="schedule")
        for start in (0, 4)
    )
    both = g.linear(prompt, keys, stage="prompt")
    k, v = (
        g.node("slice", (both,), ("batch", "tokens", 4), {"axis": 2, "start": s}, stage="prompt")
        for s in (0, 4)
    )
    shape = ("batch", "height", 1, 4)
    h = g.conv2d(x, kernel, None, shape, vector=first, padding=(0, 0, 0, 0))
    rows = g.node("reshape", (h,), ("batch", "height", 4))
    a = g.node("attention", (rows, k, v), ("batch", "height", 4), {"heads": 1, "scale": 0.5, "causal": 0})
    wide = g.node("reshape", (second,), ("batch", 1, 4))
    y = g.node("add", (a, wide), ("batch", "height", 4))
    return g, g.session(folder, y), [mlp, keys, kernel, frequencies]


def test_stages_give_what_one_run_gives(tmp_path: Path) -> None:
    """Schedule for all timesteps at once, the prompt once, then steps in any order."""
    g, session, _ = staged(tmp_path)
    name = g.values[-1].name
    x, prompt = numbers(2, 5, 1, 4), numbers(2, 3, 6)
    timesteps = np.array([999.0, 500.0, 1.0], np.float32)
    sizes = {"batch": 2, "height": 5, "tokens": 3}
    whole = [session.run({"x": x, "t": np.full(2, t, np.float32), "prompt": prompt})[name] for t in timesteps]
    session.run_stage("schedule", {"t": timesteps}, sizes, rows=3)
    with pytest.raises(InputError, match="prompt stage has not run"):
        session.run_stage("step", {"x": x}, sizes, rows=3)
    session.run_stage("prompt", {"prompt": prompt}, sizes, rows=3)
    for row in (0, 2, 1, 0):
        found = session.run_stage("step", {"x": x}, sizes, rows=3, row=row)[name]
        np.testing.assert_array_equal(found, whole[row])
    with pytest.raises(InputError, match="row is 3 of 3"):
        session.run_stage("step", {"x": x}, sizes, rows=3, row=3)
    with pytest.raises(InputError, match="x is missing"):
        session.run_stage("step", {}, sizes, rows=3)
    with pytest.raises(InputError, match=r"t: found shape \[2\], wanted \[3\]"):
        session.run_stage("schedule", {"t": timesteps[:2]}, sizes, rows=3)
    session.run({"x": x, "t": timesteps[:2], "prompt": prompt})
    with pytest.raises(InputError, match="has not run"):
        session.run_stage("step", {"x": x}, sizes, rows=3)


def test_run_keeps_what_it_made_of_a_prompt(tmp_path: Path) -> None:
    """The same prompt again is not computed again; another in the same array, or of another size, is."""
    g, session, _ = staged(tmp_path)
    name = g.values[-1].name
    fresh = _C.NativeModule(str(tmp_path / "m.fdn"))

    def check(x: np.ndarray, prompt: np.ndarray) -> None:
        inputs = {"x": x, "t": np.full(x.shape[0], 500.0, np.float32), "prompt": prompt}
        wanted = _C.NativeSession(fresh, 1).run(inputs)[name]
        np.testing.assert_array_equal(session.run(inputs)[name], wanted)

    prompt = numbers(2, 3, 6)
    check(numbers(2, 5, 1, 4), prompt)
    check(2 * numbers(2, 5, 1, 4), prompt)
    check(2 * numbers(2, 5, 1, 4), prompt.copy())
    prompt[1, 2, 5] += 1
    check(numbers(2, 5, 1, 4), prompt)
    check(numbers(2, 5, 1, 4), prompt[:, :2].copy())
    check(numbers(2, 7, 1, 4), prompt)
    check(numbers(2, 5, 1, 4), prompt)
    session.threads = 2
    check(numbers(2, 5, 1, 4), prompt)


def test_sessions_share_a_module(tmp_path: Path) -> None:
    """Four sessions in four threads, each with sizes of its own."""
    g, session, _ = staged(tmp_path)
    name = g.values[-1].name
    module = _C.NativeModule(str(tmp_path / "m.fdn"))
    problems: list[str] = []

    def work(batch: int) -> None:
        inputs = {"x": numbers(batch, 5, 1, 4), "t": numbers(batch), "prompt": numbers(batch, 3, 6)}
        wanted = None
        for threads in (1, 2, 3):
            own = _C.NativeSession(module, threads)
            for _ in range(20):
                found = own.run(inputs)[name]
                wanted = found if wanted is None else wanted
                if not np.array_equal(found, wanted):
                    problems.append(f"batch {batch}, {threads} threads")

    workers = [threading.Thread(target=work, args=(batch,)) for batch in (1, 2, 3, 4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert problems == []
    session.threads = 2
    assert session.threads == 2


def test_the_tuned_algorithm_is_chosen(tmp_path: Path) -> None:
    g = GraphBuilder(batch=ANY, height=ANY)
    x = g.input("x", ("batch", "height", 4, 4))
    kernel = numbers(4, 4, 3, 3)
    shape = ("batch", "height", 4, 4)
    tuned = [Tuned({"height": 8}, "winograd4"), Tuned({"height": 9, "batch": 2}, "winograd2")]
    y = g.conv2d(x, kernel, None, shape, algorithms=("direct", "winograd2", "winograd4"), tuned=tuned)
    session = g.session(tmp_path, y)
    assert "by winograd4" in session.plan({"batch": 3, "height": 8})
    assert "by winograd2" in session.plan({"batch": 2, "height": 9})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": numbers(2, 5, 1, 3)}, r"x: found shape \[2, 5, 1, 3\], wanted \[2, 5, 1, 4\]"),
        ({"x": numbers(2, 5, 1, 4).astype(np.float64)}, "x: found dtype float64, wanted float32"),
        ({"x": numbers(2, 4, 5, 1).transpose(0, 2, 3, 1)}, "not C-contiguous"),
        ({"x": [1.0]}, "x: found list"),
        ({"x": numbers(2)}, "x: found shape"),
        ({"x": numbers(0, 5, 1, 4)}, "batch is 0, wanted 1 or more"),
        ({"prompt": numbers(3, 3, 6)}, r"prompt: found shape \[3, 3, 6\], wanted \[2, 3, 6\]"),
        ({"y": numbers(2)}, "unknown input"),
    ],
)
def test_wrong_inputs_are_refused(change, message, tmp_path: Path) -> None:
    _, session, _ = staged(tmp_path)
    inputs = {"x": numbers(2, 5, 1, 4), "t": numbers(2), "prompt": numbers(2, 3, 6)} | change
    with pytest.raises(InputError, match=message):
        session.run(inputs)


def test_a_module_describes_itself(tmp_path: Path) -> None:
    g, _, weights = staged(tmp_path)
    module = _C.NativeModule(str(tmp_path / "m.fdn"))
    assert module.inputs == [
        ("x", "float32", ("batch", "height", 1, 4)),
        ("t", "float32", ("batch",)),
        ("prompt", "float32", ("batch", "tokens", 6)),
    ]
    assert module.outputs == [(g.values[-1].name, "float32", ("batch", "height", 4))]
    assert module.symbols == {"batch": (1, None, 1), "height": (1, None, 1), "tokens": (1, None, 1)}
    assert module.weight_bytes >= sum(array.nbytes for array in weights)


def norm(g: GraphBuilder, x: int, weight: np.ndarray, groups: int, silu: bool) -> int:
    attributes = {"groups": groups, "eps": 1e-5, "silu": int(silu)}
    return g.node("group_norm_silu", (x,), g.values[x].shape, attributes, {"weight": weight, "bias": weight})


@pytest.mark.parametrize("algorithm", ["direct", "winograd2", "winograd4"])
def test_norms_taken_apart(algorithm: str, tmp_path: Path) -> None:
    """A norm between two convolutions, one that two convolutions' sums meet, one that has two readers."""
    g = GraphBuilder(batch=ANY, height=ANY, width=ANY)
    shape = ("batch", "height", "width", 20)
    x = g.input("x", shape)
    weights = [numbers(20, 20, 3, 3, seed=i) / 13 for i in range(5)]
    scales = [numbers(20, seed=i) for i in range(4)]

    def conv(source: int, index: int, **more: int) -> int:
        return g.conv2d(source, weights[index], None, shape, algorithms=(algorithm,), **more)

    a = conv(norm(g, x, scales[0], 4, True), 0)  # the first norm has no sums to read
    b = conv(norm(g, a, scales[1], 5, False), 1, residual=x)  # sums, and applied while loading
    # Two norms of one convolution: its sums serve the first, which its convolution applies.
    c = conv(norm(g, b, scales[2], 2, True), 2, residual=b)
    d = g.linear(norm(g, b, scales[3], 10, True), np.ascontiguousarray(weights[3][:, :, 0, 0]))
    e = norm(g, d, scales[0], 4, True)  # two readers: computed as it is
    f = conv(e, 4, residual=e)
    session = g.session(tmp_path, c, f, threads=2)

    def reference(value: torch.Tensor, index: int, groups: int, silu: bool) -> torch.Tensor:
        scale = torch.from_numpy(scales[index]).double()
        y = functional.group_norm(value, groups, scale, scale)
        return functional.silu(y) if silu else y

    def convolved(value: torch.Tensor, index: int) -> torch.Tensor:
        return functional.conv2d(value, torch.from_numpy(weights[index]).double(), padding=1)

    for sizes in ((2, 7, 9), (1, 12, 8), (3, 1, 1)):
        array = 3 * numbers(*sizes, 20) + 5  # a mean far from zero, which the padding must not see
        t = nchw(torch.from_numpy(array).double())
        ta = convolved(reference(t, 0, 4, True), 0)
        tb = convolved(reference(ta, 1, 5, False), 1) + t
        tc = convolved(reference(tb, 2, 2, True), 2) + tb
        td = functional.conv2d(
            reference(tb, 3, 10, True), torch.from_numpy(weights[3][:, :, :1, :1]).double()
        )
        te = reference(td, 0, 4, True)
        found = session.run({"x": array})
        names = [g.values[output].name for output in (c, f)]
        for name, wanted in zip(names, (tc, convolved(te, 4) + te), strict=True):
            assert_close(found[name], nhwc(wanted), rel_l2=1e-5, label=f"{name} {sizes}")
    lines = session.plan({"batch": 2, "height": 7, "width": 9}).splitlines()
    norms = [line for line in lines if "group_norm_silu" in line]
    assert ["applied" in line for line in norms] == [True, True, True, False, False]
    assert ["with sums" in line for line in lines if "conv2d" in line] == [True, True, False, False]
