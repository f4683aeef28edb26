"""The shipped checkpoint: what the package promises of it, and the figures of its model card."""

import json

import pytest
from diffusers import StableDiffusionPipeline
from safetensors import safe_open

from fastdiff.zoo import resolve
from fastdiff.zoo.training.evaluate import evaluate, load_checkpoint

FOLDER = resolve("scenes")
FIGURES = json.loads((FOLDER / "figures.json").read_text())


@pytest.fixture(scope="module")
def pipe() -> StableDiffusionPipeline:
    return load_checkpoint(FOLDER)


def test_at_most_40_megabytes_of_fp16_safetensors() -> None:
    files = [f for f in FOLDER.rglob("*") if f.is_file()]
    assert sum(f.stat().st_size for f in files) <= 40e6
    weights = [f for f in files if f.suffix in (".safetensors", ".bin", ".ckpt", ".pt")]
    assert {f.suffix for f in weights} == {".safetensors"}
    for file in weights:
        with safe_open(file, "np") as tensors:
            types = {tensors.get_slice(name).get_dtype() for name in tensors.keys()}  # noqa: SIM118
        assert types == {"F16"}, file


def test_diffusers_loads_it_unchanged(pipe: StableDiffusionPipeline) -> None:
    names = {name: type(part).__name__ for name, part in pipe.components.items() if part is not None}
    assert names == {
        "text_encoder": "CLIPTextModel",
        "tokenizer": "CLIPTokenizer",
        "unet": "UNet2DConditionModel",
        "vae": "AutoencoderKL",
        "scheduler": "EulerDiscreteScheduler",
    }
    assert pipe.scheduler.config.beta_schedule == "scaled_linear"
    assert pipe.scheduler.config.prediction_type == "epsilon"
    assert pipe.scheduler.config.num_train_timesteps == 1000


def test_pictures_and_reconstructions_are_as_good_as_the_card_says(pipe: StableDiffusionPipeline) -> None:
    # 40 of the card's 200 captions: two standard deviations of a share estimated from 40 are at most 0.16,
    # a few more when only the captions with a relation count; the PSNR's mean scatters by a few tenths.
    figures, rows = evaluate(pipe, count=40, batch=40)
    assert len(rows) == 40
    assert figures.objects >= FIGURES["objects"] - 0.16
    assert figures.each_object >= FIGURES["each_object"] - 0.12
    assert figures.relation >= FIGURES["relation"] - 0.18
    assert figures.vae_psnr >= FIGURES["vae_psnr"] - 0.7
