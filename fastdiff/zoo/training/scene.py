"""What a scene is: objects, relations, background, and how one is drawn at random.

Coordinates are fractions of the picture's side, origin at the top left, ``y`` downwards, so that a
scene is independent of the resolution it is drawn at.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

__all__ = [
    "BACKGROUNDS",
    "COLOURS",
    "NEUTRALS",
    "RELATIONS",
    "SHAPES",
    "Background",
    "Object",
    "Scene",
    "random_scene",
]

SHAPES = ("circle", "square", "triangle", "star", "ring", "cross")
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 32, 38),
    "orange": (248, 136, 20),
    "yellow": (246, 220, 40),
    "green": (34, 150, 58),
    "cyan": (50, 208, 224),
    "blue": (34, 70, 206),
    "purple": (122, 40, 168),
    "pink": (246, 130, 190),
}
"""Colours of objects, sRGB."""
NEUTRALS: dict[str, tuple[int, int, int]] = {
    "white": (246, 246, 246),
    "gray": (150, 150, 150),
    "black": (24, 24, 24),
    "beige": (226, 212, 182),
}
"""Colours of backgrounds, sRGB: unsaturated, so that every object stands out."""
BACKGROUNDS = ("plain", "gradient", "striped", "checkered")
RELATIONS = ("left of", "right of", "above", "below", "inside")
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
CONTAINERS = ("circle", "square", "ring")
"""Shapes with room for another one inside."""

SMALL_RADIUS, LARGE_RADIUS, CONTAINER_RADIUS = 0.13, 0.195, 0.33
HELD_OUT_SHARE = 8
"""One combination in this many never occurs in training."""


@dataclass(frozen=True)
class Object:
    """A shape with its colour, size word, centre ``(x, y)`` and radius, the latter three as fractions of
    the side.
    """

    shape: str
    colour: str
    size: str
    x: float = 0.5
    y: float = 0.5
    radius: float = SMALL_RADIUS


@dataclass(frozen=True)
class Background:
    """``kind`` from BACKGROUNDS; ``second`` is unused when plain; ``vertical`` turns gradients and
    stripes.
    """

    kind: str
    first: str
    second: str
    vertical: bool = False
    period: float = 0.25
    phase: float = 0.0


@dataclass(frozen=True)
class Scene:
    """One to three objects in drawing order of the caption: ``relation`` holds between the first and the
    second
    (``None``: unrelated), ``third_relation`` between the third and both others.
    """

    objects: tuple[Object, ...]
    background: Background
    relation: str | None = None
    third_relation: str | None = None

    def combination(self) -> str:
        """What must be unseen for a scene to count as held out: all shapes and colours with their
        relations, and
        for a single object its size and background as well.
        """
        parts = [f"{o.colour} {o.shape}" for o in self.objects]
        parts += [str(self.relation), str(self.third_relation)]
        if len(self.objects) == 1:
            b = self.background
            parts += [self.objects[0].size, b.kind, b.first, b.second if b.kind != "plain" else ""]
        return "|".join(parts)

    def held_out(self) -> bool:
        """Whether this scene's combination is reserved for evaluation, decided by a hash."""
        return hashlib.sha256(self.combination().encode()).digest()[0] % HELD_OUT_SHARE == 0

    def drawing_order(self) -> tuple[Object, ...]:
        """Objects back to front: what contains another is drawn before it."""
        return (
            tuple(sorted(self.objects, key=lambda o: -o.radius))
            if self.relation == "inside"
            else self.objects
        )


def random_scene(rng: np.random.Generator, held_out: bool = False, objects: int | None = None) -> Scene:
    """A random scene from the training half (or, with ``held_out``, from the reserved combinations)."""
    while True:
        scene = _draw(rng, objects)
        if scene.held_out() == held_out:
            return scene


def _draw(rng: np.random.Generator, objects: int | None) -> Scene:
    count = objects or int(rng.choice([1, 2, 3], p=[0.25, 0.5, 0.25]))
    background = _random_background(rng)
    if count == 1:
        return Scene((_place(_random_object(rng), rng),), background)
    if count == 2:
        relation = str(rng.choice(RELATIONS)) if rng.random() < 0.85 else None
        return Scene(_place_pair(rng, relation), background, relation)
    relation = str(rng.choice(RELATIONS[:4]))
    side = str(
        rng.choice(("above", "below") if relation in ("left of", "right of") else ("left of", "right of"))
    )
    return Scene(_place_triple(rng, relation, side), background, relation, side)


