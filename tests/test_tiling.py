"""Pictures through the autoencoder in tiles: what diffusers' tiles give, no seams, when, and the memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastdiff
from fastdiff import InputError, tiling
from fastdiff import vae as vae_module
from fastdiff.config import ModelSpec
from fastdiff.resample import interpolate
from fastdiff.samplers import Generator
from fastdiff.tiling import Way, check_tile, choose_way, decoder_bytes, tiled
from fastdiff.vae import Vae
from tests.cli.run import environment
from tests.compare import assert_close, relative_l2
from tests.tasks.oracle import PROMPT, components, drawn

FACTOR = 4
"""Of the tiny checkpoint's autoencoder."""


@pytest.fixture
def pipe(tiny_native_engine: Path) -> fastdiff.Pipeline:
    return fastdiff.load(tiny_native_engine, threads=1)


def smooth(height: int, width: int, batch: int = 1) -> np.ndarray:
    """Latents whose content varies over the picture, as those of a drawing do."""
    noise = np.random.default_rng(0).standard_normal((batch, 4, 6, 6)).astype(np.float32)
    return interpolate(noise, height, width, "bicubic")


def tiling_vae(checkpoint: Path, tile: int) -> Any:
    """diffusers' autoencoder with tiles of ``tile`` latent pixels."""
    vae = components(checkpoint).vae
    vae.enable_tiling()
    vae.tile_latent_min_size, vae.tile_sample_min_size = tile, tile * FACTOR
    return vae


@pytest.mark.parametrize(
    ("tile", "height", "width"), [(8, 20, 32), (8, 6, 30), (16, 40, 18), (16, 16, 34), (12, 26, 22)]
)
def test_tiles_are_those_of_diffusers(
    pipe: fastdiff.Pipeline, tiny_checkpoint: Path, tile: int, height: int, width: int
) -> None:
    """Also where the last tile is a rim, and where one side fits."""
    import torch

    latents, picture = smooth(height, width), np.tanh(smooth(height * 4, width * 4)[:, :3])
    pipe.tile = tile * FACTOR
    decoded = pipe.vae.decode(latents * np.float32(0.18215))
    assert pipe.vae.way == Way(tile, 1, FACTOR)
    encoded = pipe.vae.encode(picture, _Silent())
    vae = tiling_vae(tiny_checkpoint, tile)
    try:
        with torch.no_grad():
            wanted = vae.decode(torch.from_numpy(latents)).sample
            moments = vae.encode(torch.from_numpy(picture)).latent_dist.mean * 0.18215
    finally:
        vae.disable_tiling()
    assert_close(decoded, wanted, rel_l2=1e-4, label="decoded")
    assert_close(encoded, moments, rel_l2=1e-4, label="encoded")
    pipe.tile = "off"
    whole = pipe.vae.decode(latents * np.float32(0.18215))
    assert relative_l2(decoded, whole) > 1e-3, "tiles were used"


class _Silent(Generator):
    """Draws zeros, so that the mean of the posterior comes out."""

    def __init__(self) -> None:
        super().__init__(0)

    def randn(self, shape: Any) -> Any:
        return np.zeros(shape, np.float32)


def jumps(difference: np.ndarray, step: int, axis: int) -> float:
    """The mean jump where tiles begin, as a multiple of the median jump elsewhere."""
    across = np.abs(np.diff(difference, axis=axis)).mean(axis=tuple({0, 1, 2, 3} - {axis}))
    borders = list(range(step - 1, len(across), step))
    return float(across[borders].max() / np.median(np.delete(across, borders)))


