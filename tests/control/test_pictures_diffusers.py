"""Controlled pictures against diffusers: same checkpoint, networks, prompt and seed, same picture.

The engine has two ControlNets, two T2I-Adapters and an IP-Adapter at once, so that each test also shows that
what a call does not use changes nothing.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastdiff
from fastdiff.build.capture import CapturedModule
from fastdiff.build.modules import random_inputs
from fastdiff.build.passes import run_passes
from fastdiff.errors import FastdiffWarning
from tests.control.conftest import Sources, build_control
from tests.control.oracle import ControlOracle
from tests.controls import picture
from tests.oracle import psnr

PROMPT = "a red circle left of a blue square"
EDGES, SHUFFLE, FACE = picture(5, 40, 56), picture(6), picture(7, 45, 33)


@cache
def oracle_of(checkpoint: Path) -> ControlOracle:
    return ControlOracle(checkpoint)


def controlnets(sources: Sources, *which: int) -> dict[str, Any]:
    from diffusers import ControlNetModel

    found = [ControlNetModel.from_pretrained(sources.controlnets[index]) for index in which]
    return {"controlnet": found[0] if len(found) == 1 else found}


def adapters(sources: Sources, *which: int) -> dict[str, Any]:
    from diffusers import T2IAdapter

    found = [T2IAdapter.from_pretrained(sources.t2i_adapters[index]) for index in which]
    return {"adapter": found[0] if len(found) == 1 else found}


def compare(
    pipe: fastdiff.Pipeline,
    sources: Sources,
    kind: str,
    parts: dict[str, Any],
    ours: dict[str, Any],
    theirs: dict[str, Any],
    *,
    prompt: str | list[str] = PROMPT,
    sampler: str = "euler",
    steps: int = 6,
    guidance: float = 4.0,
    num: int = 1,
    seed: int = 3,
    size: tuple[int, int] = (32, 32),
    plain: bool = True,
) -> fastdiff.Result:
    """Both pictures and latents; with ``plain`` that the control changed the picture at all."""
    height, width = size
    common: dict[str, Any] = {"sampler": sampler, "steps": steps, "guidance": guidance, "num": num}
    common |= {"seed": seed, "height": height, "width": width}
    found = pipe(prompt, **common, **ours)
    images, latents = oracle_of(sources.checkpoint)(
        kind,
        parts,
        sampler,
        seed,
        theirs.pop("ip_adapter", None),
        prompt=prompt,
        negative_prompt=[""] * len(prompt) if isinstance(prompt, list) else "",
        num_inference_steps=steps,
        guidance_scale=guidance,
        num_images_per_prompt=num,
        height=height,
        width=width,
        **theirs,
    )
    assert np.linalg.norm(found.latents - latents) <= 1e-4 * np.linalg.norm(latents)
    assert len(found.images) == len(images)
    assert min(psnr(our, their) for our, their in zip(found.images, images, strict=True)) >= 45
    if plain:
        without = pipe(prompt, **common)
        difference = np.linalg.norm(found.latents - without.latents)
        assert difference > 0.02 * np.linalg.norm(latents), "the control changes nothing that shows"
    return found


@pytest.mark.parametrize("sampler", ["euler", "pndm", "heun"])
def test_one_controlnet(native: fastdiff.Pipeline, sources: Sources, sampler: str) -> None:
    compare(
        native,
        sources,
        "StableDiffusionControlNetPipeline",
        controlnets(sources, 0),
        {"control_image": [EDGES, None], "control_scale": 0.7},
        {"image": EDGES, "controlnet_conditioning_scale": 0.7},
        sampler=sampler,
        size=(48, 32),
    )


def test_pooled_residuals_and_reversed_channels(native: fastdiff.Pipeline, sources: Sources) -> None:
    """A ControlNet whose residuals are one number per channel, which by itself means guess mode."""
    compare(
        native,
        sources,
        "StableDiffusionControlNetPipeline",
        controlnets(sources, 1),
        {"control_image": [None, SHUFFLE]},
        {"image": SHUFFLE},
    )


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_several_with_intervals(native: fastdiff.Pipeline, sources: Sources, guidance: float) -> None:
    compare(
        native,
        sources,
        "StableDiffusionControlNetPipeline",
        controlnets(sources, 0, 1),
        {
            "control_image": [EDGES, SHUFFLE],
            "control_scale": [0.9, 0.5],
            "control_start": [0.0, 0.3],
            "control_end": [0.5, 1.0],
        },
        {
            "image": [EDGES, SHUFFLE],
            "controlnet_conditioning_scale": [0.9, 0.5],
            "control_guidance_start": [0.0, 0.3],
            "control_guidance_end": [0.5, 1.0],
        },
        guidance=guidance,
        num=2,
    )


def test_an_interval_without_a_step_warns(native: fastdiff.Pipeline) -> None:
    call: dict[str, Any] = {"steps": 2, "seed": 3, "sampler": "euler"}
    with pytest.warns(
        FastdiffWarning, match="with control_start 0.8 and control_end 1 none of 2 steps is left"
    ) as c:
        found = native(PROMPT, control_image=[EDGES, None], control_start=0.8, **call)
    assert c[0].filename == __file__
    np.testing.assert_array_equal(found.latents, native(PROMPT, **call).latents)


def test_guess_mode_with_a_picture_for_each_prompt(native: fastdiff.Pipeline, sources: Sources) -> None:
    compare(
        native,
        sources,
        "StableDiffusionControlNetPipeline",
        controlnets(sources, 0),
        {"control_image": [[EDGES, SHUFFLE], None], "guess_mode": True},
        {"image": [EDGES, SHUFFLE], "guess_mode": True},
        prompt=[PROMPT, "a big green star"],
        num=2,
    )


def test_t2i_adapter(native: fastdiff.Pipeline, sources: Sources) -> None:
    compare(
        native,
        sources,
        "StableDiffusionAdapterPipeline",
        adapters(sources, 0),
        {"adapter_image": [EDGES, None], "adapter_scale": 0.8},
        {"image": EDGES, "adapter_conditioning_scale": 0.8},
        num=2,
    )


def test_several_t2i_adapters(native: fastdiff.Pipeline, sources: Sources) -> None:
    grey = SHUFFLE.convert("L")
    compare(
        native,
        sources,
        "StableDiffusionAdapterPipeline",
        adapters(sources, 0, 1),
        {"adapter_image": [EDGES, grey], "adapter_scale": [0.8, 0.4]},
        {"image": [EDGES, grey], "adapter_conditioning_scale": [0.8, 0.4]},
        guidance=1.0,
    )


@pytest.mark.parametrize("images", [[FACE], [FACE, EDGES]], ids=["one", "two"])
def test_ip_adapter(native: fastdiff.Pipeline, sources: Sources, images: list[Any]) -> None:
    compare(
        native,
        sources,
        "StableDiffusionPipeline",
        {},
        {"ip_image": images, "ip_scale": 0.6},
        {"ip_adapter": sources.ip_adapter, "ip_adapter_image": [images], "ip_scale": 0.6},
        num=2,
        size=(32, 48),
    )


def test_ip_adapter_from_embeddings(native: fastdiff.Pipeline, sources: Sources) -> None:
    """The features of the image encoder in place of a picture, those of the other half given too."""
    import torch

    both = np.random.default_rng(1).standard_normal((2, 1, 20), np.float32)
    compare(
        native,
        sources,
        "StableDiffusionPipeline",
        {},
        {"ip_embeds": both},
        {
            "ip_adapter": sources.ip_adapter,
            "ip_adapter_image_embeds": [torch.from_numpy(both)],
            "ip_scale": 1.0,
        },
    )


def test_controlnet_and_ip_adapter(native: fastdiff.Pipeline, sources: Sources) -> None:
    compare(
        native,
        sources,
        "StableDiffusionControlNetPipeline",
        controlnets(sources, 0),
        {"control_image": [EDGES, None], "ip_image": FACE, "ip_scale": 0.5},
        {"image": EDGES, "ip_adapter": sources.ip_adapter, "ip_adapter_image": FACE, "ip_scale": 0.5},
    )


@pytest.mark.full
def test_onnxruntime_draws_the_same(
    native: fastdiff.Pipeline,
    sources: Sources,
    captures: dict[str, CapturedModule],
    tmp_path: Path,
) -> None:
    """Another target for all modules at once; they are exported to ONNX, which takes a minute."""
    pipe = build_control(
        sources.checkpoint, tmp_path / "control.fd", "onnxruntime", captures, **sources.options()
    )
    call: dict[str, Any] = {"steps": 5, "seed": 2, "sampler": "euler", "guidance": 3.0}
    call |= {"control_image": [EDGES, SHUFFLE], "control_end": 0.7, "ip_image": FACE, "ip_scale": 0.6}
    call |= {"adapter_image": [EDGES, SHUFFLE], "adapter_scale": 0.7}
    ours, wanted = pipe(PROMPT, **call), native(PROMPT, **call)
    assert np.linalg.norm(ours.latents - wanted.latents) < 1e-4 * np.linalg.norm(wanted.latents)
    assert psnr(ours.images[0], wanted.images[0]) >= 45


@pytest.mark.parametrize("name", ["controlnet_2_embedding", "t2i_adapter", "image_encoder", "ip_adapter"])
def test_modules_on_onnxruntime(
    native: fastdiff.Pipeline, captures: dict[str, CapturedModule], tmp_path: Path, name: str
) -> None:
    """What runs once per call, from the graph that the native modules were made of."""
    from fastdiff.config import Precision
    from fastdiff.targets import CompileOptions, get_target

    captured, target = captures[name], get_target("onnxruntime")
    assert captured.program is not None
    program = run_passes(captured.program)
    compiled = target.compile(captured.with_program(program), tmp_path, CompileOptions(Precision.FP32, {}))
    entry = replace(
        native.engine.entry(name),
        target="onnxruntime",
        files=dict.fromkeys(compiled.files, ""),
        tactics=compiled.tactics,
        requires={},
    )
    arrays = random_inputs(captured.spec, {"batch": 2, "height": 6, "width": 10}, 1)
    wanted = native.modules[name](**arrays)
    with target.open(tmp_path, name, entry, 1) as session:
        found = session(**arrays)
    for output, array in wanted.items():
        assert np.linalg.norm(found[output] - array) < 2e-6 * np.linalg.norm(array)
