"""Tactics: the algorithm of each layer, measured at build and chosen under a budget of memory.

Two algorithms take the weights as they are. Winograd's transformed ones have 16/9 (F(2×2)) and 4 times
(F(4×4)) the bytes, and which is fastest differs from size to size. A layer may keep several packings. Which
ones is a knapsack: start with the smallest of each layer, then take the changes that save most time per byte
while they fit.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from fastdiff.config import SizeRange
from fastdiff.targets.graph import Dim, Tuned
from fastdiff.targets.native.pack import layout

__all__ = [
    "Choice",
    "Convolution",
    "Measure",
    "Product",
    "Tunable",
    "Work",
    "choose",
    "neighbours",
    "size_of",
]

_NEIGHBOUR = 0.25
"""Weight of a neighbouring size's time against that of the size that was asked for."""


@dataclass(frozen=True)
class Convolution:
    """A convolution at one size; ``height`` and ``width`` are those of its input, and ``halves`` says whether
    its weights hold half-precision numbers.
    """

    batch: int
    height: int
    width: int
    in_channels: int
    out_channels: int
    kernel: tuple[int, int]
    stride: int
    padding: tuple[int, int, int, int]
    upsample: int
    halves: bool = False

    @property
    def flops(self) -> float:
        """Multiplications and additions of the plain algorithm."""
        top, bottom, left, right = self.padding
        height = (self.height * self.upsample + top + bottom - self.kernel[0]) // self.stride + 1
        width = (self.width * self.upsample + left + right - self.kernel[1]) // self.stride + 1
        per_pixel = self.in_channels * self.out_channels * self.kernel[0] * self.kernel[1]
        return 2.0 * self.batch * height * width * per_pixel

    def __str__(self) -> str:
        extras = (
            (f" /{self.stride}" if self.stride > 1 else "")
            + (f" up {self.upsample}" if self.upsample > 1 else "")
            + (" halves" if self.halves else "")
        )
        return (
            f"{self.batch}x{self.height}x{self.width}x{self.in_channels} -> {self.out_channels}"
            f" {self.kernel[0]}x{self.kernel[1]}{extras}"
        )


@dataclass(frozen=True)
class Product:
    """A linear at one size: ``outputs`` counts rows of its weight."""

    rows: int
    inputs: int
    outputs: int
    activation: str
    halves: bool = False

    @property
    def flops(self) -> float:
        """Multiplications and additions."""
        return 2.0 * self.rows * self.inputs * self.outputs

    def __str__(self) -> str:
        gated = f" {self.activation}" if self.activation == "geglu" else ""
        return f"{self.rows}x{self.inputs} -> {self.outputs}{gated}{' halves' if self.halves else ''}"


Work = Convolution | Product


@dataclass(frozen=True)
class Tunable:
    """A layer to choose for: its work at each size, and the bytes of each algorithm's packing.

    ``weight`` is the same for layers that share a weight, which share its packings as well. Algorithms with
    the same ``layout`` share one packing.
    """

    node: int
    name: str
    weight: str
    work: tuple[Work, ...]
    bytes: Mapping[str, int]

    def stored(self, kept: Sequence[str]) -> int:
        """Bytes of what several algorithms need."""
        return sum({layout(name): self.bytes[name] for name in kept}.values())


Measure = Callable[[Work, str], float]
"""Seconds that an algorithm takes."""


@dataclass(frozen=True)
class Choice:
    """The packings and the measured algorithms of each layer, by node, and what the engine records of them.

    ``layers`` has the tactic for each shape by layer; ``measured`` the milliseconds of each algorithm and the
    GFLOP by shape. Many layers have the same shape, and an engine's manifest is read at every start.
    """

    packings: dict[int, tuple[str, ...]]
    tuned: dict[int, tuple[Tuned, ...]]
    layers: dict[str, dict[str, str]]
    measured: dict[str, dict[str, float]]


def neighbours(sizes: Mapping[str, int], shapes: Mapping[str, SizeRange]) -> tuple[dict[str, int], ...]:
    """The sizes to measure: those asked for, then half and twice each side where a side may be that long."""
    found = [dict(sizes)]
    sides = [symbol for symbol in ("height", "width") if symbol in sizes]
    for numerator, denominator in ((1, 2), (2, 1)) if sides else ():
        scaled = dict(sizes)
        for symbol in sides:
            scaled[symbol] = sizes[symbol] * numerator // denominator
        if all(scaled[symbol] in shapes[symbol] for symbol in sides):
            found.append(scaled)
    return tuple(found)


