"""Reading the pictures that a call is given: every kind that is taken, and every one that is not."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

import fastdiff
from fastdiff import InputError
from fastdiff.pictures import fitted, read_mask, read_picture, to_sample
from tests.tasks.oracle import PROMPT, drawn, hole

PIXELS = np.asarray(drawn())
GREY = np.asarray(drawn().convert("L"))


def same(found: Any, wanted: np.ndarray) -> bool:
    return found.image.mode == ("RGB" if wanted.ndim == 3 else "L") and np.array_equal(found.image, wanted)


@pytest.mark.parametrize(
    "given",
    [
        drawn(),
        PIXELS,
        PIXELS.astype(np.float32) / 255,
        PIXELS.astype(np.float64) / 255,
        PIXELS.astype(np.uint16) * 257,
        drawn().convert("RGBA"),
        np.asarray(drawn().convert("RGBA")),
        PIXELS[::-1][::-1],
    ],
    ids=("image", "uint8", "float32", "float64", "uint16", "RGBA", "RGBA-array", "view"),
)
def test_colours(given: Any, tmp_path: Path) -> None:
    assert same(read_picture(given), PIXELS)


@pytest.mark.parametrize(
    "given",
    [
        drawn().convert("L"),
        drawn().convert("L").convert("LA"),
        GREY,
        GREY[..., None],
        Image.fromarray(GREY.astype(np.uint16) * 257),
        Image.fromarray(GREY.astype(np.int32) * 257),
    ],
    ids=("image", "LA", "array", "channel", "16-bit", "32-bit"),
)
def test_shades_of_grey(given: Any) -> None:
    assert same(read_picture(given), np.stack([GREY] * 3, axis=-1))
    assert same(read_mask(given), GREY)


def test_palettes_and_black_and_white() -> None:
    palette = drawn().quantize(16)
    assert same(read_picture(palette), np.asarray(palette.convert("RGB")))
    bits = hole().point(lambda shade: 255 * (shade > 127), "1")
    assert same(read_mask(bits), np.asarray(hole()))
    assert same(read_mask(np.asarray(hole()) > 127), np.asarray(hole()))


def test_what_is_transparent_is_white_in_pictures_and_black_in_masks() -> None:
    image = drawn().convert("RGBA")
    image.putalpha(hole())
    inside = np.asarray(hole()) > 0
    found = np.asarray(read_picture(image).image)
    assert (found[~inside] == 255).all()
    assert np.array_equal(found[inside], PIXELS[inside])
    assert (np.asarray(read_mask(image).image)[~inside] == 0).all()
    palette = Image.new("P", (2, 1))
    palette.putpalette([255, 0, 0, 0, 255, 0])
    palette.putpixel((1, 0), 1)
    palette.info["transparency"] = 1
    assert np.array_equal(read_picture(palette).image, [[[255, 0, 0], [255, 255, 255]]])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photographs_stand_upright(orientation: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    drawn(24, 32).save(tmp_path / "photo.png", exif=exif)
    found = read_picture(tmp_path / "photo.png")
    assert found.image.size == ((24, 32) if orientation > 4 else (32, 24))
    assert found.source["size"] == list(found.image.size)
    assert same(found, np.asarray(drawn(24, 32))) is (orientation == 1)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp", "tif", "gif"])
def test_files(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"in.{suffix}"
    drawn().save(path)
    with Image.open(path) as opened:
        wanted = np.asarray(opened.convert("RGB"))
    for given in (path, str(path)):
        found = read_picture(given)
        assert same(found, wanted)
        assert (found.source["of"], found.file) == ("file", str(path))
    assert read_picture(drawn()).source["of"] == "pixels"


def _cut(path: Path) -> Path:
    drawn().save(path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    return path


def _empty(path: Path) -> Path:
    path.write_bytes(b"")
    return path


def _changed(path: Path) -> Path:
    drawn().save(path)
    content = bytearray(path.read_bytes())
    content[80:400] = bytes(320)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder / "none.png", r"image '.*none.png' cannot be read \(No such file"),
        (lambda folder: folder, r"cannot be read \(Is a directory\): give the path of a picture"),
        (lambda folder: "in\0.png", "image is no path"),
        (lambda folder: _empty(folder / "in.png"), "in.png is no picture of a known format"),
        (lambda folder: _cut(folder / "in.png"), r"in.png is damaged \("),
        (lambda folder: _cut(folder / "in.jpg"), r"in.jpg is damaged \("),
        (lambda folder: _changed(folder / "in.png"), r"in.png is damaged \("),
        (lambda folder: Image.open(BytesIO(_cut(folder / "in.png").read_bytes())), r"image is damaged \("),
        (lambda folder: 3, "image is of type int: it must be a path, a PIL image or a NumPy array"),
        (lambda folder: b"in.png", "image is of type bytes"),
        (lambda folder: Image.new("RGB", (0, 4)), "image has no pixels"),
        (lambda folder: Image.new("F", (4, 4)), "pixels of floats without a range"),
        (lambda folder: Image.fromarray(np.full((4, 4), -1, np.int32)), "values from -1 to -1"),
        (lambda folder: np.zeros((0, 4), np.uint8), "has no pixels"),
        (lambda folder: np.zeros(4, np.uint8), r"shape \[4\]: it must be \[height, width\]"),
        (lambda folder: np.zeros((1, 3, 8, 8), np.uint8), r"shape \[1, 3, 8, 8\]"),
        (lambda folder: np.zeros((3, 8, 8), np.uint8), r"shape \[3, 8, 8\]"),
        (lambda folder: np.zeros((8, 8), np.int64), "dtype int64: it must be uint8, uint16, bool or a float"),
        (lambda folder: np.zeros((8, 8), complex), "dtype complex128"),
        (lambda folder: np.full((8, 8), np.nan), "NaN or infinity"),
        (lambda folder: np.full((8, 8), np.inf), "NaN or infinity"),
        (lambda folder: np.full((8, 8), 1.5), "floats from 1.5 to 1.5: they must be from 0 to 1"),
        (lambda folder: np.full((8, 8), -0.5), "floats from -0.5 to -0.5"),
    ],
)
def test_what_is_no_picture(make: Callable[[Path], Any], message: str, tmp_path: Path) -> None:
    given = make(tmp_path)
    for read in (read_picture, lambda one: read_mask(one, "image")):
        with pytest.raises(InputError, match=message) as caught:
            read(given)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("mode", ["LAB", "HSV", "YCbCr", "CMYK", "I;16"])
def test_other_colour_spaces(mode: str) -> None:
    grey = Image.new(mode, (8, 8), 0x8080 if mode == "I;16" else None)
    assert read_picture(grey).image.mode == "RGB"
    assert read_mask(grey).image.mode == "L"


def test_whatever_a_decoder_raises_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Decoders raise what they like: DDS NotImplementedError, AVIF RuntimeError."""
    Image.new("RGB", (8, 8)).save(tmp_path / "in.png")

    def decode(image: Image.Image) -> None:
        raise NotImplementedError("of no kind\nthat is known")

    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", decode)
    with pytest.raises(InputError, match=r"in.png is damaged \(of no kind that is known\): give another"):
        read_picture(tmp_path / "in.png")


