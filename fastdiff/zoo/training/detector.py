"""Read shapes, colours and places from a picture of a scene, by classical means.

Each pixel is given the palette colour that it is nearest to; connected regions of an object colour are
matched with
drawn masks of every shape at the region's place, size and a few sub-pixel offsets; the best overlap names
the shape.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from fastdiff.zoo.training.drawing import shape_mask
from fastdiff.zoo.training.scene import COLOURS, NEUTRALS, SHAPES, Scene

__all__ = ["Detection", "Reading", "detect", "read"]

MIN_AREA = 0.0055
"""Smallest region that counts as an object, as a fraction of the picture (a small ring covers 1.2 %)."""
NEUTRAL_SPREAD = 40.0
"""Below this difference between its largest and smallest channel a pixel is background."""


@dataclass(frozen=True)
class Detection:
    """A found object; ``x``, ``y``, ``radius`` as fractions of the side, ``match`` the overlap in 0..1."""

    shape: str
    colour: str
    x: float
    y: float
    radius: float
    match: float


@dataclass(frozen=True)
class Reading:
    """How far a picture shows what its caption says. ``found`` counts the caption's objects that are there
    with their colour and shape; ``relation`` is ``None`` when the caption has none.
    """

    objects: bool
    relation: bool | None
    found: int


def detect(picture: NDArray[np.uint8]) -> list[Detection]:
    """All objects in ``picture``, uint8 ``[H, H, 3]``, largest first."""
    labels = _colour_labels(picture)
    regions = _regions(labels)
    # What shows through the hole of a ring that lies on its container has the container's colour.
    through = [
        r for r in regions if any(r[0] == o[0] and r[2] != o[2] and _within(r[2], o[2]) for o in regions)
    ]
    solid = [r for r in regions if not any(r is t for t in through)]
    found = []
    for colour, region, box in solid:
        hidden = np.zeros_like(region)
        for other, pixels, inside in solid:
            if other != colour and _within(inside, box):
                hidden |= ndimage.binary_dilation(pixels) & ~region
        for other, pixels, inside in through:
            if other == colour and _within(inside, box):
                hidden |= ndimage.binary_dilation(pixels)
        found.append(_match(region, hidden, colour))
    return sorted(found, key=lambda d: -d.radius)


Box = tuple[int, int, int, int]


def _regions(labels: NDArray[np.int64]) -> list[tuple[str, NDArray[np.bool_], Box]]:
    """Connected regions of each object colour that are large enough to be an object, with their boxes
    (top, bottom, left, right).
    """
    area = MIN_AREA * labels.size
    result = []
    for index, colour in enumerate(COLOURS):
        marked, count = ndimage.label(labels == index, structure=np.ones((3, 3)))
        for k in range(1, count + 1):
            region = marked == k
            core = ndimage.binary_erosion(region, structure=np.ones((2, 2)))
            if region.sum() >= area and core.sum() >= area / 3:
                rows, columns = np.flatnonzero(region.any(1)), np.flatnonzero(region.any(0))
                box = (int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1)
                result.append((colour, region, box))
    return result


def _within(inner: Box, outer: Box) -> bool:
    return inner[0] >= outer[0] and inner[1] <= outer[1] and inner[2] >= outer[2] and inner[3] <= outer[3]


def _colour_labels(picture: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Index into COLOURS per pixel, -1 for background. Hue and lightness decide among the object colours."""
    rgb = picture.astype(np.float32)
    palette = np.array([*COLOURS.values(), *NEUTRALS.values()], np.float32)
    distance = ((rgb[:, :, None] - palette) ** 2).sum(-1)
    label: NDArray[np.int64] = distance.argmin(-1)
    label[label >= len(COLOURS)] = -1
    label[rgb.max(-1) - rgb.min(-1) < NEUTRAL_SPREAD] = -1
    return label


def _match(region: NDArray[np.bool_], hidden: NDArray[np.bool_], colour: str) -> Detection:
    """The shape whose mask overlaps ``region`` best; pixels ``hidden`` by other objects do not count."""
    size = region.shape[0]
    rows, columns = np.flatnonzero(region.any(1)), np.flatnonzero(region.any(0))
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    visible = ~hidden
    best = Detection("circle", colour, 0.0, 0.0, 0.0, -1.0)
    for shape in SHAPES:
        x, y, radius = _from_box(shape, float(left), float(top), float(right), float(bottom))
        for scale in (0.94, 1.0, 1.06):
            for dy in (-0.5, 0.0, 0.5):
                mask = shape_mask(shape, x, y + dy, radius * scale, size)
                both = np.minimum(mask, region)[visible].sum()
                either = np.maximum(mask, region)[visible].sum()
                score = float(both / max(either, 1e-6))
                if score > best.match:
                    best = Detection(shape, colour, x / size, (y + dy) / size, radius * scale / size, score)
    return best


def _from_box(shape: str, left: float, top: float, right: float, bottom: float) -> tuple[float, float, float]:
    """Centre and radius that give ``shape`` this bounding box."""
    width, height = right - left, bottom - top
    x, y = (left + right) / 2, (top + bottom) / 2
    if shape == "square":
        return x, y, (width + height) / 4 / 0.88
    if shape == "triangle":
        radius = (width / 2 + height / 1.8) / 2
        return x, bottom - 0.8 * radius, radius
    if shape == "star":  # spans 1.08 r upwards, 1.08 r cos 36° downwards and 1.08 r sin 72° to either side
        radius = (width / 2.0543 + height / 1.9537) / 2
        return x, top + 1.08 * radius, radius
    return x, y, (width + height) / 4


def read(picture: NDArray[np.uint8], scene: Scene) -> Reading:
    """Compare ``picture`` with the caption's objects and relations. Strict: every object must be there with
    its
    colour and shape, no other object may be, and every relation named in the caption must hold.
    """
    left = detect(picture)
    places: list[Detection] = []
    for o in scene.objects:
        hit = next((d for d in left if d.colour == o.colour and d.shape == o.shape), None)
        if hit is not None:
            left.remove(hit)
            places.append(hit)
    objects = len(places) == len(scene.objects) and not left
    if scene.relation is None:
        return Reading(objects, None, len(places))
    if len(places) < len(scene.objects):
        return Reading(objects, False, len(places))
    holds = _holds(places[0], scene.relation, places[1])
    if scene.third_relation is not None:
        holds = holds and all(_holds(places[2], scene.third_relation, p, loose=True) for p in places[:2])
    return Reading(objects, holds, len(places))


def _holds(a: Detection, relation: str, b: Detection, loose: bool = False) -> bool:
    """Whether ``a`` is ``relation`` ``b``: the offset of the centres points that way, and (unless
    ``loose``) more
    that way than across.
    """
    dx, dy = b.x - a.x, b.y - a.y
    if relation == "inside":
        return max(abs(dx), abs(dy)) + 0.6 * a.radius < b.radius
    along, across = {
        "left of": (dx, dy),
        "right of": (-dx, dy),
        "above": (dy, dx),
        "below": (-dy, dx),
    }[relation]
    return along > 0.5 * (a.radius + b.radius) * (0.5 if loose else 1) and (loose or along > abs(across))
