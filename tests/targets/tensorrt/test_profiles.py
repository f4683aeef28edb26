"""Profiles: from ranges and usual sizes to the shapes that TensorRT is given."""

from __future__ import annotations

import pytest

from fastdiff.config import SizeRange, TensorSpec
from fastdiff.targets.tensorrt.profiles import bounded, choose, input_shapes, make_profiles

UNET = {
    "batch": SizeRange(),
    "height": SizeRange(16, None, 8),
    "width": SizeRange(16, None, 8),
    "tokens": SizeRange(),
}
SD15 = {"batch": 2, "height": 64, "width": 64, "tokens": 77}


@pytest.mark.parametrize(
    ("symbol", "size", "usual", "wanted"),
    [
        ("height", SizeRange(16, None, 8), 64, SizeRange(32, 128, 8)),
        # half of 72 is no multiple of 8: the range begins below it
        ("width", SizeRange(16, None, 8), 72, SizeRange(32, 144, 8)),
        # the least size of a module stays the least
        ("height", SizeRange(4, None, 2), 6, SizeRange(4, 12, 2)),
        ("batch", SizeRange(), 2, SizeRange(1, 4)),
        # a range with an end is not made wider
        ("tokens", SizeRange(1, 77), 77, SizeRange(1, 77)),
        ("tokens", SizeRange(1, 77), 20, SizeRange(1, 40)),
    ],
)
def test_ranges_get_an_end(symbol: str, size: SizeRange, usual: int, wanted: SizeRange) -> None:
    assert bounded(symbol, size, usual) == wanted


def test_usual_size_has_a_profile_of_its_own() -> None:
    profiles, ranges = make_profiles(UNET, SD15)
    assert profiles == [
        {"batch": (2, 2, 2), "height": (64, 64, 64), "width": (64, 64, 64), "tokens": (77, 77, 77)},
        {"batch": (1, 2, 4), "height": (32, 64, 128), "width": (32, 64, 128), "tokens": (1, 77, 154)},
    ]
    assert choose(profiles, SD15) == 0
    assert choose(profiles, {**SD15, "height": 96}) == 1
    assert choose(profiles, {**SD15, "height": 136}) is None
    for symbol, size in ranges.items():
        low, _, high = profiles[-1][symbol]
        assert (size.minimum, size.maximum) == (low, high), "what is promised is what was compiled"


def test_text_encoder_has_one_profile() -> None:
    profiles, _ = make_profiles(
        {"batch": SizeRange(), "tokens": SizeRange(1, 77)}, {"batch": 2, "tokens": 77}
    )
    assert profiles == [{"batch": (1, 2, 4), "tokens": (1, 77, 77)}]


def test_shapes_of_inputs() -> None:
    inputs = (
        TensorSpec("picture", "float32", ("batch", 3, "8*height", "8*width")),
        TensorSpec("timestep", "float32", ("batch",)),
    )
    profile = {"batch": (1, 2, 4), "height": (32, 64, 128), "width": (24, 48, 96)}
    assert input_shapes(profile, inputs) == {
        "picture": ((1, 3, 256, 192), (2, 3, 512, 384), (4, 3, 1024, 768)),
        "timestep": ((1,), (2,), (4,)),
    }
