"""Every family of checkpoints: modules against PyTorch, pictures against the pipeline of diffusers for it.

What is new in a family's graphs is compiled for the native target, the rest left to PyTorch, which costs no
capture; ``make test-full`` builds all of it.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastdiff
from fastdiff.build import build
from fastdiff.build.checkpoint import load_checkpoint
from fastdiff.build.modules import module_spec, random_inputs
from fastdiff.config import TOLERANCES, Precision
from fastdiff.engine_dir import open_engine
from tests.builds import build_mixed
from tests.families import FAMILIES, make_family
from tests.oracle import psnr

MIN_PSNR = 45.0
PROMPT = "a red circle left of a blue square"

NATIVE = {
    "sd2": ("unet",),
    "lcm": ("unet",),
    "upscale": ("unet",),
    "tiny_vae": ("vae_decoder", "vae_encoder"),
    "ddpm": ("unet",),
    "consistency": ("unet",),
    "vq_latent": ("vae_decoder", "vae_encoder", "vae_quantizer"),
}
"""By family: modules that have another form there than in the others."""


@dataclass(frozen=True)
class Call:
    """One picture in both libraries' words."""

    ours: dict[str, Any]
    theirs: dict[str, Any]


CALLS = {
    "sd2": Call(
        {"prompt": PROMPT, "negative": "green", "steps": 6, "guidance": 4.0, "sampler": "ddim"},
        {"prompt": PROMPT, "negative_prompt": "green", "num_inference_steps": 6, "guidance_scale": 4.0},
    ),
    "lcm": Call(
        {"prompt": PROMPT, "steps": 4, "guidance": 6.5},
        {"prompt": PROMPT, "num_inference_steps": 4, "guidance_scale": 6.5},
    ),
    "tiny_vae": Call(
        {"prompt": PROMPT, "steps": 6, "guidance": 3.0},
        {"prompt": PROMPT, "num_inference_steps": 6, "guidance_scale": 3.0},
    ),
    "ddpm": Call({"num": 2, "steps": 8}, {"batch_size": 2, "num_inference_steps": 8}),
    "consistency": Call(
        {"num": 2, "steps": 2, "class_label": [3, 7]},
        {"batch_size": 2, "num_inference_steps": 2, "class_labels": [3, 7]},
    ),
    "vq_latent": Call({"num": 2, "steps": 6}, {"batch_size": 2, "num_inference_steps": 6}),
}


@pytest.fixture(scope="session")
def checkpoint_of(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A family's checkpoint by name, each written once."""
    folder = tmp_path_factory.mktemp("families")
    return cache(lambda name: make_family(name, folder / name))


@pytest.fixture(scope="session")
def engine_of(checkpoint_of: Any) -> Any:
    """A family's engine by name, each built once."""

    def make(name: str) -> Path:
        source: Path = checkpoint_of(name)
        return build_mixed(source, source.with_suffix(".fd"), dict.fromkeys(NATIVE[name], "native"))

    return cache(make)


def oracle(checkpoint: Path, **call: Any) -> list[Any]:
    """The pictures of diffusers' pipeline for a checkpoint, in float32 on one thread."""
    import torch
    from diffusers import DiffusionPipeline

    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # names of arguments change from version to version
        pipe: Any = DiffusionPipeline.from_pretrained(
            checkpoint, torch_dtype=torch.float32, local_files_only=True
        )
        pipe.set_progress_bar_config(disable=True)
        images: list[Any] = pipe(generator=torch.Generator().manual_seed(5), **call).images
    return images


@pytest.mark.parametrize("name", NATIVE)
def test_modules_compute_what_pytorch_does(engine_of: Any, checkpoint_of: Any, name: str) -> None:
    """The build has compared each with the library's own class, at two sizes and batches."""
    manifest = open_engine(engine_of(name)).manifest
    assert tuple(manifest.modules) == load_checkpoint(checkpoint_of(name)).modules
    for module, entry in manifest.modules.items():
        assert entry.target == ("native" if module in NATIVE[name] else "torch")
        assert entry.error["relative_l2"] <= TOLERANCES[Precision.FP32]


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("sdxl", {"family": "stable_diffusion_xl", "hidden_size": 56, "pooled_size": 20, "time_ids": 6}),
        ("refiner", {"hidden_size": 24, "pooled_size": 20, "time_ids": 5, "scaling_factor": 0.13025}),
        ("lcm", {"guidance_embedding": 12, "condition_channels": 0}),
        ("inpainting", {"family": "stable_diffusion", "latent_channels": 4, "condition_channels": 5}),
        ("upscale", {"condition_channels": 3, "num_classes": 40}),
        ("tiny_vae", {"scaling_factor": 1.0, "latent_variance": False, "vae_scale_factor": 4}),
        ("ddpm", {"vae_scale_factor": 1, "latent_channels": 3, "default_height": 16, "on_pixels": True}),
        ("consistency", {"num_classes": 10, "takes_prompt": False}),
        ("vq_latent", {"latent_codes": 32, "latent_channels": 3, "vae_scale_factor": 4}),
    ],
)
def test_describes_the_model(checkpoint_of: Any, name: str, values: dict[str, Any]) -> None:
    spec = load_checkpoint(checkpoint_of(name)).spec
    assert {key: getattr(spec, key) for key in values} == values