def test_no_seams(pipe: fastdiff.Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """What tiles change is as smooth where they meet as elsewhere; with hard edges it is not."""
    latents, picture = smooth(32, 32) * np.float32(0.2), np.tanh(smooth(128, 128)[:, :3])
    found: dict[bool, list[float]] = {}
    for soft in (True, False):
        if not soft:
            monkeypatch.setattr(tiling, "_blend", lambda *arrays, **where: None)
        results = []
        for tile in ("off", 64):
            pipe.tile = tile
            results.append((pipe.vae.decode(latents), pipe.vae.encode(picture, _Silent())))
        decoded, encoded = (small - whole for whole, small in zip(*results, strict=True))
        found[soft] = [jumps(decoded, 48, axis) for axis in (2, 3)]
        found[soft] += [jumps(encoded, 12, axis) for axis in (2, 3)]
    assert max(found[True]) < 2, found
    assert min(found[False][:2]) > 4, found
    assert max(found[False][2:]) > 3, found


@pytest.mark.parametrize(("size_in", "size_out"), [(1, 4), (4, 1), (1, 1)])
def test_the_blend_is_a_line(size_in: int, size_out: int) -> None:
    """Tiles of one value each: the n-th is 10ⁿ."""
    calls: list[tuple[int, ...]] = []

    def run(part: np.ndarray) -> tuple[np.ndarray, ...]:
        calls.append(part.shape)
        sides = [side // size_in * size_out for side in part.shape[2:]]
        return (np.full((1, 1, *sides), 10.0 ** (len(calls) - 1), np.float32),)

    (found,) = tiled(run, np.zeros((1, 1, 8 * size_in, 13 * size_in), np.float32), 8, size_in, size_out)
    # of 13 columns the tiles are 0 to 8, 6 to 13 and 12 to 13; of 8 rows 0 to 8 and 6 to 8
    assert [shape[3] // size_in for shape in calls] == [8, 7, 2] * 2
    assert [shape[2] // size_in for shape in calls] == [8] * 3 + [2] * 3
    share = np.arange(2 * size_out) / (2 * size_out)
    first = np.concatenate([np.full(6 * size_out, 1), 1 + 9 * share, np.full(4 * size_out, 10.0)])
    rim = 10 + 90 * share[:size_out] * 2  # as wide as a latent pixel, not two
    np.testing.assert_allclose(found[0, 0, 0], np.concatenate([first, rim]), rtol=1e-6)
    below = 1 + 999 * share  # the fourth tile, 1000, into the first
    np.testing.assert_allclose(found[0, 0, 6 * size_out :, 0], below, rtol=1e-6)


def test_a_picture_of_tiles(pipe: fastdiff.Pipeline) -> None:
    """Of a batch each picture is that which it is alone; the metadata say that there were tiles."""
    call: dict[str, Any] = {"steps": 2, "seed": 3, "height": 64, "width": 40}
    whole = pipe(PROMPT, num=3, **call)
    assert "tile" not in whole.metadata[0]
    pipe.tile = 32
    small = pipe(PROMPT, num=3, **call)
    assert small.metadata[0]["tile"] == 32
    assert np.array_equal(small.latents, whole.latents)
    together = pipe.vae.decode(small.latents)
    for row in range(3):
        assert_close(pipe.vae.decode(small.latents[row : row + 1])[0], together[row], max_abs=1e-5)
    assert not np.array_equal(np.asarray(small.images[0]), np.asarray(whole.images[0]))
    pipe.tile = "128"  # larger than the picture
    assert np.array_equal(np.asarray(pipe(PROMPT, num=3, **call).images[2]), np.asarray(whole.images[2]))


def test_the_smallest_picture(pipe: fastdiff.Pipeline) -> None:
    pipe.tile = 32
    assert pipe(PROMPT, steps=1, height=16, width=16).images[0].size == (16, 16)
    assert pipe.img2img(drawn(16, 48), PROMPT, steps=2).images[0].size == (48, 16)


def test_when_memory_asks_for_it(pipe: fastdiff.Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """The memory that the native target plans, against what the system says is free."""
    needs = decoder_bytes(pipe.modules["vae_decoder"], 0, FACTOR)
    free = {"bytes": 0}
    monkeypatch.setattr(vae_module, "available_memory", lambda: free["bytes"])
    monkeypatch.setattr(type(pipe.modules["vae_decoder"]), "held_bytes", lambda session: 0)
    latents = smooth(64, 48, 2)
    ways = {}
    for name, need in {
        "batch": needs(2, 64, 48),
        "one": needs(1, 64, 48),
        "tile": needs(1, 48, 48),
        "less": needs(1, 32, 32) // 2,
    }.items():
        free["bytes"] = int(need / 0.8) + 8
        ways[name] = (pipe.vae.decode(latents), pipe.vae.way)
    assert [way for _, way in ways.values()] == [
        Way(None, 2, FACTOR),
        Way(None, 1, FACTOR),
        Way(48, 1, FACTOR),
        Way(32, 1, FACTOR),
    ]
    assert_close(ways["one"][0], ways["batch"][0], max_abs=1e-5)
    assert relative_l2(ways["less"][0], ways["batch"][0]) > 1e-3
    # a picture comes out as it does alone, whatever is beside it
    assert np.array_equal(pipe.vae.decode(latents[1:]), ways["less"][0][1:])
    free["bytes"] = 10_000
    pictures = np.tanh(interpolate(latents, 256, 192, "bilinear")[:, :3])
    assert pipe.vae.encode(pictures, _Silent()).shape == (2, 4, 64, 48)
    monkeypatch.setattr(tiling, "TILES", ())  # nothing smaller: as it is
    assert np.array_equal(pipe.vae.decode(latents), ways["one"][0])


def needs(batch: int, height: int, width: int) -> int:
    return batch * height * width


@pytest.mark.parametrize(
    ("tile", "shape", "available", "way"),
    [
        ("off", (4, 256, 256), 1, Way(None, 4)),
        ("on", (4, 64, 64), 1, Way(None, 4)),
        ("on", (4, 66, 64), 1, Way(64, 4)),
        (40, (1, 40, 41), 1, Way(40, 1)),
        ("auto", (4, 100, 100), None, Way(None, 4)),
        ("auto", (4, 100, 100), 50_000, Way(None, 4)),
        ("auto", (4, 100, 100), 49_000, Way(None, 1)),
        ("auto", (4, 100, 100), 12_000, Way(96, 1)),
        ("auto", (1, 100, 30), 3_600, Way(96, 1)),
        ("auto", (1, 200, 200), 1_300, Way(32, 1)),
        ("auto", (2, 200, 200), 10, Way(32, 1)),
        ("auto", (2, 20, 20), 10, Way(None, 1)),
    ],
)
def test_choices(tile: Any, shape: tuple[int, int, int], available: int | None, way: Way) -> None:
    assert choose_way(tile, 1, shape, needs, available) == way


@pytest.mark.parametrize(
    "value", ["some", "", "-64", "64.0", 0, -64, 24, 100, 33, True, 64.0, None, float("nan"), [64], "6 4"]
)
def test_sides_that_cannot_be_used(pipe: fastdiff.Pipeline, value: Any) -> None:
    with pytest.raises(
        InputError, match=r"tile is .*: it must be auto, on, off, or a side in pixels"
    ) as caught:
        pipe.tile = value
    assert "from 32 on that is a multiple of 16" in str(caught.value)
    assert pipe.tile == "auto", "as before"


def test_sides_that_can(pipe: fastdiff.Pipeline) -> None:
    assert [check_tile(value, FACTOR) for value in ("32", 48, " 64 ", "on", np.int64(80))] == [
        *(32, 48, 64),
        *("on", 80),
    ]


@pytest.mark.parametrize("change", [{"vae_scale_factor": 1}, {"latent_codes": 16}])
def test_models_without_tiles(change: dict[str, Any]) -> None:
    """What would have no effect is refused."""
    base: dict[str, Any] = {"vae_scale_factor": 8, **change}
    model = ModelSpec(
        family="pixels", latent_channels=3, scaling_factor=1.0, shift_factor=0.0, default_height=64,
        default_width=64, default_batch=1, size_multiple=8, max_tokens=1, hidden_size=1, **base,
    )  # fmt: skip
    vae = Vae(model, {})
    for value in ("off", "auto"):
        vae.tile = value
    for value in ("on", 64):
        with pytest.raises(InputError, match="which are not tiled"):
            vae.tile = value


_PEAK = """
import sys
import numpy as np
import fastdiff
from tests.memory import Watch, resident
pipe = fastdiff.load(sys.argv[1], threads=1)
pipe.tile = sys.argv[2]
latents = np.random.default_rng(0).standard_normal((1, 4, 160, 160)).astype(np.float32)
before = resident().anonymous
watch = Watch(0.001).start()
watch.enter("decode")
pipe.vae.decode(latents)
print(watch.stop()["decode"].anonymous - before)
"""


def test_tiles_take_less_memory(tiny_native_engine: Path) -> None:
    """What a process holds at its peak, the picture of 5 MB included."""

    def peak(tile: str) -> int:
        run = subprocess.run(
            [sys.executable, "-c", _PEAK, tiny_native_engine, tile],
            capture_output=True,
            text=True,
            check=True,
            env=environment(),
        )
        return int(run.stdout)

    assert peak("128") < 0.6 * peak("off")
