"""The tasks with what else a call may ask for: control, LoRAs, reuse of features, previews, prompts' options.

One engine has it all, so that each test also shows that what a call does not use changes nothing.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import fastdiff
from fastdiff import InputError
from fastdiff.build.build import build_engine
from fastdiff.errors import FastdiffWarning
from tests.checkpoints import make_checkpoint
from tests.controls import make_controlnet, make_image_encoder, make_ip_adapter, picture
from tests.lora.made_up import add_to, layers_of, random_updates, write_lora
from tests.tasks.oracle import PROMPT, compare, components, drawn, hole

EDGES, FACE = picture(5, 40, 56), picture(7, 45, 33)
CALL: dict[str, Any] = {"steps": 6, "guidance": 3.0, "seed": 2, "sampler": "euler"}
SIZE = {"height": 32, "width": 32}


@dataclass(frozen=True)
class Model:
    folder: Path
    checkpoint: Path
    pipe: fastdiff.Pipeline

    def both(self, **options: Any) -> list[np.ndarray]:
        """Latents of both tasks."""
        image = self.pipe.img2img(drawn(), **{"prompt": PROMPT, "strength": 0.8, **CALL, **options})
        inside = self.pipe.inpaint(drawn(), hole(), **{"prompt": PROMPT, **CALL, **options})
        return [image.latents, inside.latents]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("together")
    checkpoint = make_checkpoint(folder / "checkpoint")
    engine = build_engine(
        checkpoint,
        folder / "engine.fd",
        target="torch",
        controlnets=[make_controlnet(folder / "edges", checkpoint)],
        ip_adapter=make_ip_adapter(folder / "ip-adapter.safetensors", checkpoint),
        image_encoder=make_image_encoder(folder / "image_encoder"),
        deep_cache=0,
    ).path
    return Model(folder, checkpoint, fastdiff.load(engine, threads=1))


@pytest.fixture(scope="module")
def plain(model: Model) -> list[np.ndarray]:
    return model.both()


def assert_other(found: list[np.ndarray], plain: list[np.ndarray]) -> None:
    for ours, other in zip(found, plain, strict=True):
        assert np.linalg.norm(ours - other) > 1e-3 * np.linalg.norm(other)


def assert_controlled(model: Model, guess: bool) -> None:
    """Both tasks under a ControlNet, against diffusers' pipelines of the three."""
    from diffusers import ControlNetModel

    net = {"controlnet": ControlNetModel.from_pretrained(model.folder / "edges")}
    control = {"control_image": EDGES, "control_scale": 0.7, "control_end": 0.7, "guess_mode": guess}
    named = {
        "control_image": EDGES.resize((32, 32), 1),
        "controlnet_conditioning_scale": 0.7,
        "control_guidance_end": 0.7,
        "guess_mode": guess,
        "parts": net,
        **SIZE,
    }
    for task, kind, call in (
        (model.pipe.img2img, "Img2Img", {"image": drawn(), "strength": 0.6}),
        (model.pipe.inpaint, "Inpaint", {"image": drawn(), "mask": hole(), "strength": 0.8}),
    ):
        name = f"StableDiffusionControlNet{kind}Pipeline"
        compare(task, model.checkpoint, name, only_ours=control, only_theirs=named, steps=10, **call)


@pytest.mark.parametrize("guess", [False, True])
def test_controlnets(model: Model, guess: bool) -> None:
    assert_controlled(model, guess)


def test_a_lora_with_a_controlnet(model: Model, plain: list[np.ndarray], tmp_path: Path) -> None:
    """The U-Net and the prompt have the LoRA, the ControlNet is as it was."""
    base = components(model.checkpoint)
    updates, kept = {}, {}
    for seed, name in enumerate(("unet", "text_encoder")):
        part = getattr(base, name)
        kept[name] = {key: value.clone() for key, value in part.state_dict().items()}
        updates[name] = random_updates(layers_of(part), 2, seed, size=0.2)
    model.pipe.load_lora(write_lora(tmp_path / "style.safetensors", updates, "peft"), 0.7)
    try:
        for name, layers in updates.items():
            add_to(getattr(base, name), layers, 0.7)
        assert_controlled(model, False)
        assert_other(model.both(), plain)
    finally:
        model.pipe.unload_loras()
        for name, weights in kept.items():
            getattr(base, name).load_state_dict(weights)


def test_ip_adapter(model: Model) -> None:
    from transformers import CLIPImageProcessorPil, CLIPVisionModelWithProjection

    parts = {
        "image_encoder": CLIPVisionModelWithProjection.from_pretrained(model.folder / "image_encoder"),
        "feature_extractor": CLIPImageProcessorPil(size=32, crop_size=32),
    }
    named = {
        "ip_adapter_image": FACE,
        "parts": parts,
        "ip_adapter": model.folder / "ip-adapter.safetensors",
    }
    ours = {"ip_image": FACE}
    for task, name, call in (
        (model.pipe.img2img, "StableDiffusionImg2ImgPipeline", {"image": drawn(), "strength": 0.6}),
        (model.pipe.inpaint, "StableDiffusionInpaintPipeline", {"image": drawn(), "mask": hole(), **SIZE}),
    ):
        compare(task, model.checkpoint, name, only_ours=ours, only_theirs=named, **call)


