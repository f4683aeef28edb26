"""Variations of a picture: what the noise between two seeds is, and the pictures of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastdiff
from fastdiff import InputError
from fastdiff.samplers import Generator
from fastdiff.tasks.variations import Variation, slerp
from tests.compare import assert_close
from tests.tasks.oracle import PROMPT, close, theirs

CALL: dict[str, Any] = {"steps": 4, "sampler": "ddim", "guidance": 3.0}


@pytest.fixture(scope="module")
def pipe(tiny_native_engine: Path) -> fastdiff.Pipeline:
    return fastdiff.load(tiny_native_engine, threads=1)


def web_ui(share: float, first: Any, second: Any) -> Any:
    """Stable Diffusion web UI's interpolation as a formula, in PyTorch's float64: of every column,
    sin((1 − t) Ω) / sin Ω · a + sin(t Ω) / sin Ω · b, where Ω is the angle between a and b.
    """
    import torch

    a, b = (torch.from_numpy(each).double() for each in (first, second))
    angle = torch.arccos(torch.cosine_similarity(a, b, dim=1)).unsqueeze(1)
    return torch.sin((1 - share) * angle) / angle.sin() * a + torch.sin(share * angle) / angle.sin() * b


def noise(seed: int, shape: tuple[int, ...] = (4, 16, 12)) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.37, 0.5, 1.0])
def test_noise_in_between(share: float) -> None:
    a, b = noise(0), noise(1)
    assert_close(slerp(share, a, b), web_ui(share, a, b), rel_l2=1e-6)
    assert slerp(share, a, b).dtype == np.float32


def test_the_ends_are_the_noise_itself() -> None:
    a, b = noise(0), noise(1)
    assert np.array_equal(slerp(0.0, a, b), a)
    assert np.array_equal(slerp(1.0, a, b), b)


def test_noise_in_between_has_the_variance_of_noise() -> None:
    """A straight line would give 1/√2 of it in the middle."""
    a, b = noise(0, (4, 64, 64)), noise(1, (4, 64, 64))
    assert abs(float(slerp(0.5, a, b).std()) - 1) < 0.02
    assert float((0.5 * a + 0.5 * b).std()) < 0.75


def test_a_column_keeps_its_length_between_columns_of_one_length() -> None:
    a, b = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in (noise(0), noise(1)))
    assert_close(np.linalg.norm(slerp(0.3, a, b), axis=1), np.ones((4, 12)), max_abs=1e-5)


def test_vectors_on_one_line() -> None:
    """Nothing to turn: a straight line, and never NaN; also in one column among others."""
    a = noise(0)
    assert_close(slerp(0.25, a, a), a, rel_l2=1e-6)
    assert_close(slerp(0.25, a, 3 * a), 1.5 * a, rel_l2=1e-6)
    a, b = noise(0, (1, 2, 2)), noise(1, (1, 2, 2))
    a[0, :, 0], b[0, :, 0] = (3, 0), (-1, 0)
    found = slerp(0.5, a, b)
    assert_close(found[0, :, 0], np.array([1.0, 0.0]), max_abs=1e-6)
    assert_close(found[0, :, 1:], web_ui(0.5, a, b)[0, :, 1:], rel_l2=1e-6)


def test_the_ends_are_the_seeds_pictures(pipe: fastdiff.Pipeline) -> None:
    def picture(**more: Any) -> np.ndarray:
        return pipe(PROMPT, **CALL, **more).latents

    first, second = picture(seed=1, num=2), picture(seed=9, num=2)
    assert np.array_equal(picture(seed=1, num=2, variation_seed=9, variation_strength=0), first)
    assert np.array_equal(picture(seed=1, num=2, variation_seed=9, variation_strength=1), second)
    distance = [
        np.linalg.norm(picture(seed=1, num=2, variation_seed=9, variation_strength=share) - first)
        for share in (0.05, 0.2, 0.6)
    ]
    assert 0 < distance[0] < distance[1] < distance[2]


def test_the_noise_of_the_steps_stays_the_seeds(pipe: fastdiff.Pipeline) -> None:
    call: dict[str, Any] = {**CALL, "sampler": "euler_ancestral", "seed": 1}
    assert np.array_equal(
        pipe(PROMPT, **call).latents,
        pipe(PROMPT, **call, variation_seed=9, variation_strength=0).latents,
    )


def test_a_variation_is_diffusers_picture_of_that_noise(
    pipe: fastdiff.Pipeline, tiny_checkpoint: Path
) -> None:
    import torch

    a, b = (torch.Generator().manual_seed(seed) for seed in (3, 4))
    shape = (2, 4, 8, 10)
    drawn = [torch.randn(shape, generator=each).numpy() for each in (a, b)]
    mixed = np.stack([web_ui(0.3, *each) for each in zip(*drawn, strict=True)]).astype(np.float32)
    pictures, latents = theirs(
        tiny_checkpoint,
        "StableDiffusionPipeline",
        sampler="ddim",
        seed=3,
        latents=torch.from_numpy(mixed),
        num_inference_steps=4,
        guidance_scale=3.0,
        height=32,
        width=40,
        num_images_per_prompt=2,
    )
    ours = pipe(PROMPT, **CALL, seed=3, variation_seed=4, variation_strength=0.3, num=2, width=40)
    close(ours, pictures, latents)


def test_metadata_repeats_the_picture(pipe: fastdiff.Pipeline) -> None:
    first = pipe(PROMPT, **CALL, variation_seed=2**63, variation_strength=0.4)
    settings = first.metadata[0]["settings"]
    assert (settings["variation_seed"], settings["variation_strength"]) == (2**63, 0.4)
    assert np.array_equal(pipe(**settings).latents, first.latents)
    assert "variation_seed" not in pipe(PROMPT, **CALL).metadata[0]["settings"]


def test_every_picture_has_its_own_noise() -> None:
    """As if the latents of the two seeds had been drawn for the whole batch."""
    start, other = (Generator(seed).randn((3, 4, 6, 6)) for seed in (1, 2))
    found = Variation(2, 0.5).apply(start)
    for row in range(3):
        assert np.array_equal(found[row], slerp(0.5, start[row], other[row]))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"variation_seed": 4}, "variation_seed without variation_strength: give both, or none"),
        ({"variation_strength": 0.5}, "variation_strength without variation_seed"),
        ({"variation_seed": -1, "variation_strength": 0.5}, "variation_seed is -1"),
        ({"variation_seed": 2**64, "variation_strength": 0.5}, f"variation_seed is {2**64}"),
        ({"variation_seed": 1.5, "variation_strength": 0.5}, "variation_seed is 1.5"),
        ({"variation_seed": 4, "variation_strength": 1.2}, "variation_strength is 1.2: it must be from 0 to"),
        ({"variation_seed": 4, "variation_strength": -0.1}, "variation_strength is -0.1"),
        ({"variation_seed": 4, "variation_strength": float("nan")}, "variation_strength is nan"),
        ({"variation_seed": 4, "variation_strength": "half"}, "variation_strength is 'half'"),
        (
            {
                "variation_seed": 4,
                "variation_strength": 0.5,
                "latents": np.zeros((1, 4, 8, 8), np.float32),
            },
            "variation_seed beside latents",
        ),
    ],
)
def test_options_that_cannot_be_used(pipe: fastdiff.Pipeline, call: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        pipe(PROMPT, steps=1, **call)
    assert "\n" not in str(caught.value)