def size_of(dim: Dim, sizes: Mapping[str, int]) -> int:
    """The value of a size for given symbols."""
    stack: list[int] = []
    for token in dim if isinstance(dim, tuple) else (dim,):
        if isinstance(token, int):
            stack.append(token)
        elif token in sizes:
            stack.append(sizes[token])
        else:
            right, left = stack.pop(), stack.pop()
            match token:
                case "+":
                    stack.append(left + right)
                case "-":
                    stack.append(left - right)
                case "*":
                    stack.append(left * right)
                case "//":
                    stack.append(left // right)
                case _:
                    raise ValueError(f"size {dim} has unknown symbol {token!r}")
    return stack[0]


def choose(
    layers: Sequence[Tunable], sizes: Sequence[Mapping[str, int]], measure: Measure, budget: int
) -> Choice:
    """Choose the packings of all layers, at most ``budget`` bytes, or the smallest of each if that is less.

    ``sizes`` are what the layers' work was made for, the first being what was asked for. Equal work is
    measured once per algorithm.
    """
    times = _measure(layers, measure)
    packings = _knapsack(layers, _costs(layers, times), budget)
    tuned: dict[int, tuple[Tuned, ...]] = {}
    tactics: dict[str, dict[str, str]] = {}
    for layer in layers:
        kept = packings[layer.weight]
        best = [min((times[work, name], name) for name in kept)[1] for work in layer.work]
        tuned[layer.node] = tuple(
            Tuned(dict(size), algorithm) for size, algorithm in zip(sizes, best, strict=True)
        )
        tactics[layer.name] = {str(work): name for work, name in zip(layer.work, best, strict=True)}
    measured: dict[str, dict[str, float]] = {}
    for (work, name), seconds in times.items():
        row = measured.setdefault(str(work), {"gflop": work.flops / 1e9})
        row[name] = round(seconds * 1e3, 4)
    return Choice({layer.node: packings[layer.weight] for layer in layers}, tuned, tactics, measured)


def _measure(layers: Sequence[Tunable], measure: Measure) -> dict[tuple[Work, str], float]:
    wanted = dict.fromkeys((c, name) for layer in layers for c in layer.work for name in layer.bytes)
    return {(convolution, name): measure(convolution, name) for convolution, name in wanted}


def _costs(
    layers: Sequence[Tunable], times: Mapping[tuple[Work, str], float]
) -> dict[str, dict[tuple[str, ...], float]]:
    """What each set of packings of each weight costs in time, as a share of the whole module's least."""
    count = max((len(layer.work) for layer in layers), default=0)
    least = [
        sum(min(times[layer.work[k], name] for name in layer.bytes) for layer in layers) for k in range(count)
    ]
    costs: dict[str, dict[tuple[str, ...], float]] = {}
    for layer in layers:
        of_weight = costs.setdefault(layer.weight, {})
        for kept in _subsets(tuple(layer.bytes)):
            for k, convolution in enumerate(layer.work):
                share = min(times[convolution, name] for name in kept) / max(least[k], 1e-12)
                of_weight[kept] = of_weight.get(kept, 0.0) + share * (_NEIGHBOUR if k else 1.0)
    return costs


def _subsets(names: tuple[str, ...]) -> list[tuple[str, ...]]:
    return [kept for size in range(1, len(names) + 1) for kept in itertools.combinations(names, size)]


def _knapsack(
    layers: Sequence[Tunable], costs: Mapping[str, Mapping[tuple[str, ...], float]], budget: int
) -> dict[str, tuple[str, ...]]:
    """The packings of each weight: greedy along the lower hulls of time over bytes, then what still fits."""
    options = {
        layer.weight: [(layer.stored(kept), cost, kept) for kept, cost in costs[layer.weight].items()]
        for layer in layers
    }
    hulls = {weight: _hull(of_weight) for weight, of_weight in options.items()}
    chosen = {weight: hull[0] for weight, hull in hulls.items()}
    left = budget - sum(option[0] for option in chosen.values())
    queue = [_step(hull, 0, weight) for weight, hull in hulls.items() if len(hull) > 1]
    heapq.heapify(queue)
    while queue:
        _, weight, at = heapq.heappop(queue)
        extra = hulls[weight][at][0] - chosen[weight][0]
        if extra > left:
            continue  # later steps of this weight need this one
        left -= extra
        chosen[weight] = hulls[weight][at]
        if at + 1 < len(hulls[weight]):
            heapq.heappush(queue, _step(hulls[weight], at, weight))
    while best := _best_that_fits(options, chosen, left):
        weight, option = best
        left -= option[0] - chosen[weight][0]
        chosen[weight] = option
    return {weight: option[2] for weight, option in chosen.items()}


Option = tuple[int, float, tuple[str, ...]]


def _hull(options: list[Option]) -> list[Option]:
    """Of the options (bytes, cost, packings), those where each next one saves less per byte than the last."""
    hull: list[Option] = []
    for option in sorted(options):
        if hull and option[1] >= hull[-1][1]:
            continue
        while len(hull) > 1 and _rate(hull[-2], option) >= _rate(hull[-2], hull[-1]):
            hull.pop()
        hull.append(option)
    return hull


def _rate(before: Option, after: Option) -> float:
    """Time saved per extra byte."""
    return (before[1] - after[1]) / max(after[0] - before[0], 1)


def _step(hull: list[Option], at: int, weight: str) -> tuple[float, str, int]:
    """The step of ``weight`` from ``at`` to the next option, as the queue orders it: the best rate first."""
    return -_rate(hull[at], hull[at + 1]), weight, at + 1


def _best_that_fits(
    options: Mapping[str, list[Option]], chosen: Mapping[str, Option], left: int
) -> tuple[str, Option] | None:
    """Of all changes that cost ``left`` bytes at most, the one that saves most time, if any saves some."""
    best: tuple[float, str, Option] | None = None
    for weight, of_weight in options.items():
        now = chosen[weight]
        for option in of_weight:
            saved = now[1] - option[1]
            if option[0] - now[0] <= left and saved > (best[0] if best else 0.0):
                best = saved, weight, option
    return best and best[1:]
