"""Conversion against diffusers' VaeImageProcessor; PNG files: metadata, atomicity, refusals."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastdiff.errors import InputError, OutputError
from fastdiff.image import check_output, contact_sheet, read_metadata, to_images, write_png

METADATA = {
    "fastdiff": "0.1.0",
    "engine": "ab" * 32,
    "index": 1,
    "prompt": 'naïve 東京 🎨 "quoted"\nline\x00nul',
    "settings": {"seed": 2**64 - 1, "guidance": 7.5, "eta": 0.1},
}


def picture(width: int = 24, height: int = 16, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.smoke
@pytest.mark.parametrize("shape", [(1, 3, 8, 8), (2, 3, 13, 7), (3, 3, 1, 1)])
def test_conversion_equals_diffusers(shape: tuple[int, ...]) -> None:
    import torch
    from diffusers.image_processor import VaeImageProcessor

    sample = np.random.default_rng(1).normal(0, 0.9, shape).astype(np.float32)
    sample.flat[:8] = [-1, 1, 0, -2, 3, 1e30, -1e30, np.nextafter(np.float32(1), np.float32(0))][
        : sample.size
    ]
    wanted = VaeImageProcessor(vae_scale_factor=8).postprocess(torch.from_numpy(sample), output_type="pil")
    for ours, theirs in zip(to_images(sample), wanted, strict=True):
        assert ours.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs))


def test_every_level_and_both_halves_round_as_diffusers() -> None:
    """Halves between two levels show the rounding rule."""
    import torch
    from diffusers.image_processor import VaeImageProcessor

    levels = np.arange(0, 255.5, 0.5, dtype=np.float32) / np.float32(255) * 2 - 1
    sample = np.broadcast_to(levels, (1, 3, 1, levels.size)).astype(np.float32)
    wanted = VaeImageProcessor().postprocess(torch.from_numpy(sample), output_type="pil")[0]
    np.testing.assert_array_equal(np.asarray(to_images(sample)[0]), np.asarray(wanted))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_conversion_refuses_what_is_no_number(bad: float) -> None:
    sample = np.zeros((1, 3, 4, 4), np.float32)
    sample[0, 1, 2, 3] = bad
    with pytest.raises(InputError, match="NaN or infinity"):
        to_images(sample)


@pytest.mark.parametrize("shape", [(3, 4, 4), (1, 4, 4, 4), (1, 4, 4, 3)])
def test_conversion_refuses_other_shapes(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"\[N, 3, height, width\]"):
        to_images(np.zeros(shape, np.float32))


@pytest.mark.smoke
def test_png_returns_pixels_and_metadata(tmp_path: Path) -> None:
    image = picture()
    path = write_png(tmp_path / "out.png", image, METADATA)
    assert read_metadata(path) == METADATA
    with Image.open(path) as again:
        np.testing.assert_array_equal(np.asarray(again), np.asarray(image))
        assert again.info["Software"] == "fastdiff 0.1.0"
    assert [entry.name for entry in tmp_path.iterdir()] == ["out.png"]


def test_png_replaces_a_picture_and_keeps_links(tmp_path: Path) -> None:
    write_png(tmp_path / "out.png", picture(seed=1), {"index": 1})
    (tmp_path / "link.png").symlink_to("out.png")
    write_png(tmp_path / "link.png", picture(seed=2), {"index": 2})
    assert (tmp_path / "link.png").is_symlink()
    assert read_metadata(tmp_path / "out.png") == {"index": 2}


def test_png_has_the_permissions_of_other_files(tmp_path: Path) -> None:
    (tmp_path / "other").touch()
    path = write_png(tmp_path / "out.png", picture(), {})
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE((tmp_path / "other").stat().st_mode)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("out.jpg", "use .*out.png"),
        ("out", "use .*out.png"),
        ("missing/out.png", "create it first"),
        ("folder.png", "is a folder"),
        ("pipe.png", "not a regular file"),
    ],
)
def test_unusable_names(tmp_path: Path, name: str, says: str) -> None:
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(OutputError, match=says):
        write_png(tmp_path / name, picture(), {})
    with pytest.raises(OutputError, match=says):
        check_output(tmp_path / name)
    assert sorted(tmp_path.rglob("*")) == before


def test_folder_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # the tests may run as root, for whom every folder is writable
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(OutputError, match="cannot be written"):
        check_output(tmp_path / "out.png")


def test_full_disk_leaves_the_old_picture(tmp_path: Path) -> None:
    """A file size limit makes the write fail in the middle, as a full disk does."""
    path = write_png(tmp_path / "out.png", picture(), {"index": 1})
    script = (
        "import resource, signal, sys; from fastdiff.errors import OutputError\n"
        "from fastdiff.image import write_png\n"
        "from PIL import Image\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try: write_png(sys.argv[1], Image.effect_noise((256, 256), 99), {'index': 2})\n"
        "except OutputError as error: print(error)\n"
    )
    run = subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True, check=True)
    assert run.stdout == f"{path}: no space left on the disk; free some or give another folder\n"
    assert read_metadata(path) == {"index": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["out.png"]


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), OSError(5, "Input/output error"), MemoryError()])
def test_any_failure_removes_the_partial_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException
) -> None:
    def save(self: Image.Image, stream, **options: object) -> None:
        stream.write(b"\x89PNG half of it")
        raise failure

    monkeypatch.setattr(Image.Image, "save", save)
    with pytest.raises((OutputError, KeyboardInterrupt, MemoryError)):
        write_png(tmp_path / "out.png", picture(), {})
    assert list(tmp_path.iterdir()) == []


def test_metadata_of_other_files_is_refused(tmp_path: Path) -> None:
    picture().save(tmp_path / "plain.png")
    picture().save(tmp_path / "photo.jpg")
    whole = write_png(tmp_path / "whole.png", picture(), METADATA).read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    for name in ("plain.png", "photo.jpg", "cut.png", "missing.png"):
        with pytest.raises(InputError, match=f"{name}.*give a picture that fastdiff wrote"):
            read_metadata(tmp_path / name)


def test_contact_sheet_places_pictures_and_captions() -> None:
    images = [picture(20, 20, seed) for seed in range(5)]
    sheet = contact_sheet(
        images, [f"caption {index} with words" for index in range(5)], columns=3, scale=2, margin=10
    )
    assert sheet.width == 3 * 50 + 10
    np.testing.assert_array_equal(np.asarray(sheet)[10:50:2, 10:50:2], np.asarray(images[0]))
    np.testing.assert_array_equal(np.asarray(sheet)[10:50:2, 60:100:2], np.asarray(images[1]))
    below = np.asarray(sheet)[52:62, 10:50]
    assert (below < 128).any(), "a caption stands under the picture"
    assert contact_sheet(images[:1], scale=1, margin=0).size == (20, 20)


def test_contact_sheet_takes_pictures_of_several_sizes() -> None:
    sheet = contact_sheet([picture(8, 4), picture(4, 8)], columns=2, margin=1)
    assert sheet.size == (2 * 9 + 1, 10)


@pytest.mark.parametrize(
    "arguments", [([],), ([picture()], ["a", "b"]), ([picture()], [], 0), ([picture()], [], 1, 0)]
)
def test_contact_sheet_refuses(arguments: tuple) -> None:
    names = ("images", "captions", "columns", "scale")
    with pytest.raises(InputError):
        contact_sheet(**dict(zip(names, arguments, strict=False)))