@pytest.mark.parametrize("name", ["refiner", "inpainting", "upscale"])
def test_the_module_joins_what_the_library_wants_as_one(checkpoint_of: Any, name: str) -> None:
    """``condition`` behind the latents, the pooled prompt and the sizes in a dict, labels by their name."""
    import torch

    source = load_checkpoint(checkpoint_of(name))
    spec, part = module_spec("unet", source.spec), source.load("unet")
    sizes = {"batch": 2, "height": 8, "width": 12, "tokens": 5}
    given = {key: torch.from_numpy(value) for key, value in random_inputs(spec, sizes, 0).items()}
    sample = torch.cat([given["sample"], given["condition"]], 1) if "condition" in given else given["sample"]
    added = {key: given[key] for key in ("text_embeds", "time_ids") if key in given}
    with torch.no_grad():
        wanted = part(
            sample,
            given["timestep"],
            given["encoder_hidden_states"],
            class_labels=given.get("class_labels"),
            added_cond_kwargs=added or None,
        ).sample
        found = spec.wrap(part)(*(given[tensor.name] for tensor in spec.inputs))
    assert torch.equal(found, wanted)


@pytest.mark.full
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("target", ["native", "onnxruntime", "torch"])
def test_all_modules_of_every_family(checkpoint_of: Any, tmp_path: Path, name: str, target: str) -> None:
    path = build.build_engine(checkpoint_of(name), tmp_path / "family.fd", target=target).path
    manifest = open_engine(path).manifest
    assert max(entry.error["relative_l2"] for entry in manifest.modules.values()) <= 1e-4
    if name in CALLS:
        ours = fastdiff.load(path, threads=1)(seed=5, **CALLS[name].ours).images
        theirs = oracle(checkpoint_of(name), **CALLS[name].theirs)
        assert min(map(psnr, ours, theirs)) >= MIN_PSNR


@pytest.mark.parametrize("name", CALLS)
def test_pictures_equal_those_of_diffusers(engine_of: Any, checkpoint_of: Any, name: str) -> None:
    ours = fastdiff.load(engine_of(name), threads=1)(seed=5, **CALLS[name].ours).images
    theirs = oracle(checkpoint_of(name), **CALLS[name].theirs)
    assert len(ours) == len(theirs)
    for our, their in zip(ours, theirs, strict=True):
        pixels = np.asarray(their)
        assert pixels.std() > 4, "a flat picture compares nothing"
        assert ((pixels > 0) & (pixels < 255)).mean() > 0.5, "a saturated picture compares little"
        assert psnr(our, their) >= MIN_PSNR
