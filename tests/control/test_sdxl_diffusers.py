"""Controlled pictures of SDXL against diffusers: its ControlNets take what its U-Net takes of the prompt, and
its T2I-Adapters reach levels without attention.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastdiff
from tests.builds import targets_of
from tests.control.conftest import build_control
from tests.control.oracle import ControlOracle
from tests.controls import make_controlnet, make_t2i_adapter, picture
from tests.families import make_family
from tests.oracle import psnr

PROMPT = "a red circle left of a blue square"
EDGES = picture(5, 40, 56)


@dataclass(frozen=True)
class Model:
    pipe: fastdiff.Pipeline
    oracle: ControlOracle
    folder: Path


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("sdxl")
    checkpoint = make_family("sdxl", folder / "checkpoint")
    options = {
        "controlnets": [make_controlnet(folder / "edges", checkpoint)],
        "t2i_adapters": [
            make_t2i_adapter(
                folder / "depth", adapter_type="full_adapter_xl", channels=[16, 32], downscale_factor=8
            )
        ],
    }
    native = dict.fromkeys(("unet", "controlnet", "t2i_adapter"), "native")
    with targets_of(native):
        pipe = build_control(checkpoint, folder / "sdxl.fd", "native", {}, **options)
    return Model(pipe, ControlOracle(checkpoint, "StableDiffusionXLPipeline"), folder)


def compare(model: Model, kind: str, parts: dict[str, Any], ours: dict[str, Any], **theirs: Any) -> None:
    call: dict[str, Any] = {"sampler": "euler", "steps": 6, "guidance": 4.0, "seed": 2, "num": 2}
    call["negative"] = "green star"
    found = model.pipe(PROMPT, **call, **ours)
    images, latents = model.oracle(
        kind,
        parts,
        "euler",
        2,
        None,
        prompt=PROMPT,
        negative_prompt="green star",
        num_inference_steps=6,
        guidance_scale=4.0,
        num_images_per_prompt=2,
        height=32,
        width=32,
        **theirs,
    )
    assert np.linalg.norm(found.latents - latents) <= 1e-4 * np.linalg.norm(latents)
    assert min(psnr(our, their) for our, their in zip(found.images, images, strict=True)) >= 45
    plain = model.pipe(PROMPT, **call)
    assert np.linalg.norm(found.latents - plain.latents) > 0.02 * np.linalg.norm(latents)


@pytest.mark.parametrize("guess", [False, True])
def test_controlnet(sdxl: Model, guess: bool) -> None:
    from diffusers import ControlNetModel

    compare(
        sdxl,
        "StableDiffusionXLControlNetPipeline",
        {"controlnet": ControlNetModel.from_pretrained(sdxl.folder / "edges")},
        {"control_image": EDGES, "control_scale": 0.7, "control_end": 0.7, "guess_mode": guess},
        image=EDGES,
        controlnet_conditioning_scale=0.7,
        control_guidance_end=0.7,
        guess_mode=guess,
    )


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_t2i_adapter(sdxl: Model, share: float) -> None:
    from diffusers import T2IAdapter

    compare(
        sdxl,
        "StableDiffusionXLAdapterPipeline",
        {"adapter": T2IAdapter.from_pretrained(sdxl.folder / "depth")},
        {"adapter_image": EDGES, "adapter_scale": 0.8, "adapter_end": share},
        image=EDGES,
        adapter_conditioning_scale=0.8,
        adapter_conditioning_factor=share,
    )