def _random_background(rng: np.random.Generator) -> Background:
    first, second = rng.choice(list(NEUTRALS), size=2, replace=False)
    return Background(
        kind=str(rng.choice(BACKGROUNDS)),
        first=str(first),
        second=str(second),
        vertical=bool(rng.random() < 0.5),
        period=float(rng.choice([0.25, 0.375])),
        phase=float(rng.choice([0.0, 0.5])),
    )


def _random_object(
    rng: np.random.Generator, avoid: tuple[str, ...] = (), shapes: tuple[str, ...] = SHAPES
) -> Object:
    colours = [c for c in COLOURS if c not in avoid]
    size = str(rng.choice(["small", "large"]))
    radius = (SMALL_RADIUS if size == "small" else LARGE_RADIUS) * float(rng.uniform(0.94, 1.06))
    return Object(str(rng.choice(shapes)), str(rng.choice(colours)), size, radius=radius)


def _at(o: Object, x: float, y: float, radius: float | None = None) -> Object:
    return Object(o.shape, o.colour, o.size, float(x), float(y), o.radius if radius is None else radius)


def _inset(rng: np.random.Generator, radius: float, low: float = 0.0, high: float = 1.0) -> float:
    """A centre in ``[low, high]`` that keeps the object inside that range, with a margin of 3 %."""
    a, b = low + radius + 0.03, high - radius - 0.03
    return float(rng.uniform(a, b)) if b > a else (low + high) / 2


def _place(o: Object, rng: np.random.Generator) -> Object:
    return _at(o, _inset(rng, o.radius), _inset(rng, o.radius))


def _place_pair(rng: np.random.Generator, relation: str | None) -> tuple[Object, Object]:
    if relation == "inside":
        b = _random_object(rng, shapes=CONTAINERS)
        b = Object(b.shape, b.colour, "large", radius=CONTAINER_RADIUS * float(rng.uniform(0.97, 1.03)))
        b = _place(b, rng)
        a = _random_object(rng, avoid=(b.colour,))
        a = Object(a.shape, a.colour, "small", radius=SMALL_RADIUS * float(rng.uniform(0.94, 1.06)))
        return _at(a, b.x + float(rng.uniform(-0.02, 0.02)), b.y + float(rng.uniform(-0.02, 0.02))), b
    a = _random_object(rng)
    b = _random_object(rng, avoid=(a.colour,))
    direction = relation or str(rng.choice(RELATIONS[:4]))
    near, far = (a, b) if direction in ("left of", "above") else (b, a)
    u, v = _inset(rng, near.radius, 0.0, 0.5), _inset(rng, far.radius, 0.5, 1.0)
    middle = float(rng.uniform(0.26, 0.74))
    across = [
        float(np.clip(middle + rng.uniform(-0.06, 0.06), 0.03 + o.radius, 0.97 - o.radius))
        for o in (near, far)
    ]
    if direction in ("left of", "right of"):
        near, far = _at(near, u, across[0]), _at(far, v, across[1])
    else:
        near, far = _at(near, across[0], u), _at(far, across[1], v)
    return (near, far) if direction in ("left of", "above") else (far, near)


def _place_triple(rng: np.random.Generator, relation: str, side: str) -> tuple[Object, Object, Object]:
    a = _random_object(rng)
    b = _random_object(rng, avoid=(a.colour,))
    c = _random_object(rng, avoid=(a.colour, b.colour))
    low = side in ("below", "right of")  # the third lies in the far half
    pair, third = ((0.0, 0.5), (0.5, 1.0)) if low else ((0.5, 1.0), (0.0, 0.5))
    first = (0.0, 0.5) if relation in ("left of", "above") else (0.5, 1.0)
    second = (0.5, 1.0) if first[0] == 0.0 else (0.0, 0.5)
    spots = [
        (_inset(rng, a.radius, *first), _inset(rng, a.radius, *pair)),
        (_inset(rng, b.radius, *second), _inset(rng, b.radius, *pair)),
        (_inset(rng, c.radius, 0.2, 0.8), _inset(rng, c.radius, *third)),
    ]
    if relation in ("above", "below"):
        spots = [(y, x) for x, y in spots]
    (ax, ay), (bx, by), (cx, cy) = spots
    return _at(a, ax, ay), _at(b, bx, by), _at(c, cx, cy)
