import numpy as np
import pytest
from PIL import Image, ImageFilter

from fastdiff.zoo.training.detector import detect, read
from fastdiff.zoo.training.drawing import draw
from fastdiff.zoo.training.scene import Background, Object, Scene, random_scene

PLAIN = Background("plain", "white", "gray")


def test_right_on_at_least_99_percent_of_ground_truth() -> None:
    rng = np.random.default_rng(77)
    scenes = [random_scene(rng, held_out=True) for _ in range(300)]
    readings = [read(draw(s), s) for s in scenes]
    assert np.mean([r.objects and r.relation is not False for r in readings]) >= 0.99


def test_right_on_blurred_pictures() -> None:
    # What a small autoencoder makes of edges; the figure may be lower there, but not by much.
    rng = np.random.default_rng(78)
    good = 0
    for _ in range(100):
        scene = random_scene(rng)
        picture = Image.fromarray(draw(scene)).filter(ImageFilter.GaussianBlur(0.6))
        good += read(np.asarray(picture), scene).objects
    assert good >= 90


@pytest.mark.parametrize("changed", ["shape", "colour", "missing", "extra"])
def test_a_wrong_picture_is_read_as_wrong(changed: str) -> None:
    red = Object("circle", "red", "large", 0.25, 0.5, 0.19)
    blue = Object("square", "blue", "large", 0.75, 0.5, 0.19)
    wanted = Scene((red, blue), PLAIN, "left of")
    assert read(draw(wanted), wanted).objects
    drawn = {
        "shape": (Object("star", "red", "large", 0.25, 0.5, 0.19), blue),
        "colour": (Object("circle", "green", "large", 0.25, 0.5, 0.19), blue),
        "missing": (red,),
        "extra": (red, blue, Object("cross", "green", "small", 0.5, 0.15, 0.12)),
    }[changed]
    assert not read(draw(Scene(drawn, PLAIN)), wanted).objects


def test_swapped_places_fail_the_relation_only() -> None:
    left = Object("circle", "red", "large", 0.75, 0.5, 0.19)
    right = Object("square", "blue", "large", 0.25, 0.5, 0.19)
    reading = read(draw(Scene((left, right), PLAIN)), Scene((left, right), PLAIN, "left of"))
    assert reading.objects
    assert reading.relation is False


def test_nothing_in_an_empty_or_noisy_picture() -> None:
    assert detect(np.full((64, 64, 3), 200, np.uint8)) == []
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    scene = Scene((Object("circle", "red", "small"),), PLAIN)
    assert not read(noise, scene).objects


def test_places_and_sizes_are_measured() -> None:
    o = Object("star", "yellow", "large", 0.4, 0.6, 0.19)
    (found,) = detect(draw(Scene((o,), Background("striped", "black", "white"))))
    assert (found.shape, found.colour) == ("star", "yellow")
    assert abs(found.x - o.x) < 0.02
    assert abs(found.y - o.y) < 0.03
    assert abs(found.radius - o.radius) < 0.02