def test_a_picture_that_would_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn().save(tmp_path / "in.png")
    for limit in (600, 100):  # pixels: a warning of Pillow's, and its error
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(InputError, match=r"in\.png is too large"):
            read_picture(tmp_path / "in.png")


def test_kinds_of_pictures_in_both_tasks(tiny_native_engine: Path, tmp_path: Path) -> None:
    """The same picture, however it is given, gives the same result bit for bit."""
    pipe = fastdiff.load(tiny_native_engine, threads=1)
    call: dict[str, Any] = {"prompt": PROMPT, "steps": 2, "seed": 1, "sampler": "ddim"}
    drawn().save(tmp_path / "in.png")
    wanted = pipe.img2img(drawn(), **call).latents
    for given in (tmp_path / "in.png", PIXELS, drawn().convert("RGBA")):
        assert np.array_equal(pipe.img2img(given, **call).latents, wanted)
    wanted = pipe.inpaint(drawn(), hole(), **call).latents
    for mask in (hole().convert("RGB"), np.asarray(hole()), np.asarray(hole()) > 127, hole().convert("1")):
        assert np.array_equal(pipe.inpaint(PIXELS, mask, **call).latents, wanted)


@pytest.mark.parametrize("size", [(40, 24), (16, 64), (32, 32), (17, 90)])
@pytest.mark.parametrize("fit", ["resize", "fill"])
def test_sizes_are_fitted_as_by_diffusers(size: tuple[int, int], fit: str) -> None:
    from diffusers.image_processor import VaeImageProcessor

    image = drawn(*size)
    mode = {"resize": "default", "fill": "fill"}[fit]
    wanted = VaeImageProcessor(vae_scale_factor=8).preprocess(image, 48, 32, resize_mode=mode).numpy()
    assert np.array_equal(to_sample(fitted(image, 48, 32, fit)), wanted)