def test_prompts_options(model: Model, plain: list[np.ndarray]) -> None:
    """Skipped layers and cut prompts as in diffusers; chunks and weights have an effect."""
    call = {"image": drawn(), "strength": 0.6}
    name = "StableDiffusionImg2ImgPipeline"
    compare(model.pipe.img2img, model.checkpoint, name, clip_skip=1, **call)
    long = "a red circle, " * 30 + "a green star"
    with pytest.warns(FastdiffWarning, match="green star"):
        cut = model.pipe.img2img(prompt=long, long_prompts="cut", **CALL, **call).latents
    whole = model.pipe.img2img(prompt=long, **CALL, **call).latents
    assert_other([whole], [cut])
    assert_other(model.both(prompt="a (red:1.4) circle left of a blue square"), plain)
    assert_other(model.both(clip_skip=1), plain)
    for given, message in (({"clip_skip": 7}, "clip_skip is 7"), ({"prompt_2": "a"}, "prompt_2 is for")):
        with pytest.raises(InputError, match=message):
            model.both(**given)


def test_textual_inversion(model: Model, plain: list[np.ndarray], tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).standard_normal((2, 32)).astype(np.float32)
    save_file({"emb_params": vectors}, tmp_path / "style.safetensors")
    word = model.pipe.load_textual_inversion(tmp_path / "style.safetensors", "<style>")
    try:
        assert_other(model.both(prompt=f"{PROMPT} {word}"), plain)
    finally:
        model.pipe.unload_textual_inversion()


def test_loras(model: Model, plain: list[np.ndarray], tmp_path: Path) -> None:
    updates = {"unet": random_updates(layers_of(components(model.checkpoint).unet), 2, 3)}
    write_lora(tmp_path / "style.safetensors", updates, "kohya")
    lora = model.pipe.load_lora(tmp_path / "style.safetensors")
    assert_other(model.both(), plain)
    assert model.pipe.img2img(drawn(), PROMPT, **CALL).metadata[0]["loras"]
    model.pipe.unload_loras(lora)
    assert all(map(np.array_equal, model.both(), plain))


def test_reuse_of_features(model: Model, plain: list[np.ndarray]) -> None:
    assert all(map(np.array_equal, model.both(deep_cache=1), plain))
    assert_other(model.both(deep_cache=2), plain)
    with pytest.raises(InputError, match="deep_cache with a control_image"):
        model.both(deep_cache=2, control_image=EDGES)


def test_previews_and_callbacks(model: Model, plain: list[np.ndarray]) -> None:
    """Of the steps that are run. An edit between the steps comes before the callback sees them."""
    shown: list[tuple[int, int, int]] = []
    seen: list[np.ndarray] = []
    found = model.both(
        preview=lambda step, total, pictures: shown.append((step, total, len(pictures))),
        preview_every=2,
        callback=lambda step, total, latents: seen.append(latents.copy()),
    )
    assert all(np.allclose(ours, other, atol=1e-5) for ours, other in zip(found, plain, strict=True))
    assert shown == [(2, 4, 1), (4, 4, 1), (2, 6, 1), (4, 6, 1), (6, 6, 1)]
    assert len(seen) == 4 + 6
    assert np.array_equal(seen[-1], found[1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"control_scale": 0.5}, "control_scale without control_image"),
        ({"ip_scale": 0.5}, "ip_scale without ip_image"),
        ({"adapter_image": EDGES}, "has no T2I-Adapter"),
        ({"deep_cache": 0}, "deep_cache"),
        ({"preview": 3}, "preview"),
        ({"preview": print, "preview_every": 0}, "preview_every is 0"),
        ({"vae": "tiny"}, "without a tiny autoencoder"),
        ({"class_label": 1}, "class_label is 1"),
        ({"variation_seed": 1}, "unknown option 'variation_seed'"),
        ({"guidance": float("nan")}, "guidance is nan"),
        ({"eta": 2}, "eta is 2"),
        ({"steps": 0}, "steps is 0"),
        ({"sampler": "eulr"}, "eulr"),
        ({"sampler_options": {"nonsense": 7}}, "nonsense"),
    ],
)
def test_options_are_refused_as_in_a_call_from_noise(
    model: Model, options: dict[str, Any], message: str
) -> None:
    for call in (
        lambda: model.pipe.img2img(drawn(), PROMPT, **{**CALL, **options}),
        lambda: model.pipe.inpaint(drawn(), hole(), PROMPT, **{**CALL, **options}),
    ):
        with pytest.raises(InputError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("task", ["img2img", "inpaint", "upscale", "high_resolution", "__call__"])
def test_a_missing_prompt_is_refused_by_every_task(
    model: Model, task: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything is computed; an empty one is a prompt like any other."""
    given = {"img2img": (drawn(),), "inpaint": (drawn(), hole()), "upscale": (drawn(),)}.get(task, ())
    call = {**CALL, "steps": 4}
    assert getattr(model.pipe, task)(*given, prompt="", **call).metadata[0]["prompt"] == ""
    monkeypatch.setattr(model.pipe, "carry_out", None)
    with pytest.raises(InputError, match=r"^prompt is missing: this engine makes pictures of one; give it"):
        getattr(model.pipe, task)(*given, **call)


def test_two_devices(model: Model, plain: list[np.ndarray]) -> None:
    """The halves of guidance apart."""
    split = Model(model.folder, model.checkpoint, fastdiff.load(model.pipe.engine.path, 1, "cpu", "cpu"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = split.both()
    split.pipe.close()
    for ours, other in zip(found, plain, strict=True):
        assert np.linalg.norm(ours - other) <= 1e-5 * np.linalg.norm(other)
