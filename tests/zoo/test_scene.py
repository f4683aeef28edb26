import numpy as np
import pytest

from fastdiff.zoo.training.captions import caption
from fastdiff.zoo.training.drawing import draw, shape_mask
from fastdiff.zoo.training.scene import COLOURS, RELATIONS, SHAPES, random_scene


def test_objects_stay_inside_the_picture_and_apart(rng: np.random.Generator) -> None:
    for _ in range(500):
        scene = random_scene(rng)
        for o in scene.objects:
            assert o.radius <= o.x <= 1 - o.radius
            assert o.radius <= o.y <= 1 - o.radius
        colours = [o.colour for o in scene.objects]
        assert len(set(colours)) == len(colours), "two objects of one colour could not be told apart"


def test_relations_hold_in_the_coordinates(rng: np.random.Generator) -> None:
    seen = set()
    for _ in range(500):
        scene = random_scene(rng, objects=2)
        a, b = scene.objects
        seen.add(scene.relation)
        if scene.relation == "left of":
            assert a.x + a.radius < b.x - b.radius
        elif scene.relation == "below":
            assert a.y - a.radius > b.y + b.radius
        elif scene.relation == "inside":
            assert max(abs(a.x - b.x), abs(a.y - b.y)) + a.radius < b.radius
    assert seen == {*RELATIONS, None}


def test_held_out_combinations_never_occur_in_training(rng: np.random.Generator) -> None:
    training = {random_scene(rng).combination() for _ in range(3000)}
    reserved = {random_scene(rng, held_out=True).combination() for _ in range(1000)}
    assert not training & reserved
    assert len(reserved) > 500


def test_same_seed_same_picture() -> None:
    first, second = (draw(random_scene(np.random.default_rng(3)), 64) for _ in range(2))
    assert np.array_equal(first, second)


@pytest.mark.parametrize("size", [64, 97])  # the trained size; an odd one that no constant divides
def test_picture_holds_the_object_at_its_place(size: int) -> None:
    rng = np.random.default_rng(1)
    for _ in range(50):
        scene = random_scene(rng, objects=1)
        (o,) = scene.objects
        if o.shape == "ring":
            continue  # nothing at its centre
        pixel = draw(scene, size)[int(o.y * size), int(o.x * size)]
        assert tuple(pixel) == COLOURS[o.colour]


@pytest.mark.parametrize("shape", SHAPES)
def test_masks_are_anti_aliased_and_move_with_the_centre(shape: str) -> None:
    mask = shape_mask(shape, 30.3, 33.7, 13.0, 64)
    assert mask.min() == 0
    assert mask.max() == 1
    assert ((mask > 0) & (mask < 1)).sum() > 8
    moved = shape_mask(shape, 33.3, 33.7, 13.0, 64)
    np.testing.assert_array_equal(moved[:, 3:], mask[:, :-3])


def test_captions_name_every_object_and_fit_the_window(rng: np.random.Generator) -> None:
    for _ in range(500):
        scene = random_scene(rng)
        text = caption(scene, rng)
        words = text.replace(",", " ,").split()
        assert len(words) <= 30
        for o in scene.objects:
            assert o.colour in words
            assert o.shape in words
        assert " a orange" not in f" {text}"
