"""Choosing algorithms, with made-up times: what is measured, what fits the budget, what is recorded."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from fastdiff.config import SizeRange
from fastdiff.targets.native.tactics import Convolution, Product, Tunable, choose, neighbours, size_of

CONVOLUTION = Convolution(
    batch=2,
    height=16,
    width=24,
    in_channels=3,
    out_channels=5,
    kernel=(3, 3),
    stride=1,
    padding=(1, 1, 1, 1),
    upsample=1,
)
SIZES = ({"batch": 2, "height": 16, "width": 24}, {"batch": 2, "height": 8, "width": 12})
BYTES = {"direct": 90, "winograd2": 160, "winograd4": 360}


def layer(node: int, channels: int = 3, weight: str | None = None, scale: int = 1) -> Tunable:
    at = [replace(CONVOLUTION, in_channels=channels, **size) for size in SIZES]
    stored = {name: size * scale for name, size in BYTES.items()}
    return Tunable(node, f"layer{node}", weight or f"weight{node}", tuple(at), stored)


def by_algorithm(direct: float, winograd2: float, winograd4: float) -> dict[str, float]:
    return {"direct": direct, "winograd2": winograd2, "winograd4": winograd4}


@pytest.mark.parametrize(
    ("changes", "height", "width"),
    [
        ({}, 16, 24),
        ({"stride": 2}, 8, 12),
        ({"stride": 2, "padding": (0, 1, 0, 1)}, 8, 12),
        ({"upsample": 2}, 32, 48),
        ({"kernel": (1, 5), "padding": (0, 0, 2, 2)}, 16, 24),
    ],
    ids=str,
)
def test_flops_count_the_outputs(changes: dict[str, object], height: int, width: int) -> None:
    convolution = replace(CONVOLUTION, **changes)  # type: ignore[arg-type]
    kernel = convolution.kernel[0] * convolution.kernel[1]
    assert convolution.flops == 2 * 2 * height * width * 3 * 5 * kernel


def test_convolutions_show_their_shape() -> None:
    assert str(CONVOLUTION) == "2x16x24x3 -> 5 3x3"
    assert str(replace(CONVOLUTION, stride=2)) == "2x16x24x3 -> 5 3x3 /2"
    assert str(replace(CONVOLUTION, upsample=2)) == "2x16x24x3 -> 5 3x3 up 2"


@pytest.mark.parametrize(
    ("sizes", "shapes", "wanted"),
    [
        # twice and half of both sides
        ((16, 24), SizeRange(2, None, 4), [(16, 24), (8, 12), (32, 48)]),
        # half of 12 is no multiple of 4
        ((12, 24), SizeRange(2, None, 4), [(12, 24), (24, 48)]),
        # half is under the least, twice over the largest
        ((16, 24), SizeRange(16, 24, 4), [(16, 24)]),
    ],
)
def test_neighbours_are_sizes_that_can_run(
    sizes: tuple[int, int], shapes: SizeRange, wanted: list[tuple[int, int]]
) -> None:
    symbols = {"batch": SizeRange(), "height": shapes, "width": shapes}
    found = neighbours({"batch": 2, "height": sizes[0], "width": sizes[1]}, symbols)
    assert [(size["height"], size["width"]) for size in found] == wanted
    assert {size["batch"] for size in found} == {2}


def test_a_module_without_pictures_has_no_neighbours() -> None:
    assert neighbours({"batch": 2, "tokens": 77}, {}) == ({"batch": 2, "tokens": 77},)


@pytest.mark.parametrize(
    ("dim", "wanted"),
    [
        (7, 7),
        ("height", 12),
        (("height", "width", "*", 4, "//"), 15),
        (("height", 5, "*", 1, "-"), 59),
        (("height", ("width", 2, "//")[0], "+"), 17),
    ],
)
def test_size_of(dim: int | str | tuple[int | str, ...], wanted: int) -> None:
    assert size_of(dim, {"height": 12, "width": 5}) == wanted


def test_size_of_an_unknown_symbol() -> None:
    with pytest.raises(ValueError, match="unknown symbol 'depth'"):
        size_of((1, 2, "depth"), {"height": 1})


def test_each_convolution_is_measured_once_per_algorithm() -> None:
    calls: Counter[tuple[Convolution, str]] = Counter()

    def measure(convolution: Convolution, algorithm: str) -> float:
        calls[convolution, algorithm] += 1
        return 1.0

    layers = [layer(0), layer(1), layer(2, channels=7)]
    choose(layers, SIZES, measure, 10**6)
    assert set(calls.values()) == {1}
    assert len(calls) == 2 * len(SIZES) * len(BYTES), "layers 0 and 1 have one shape"


def test_the_fastest_wins_where_memory_allows() -> None:
    times = by_algorithm(4.0, 2.0, 1.0)
    choice = choose([layer(5)], SIZES, lambda _, name: times[name], 10**6)
    assert choice.packings == {5: ("winograd4",)}
    assert [(dict(t.sizes), t.algorithm) for t in choice.tuned[5]] == [(s, "winograd4") for s in SIZES]


@pytest.mark.parametrize(
    ("budget", "kept"),
    [
        (10, "direct"),  # less than the least
        (159, "direct"),
        (160, "winograd2"),
        (359, "winograd2"),
        (360, "winograd4"),
    ],
)
def test_the_budget_decides(budget: int, kept: str) -> None:
    times = by_algorithm(4.0, 2.0, 1.0)
    choice = choose([layer(0)], SIZES, lambda _, name: times[name], budget)
    assert choice.packings == {0: (kept,)}
    assert {tuned.algorithm for tuned in choice.tuned[0]} == {kept}


def test_a_slower_packing_is_never_kept() -> None:
    times = by_algorithm(1.0, 1.5, 2.0)
    choice = choose([layer(0)], SIZES, lambda _, name: times[name], 10**6)
    assert choice.packings == {0: ("direct",)}


def test_sizes_with_different_winners_keep_both_packings() -> None:
    def measure(convolution: Convolution, algorithm: str) -> float:
        large = by_algorithm(4.0, 2.0, 1.0)
        small = by_algorithm(1.0, 2.0, 4.0)
        return (large if convolution.height == 16 else small)[algorithm]

    choice = choose([layer(0)], SIZES, measure, 90 + 360)
    assert choice.packings == {0: ("direct", "winograd4")}
    assert [tuned.algorithm for tuned in choice.tuned[0]] == ["winograd4", "direct"]
    choice = choose([layer(0)], SIZES, measure, 90 + 359)
    assert choice.packings == {0: ("winograd4",)}, "the size that was asked for counts for more"
    assert [tuned.algorithm for tuned in choice.tuned[0]] == ["winograd4"] * 2


def test_memory_goes_where_it_saves_most_per_byte() -> None:
    """Layer 1 takes ten times the bytes for the same time: layer 0 is served first."""
    times = by_algorithm(4.0, 2.0, 1.0)
    layers = [layer(1, scale=10), layer(0)]
    choice = choose(layers, SIZES, lambda _, name: times[name], 900 + 360)
    assert choice.packings == {0: ("winograd4",), 1: ("direct",)}


def test_layers_that_share_a_weight_share_its_packings() -> None:
    times = by_algorithm(4.0, 2.0, 1.0)
    layers = [layer(0, weight="shared"), layer(1, weight="shared")]
    choice = choose(layers, SIZES, lambda _, name: times[name], 360)
    assert choice.packings == {0: ("winograd4",), 1: ("winograd4",)}, "360 bytes are enough for both"


@pytest.mark.parametrize("seed", range(8))
def test_greedy_is_one_step_from_the_optimum(seed: int) -> None:
    """Against every combination for five layers; the greedy choice may lack what one step would gain."""
    rng = np.random.default_rng(seed)
    layers = [layer(n, channels=n + 1, scale=int(rng.integers(1, 9))) for n in range(5)]
    times = {
        (convolution, name): float(rng.uniform(0.1, 1) / factor)
        for one in layers
        for convolution in one.work
        for name, factor in zip(BYTES, (1, 2, 3), strict=True)
    }
    budget = int(2.5 * sum(one.bytes["direct"] for one in layers))
    choice = choose(layers, SIZES, lambda convolution, name: times[convolution, name], budget)

    totals = [
        sum(min(times[one.work[k], name] for name in BYTES) for one in layers) for k in range(len(SIZES))
    ]

    def cost(one: Tunable, kept: tuple[str, ...]) -> float:
        shares = [
            min(times[c, name] for name in kept) / total for c, total in zip(one.work, totals, strict=True)
        ]
        return shares[0] + 0.25 * shares[1]

    def size(one: Tunable, kept: tuple[str, ...]) -> int:
        return sum(one.bytes[name] for name in kept)

    subsets = [kept for n in (1, 2, 3) for kept in itertools.combinations(BYTES, n)]
    optimum = min(
        sum(cost(one, kept) for one, kept in zip(layers, combination, strict=True))
        for combination in itertools.product(subsets, repeat=len(layers))
        if sum(size(one, kept) for one, kept in zip(layers, combination, strict=True)) <= budget
    )
    found = sum(cost(one, choice.packings[one.node]) for one in layers)
    step = max(cost(one, ("direct",)) - cost(one, tuple(BYTES)) for one in layers)
    assert sum(size(one, choice.packings[one.node]) for one in layers) <= budget
    assert optimum <= found + 1e-12
    assert found <= optimum + step


def test_what_is_recorded() -> None:
    times = by_algorithm(4e-3, 2e-3, 1e-3)
    choice = choose([layer(0), layer(1)], SIZES, lambda _, name: times[name], 720)
    shapes = ["2x16x24x3 -> 5 3x3", "2x8x12x3 -> 5 3x3"]
    assert choice.layers == {name: dict.fromkeys(shapes, "winograd4") for name in ("layer0", "layer1")}
    assert list(choice.measured) == shapes
    assert choice.measured[shapes[0]] == {
        "gflop": CONVOLUTION.flops / 1e9,
        "direct": 4.0,
        "winograd2": 2.0,
        "winograd4": 1.0,
    }


def test_products_show_their_shape() -> None:
    product = Product(rows=6, inputs=4, outputs=10, activation="silu")
    assert str(product) == "6x4 -> 10"
    assert product.flops == 2 * 6 * 4 * 10
    assert str(replace(product, activation="geglu")) == "6x4 -> 10 geglu", "which is measured apart"


def test_algorithms_that_share_a_layout_are_paid_for_once() -> None:
    both = {"direct": 90, "winograd2_plain": 90, "winograd2": 160}
    assert Tunable(0, "layer", "weight", (), both).stored(("direct", "winograd2_plain")) == 90
    assert Tunable(0, "layer", "weight", (), both).stored(tuple(both)) == 250
