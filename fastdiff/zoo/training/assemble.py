"""Put the trained parts together as a diffusers checkpoint folder with fp16 safetensors."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from fastdiff.zoo.training.evaluate import load_checkpoint

__all__ = ["assemble", "pipeline_of", "restore"]

PREVIEW = "preview_vae"
"""The folder of the tiny autoencoder, which is no part of diffusers' pipeline."""


def pipeline_of(run: Path) -> StableDiffusionPipeline:
    """The run's parts as a diffusers pipeline."""
    return StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(run / "vae"),
        text_encoder=CLIPTextModel.from_pretrained(run / "text_encoder"),
        tokenizer=CLIPTokenizer.from_pretrained(run / "tokenizer"),
        unet=UNet2DConditionModel.from_pretrained(run / "unet"),
        scheduler=EulerDiscreteScheduler.from_pretrained(run / "scheduler"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def assemble(run: Path, output: Path) -> int:
    """Write the checkpoint to ``output``, in place of what is there but its README, and return its bytes."""
    temporary = output.with_name(output.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    pipeline_of(run).to(torch.float16).save_pretrained(temporary, safe_serialization=True)
    for config in temporary.rglob("config.json"):  # diffusers notes there which folder it loaded from
        entries = {k: v for k, v in json.loads(config.read_text()).items() if k != "_name_or_path"}
        config.write_text(json.dumps(entries, indent=2) + "\n")
    for name in (
        "vocab.json",
        "merges.txt",
    ):  # for transformers before 5, which do not read tokenizer.json alone
        shutil.copy2(run / "tokenizer" / name, temporary / "tokenizer" / name)
    if (run / PREVIEW).is_dir():
        shutil.copytree(run / PREVIEW, temporary / PREVIEW)
    for kept in output.glob("*.md"), output.glob("*.png"), output.glob("*.json"):
        for file in kept:
            if not (temporary / file.name).exists():
                shutil.copy2(file, temporary / file.name)
    shutil.rmtree(output, ignore_errors=True)
    temporary.replace(output)
    return sum(f.stat().st_size for f in output.rglob("*") if f.is_file())


def restore(checkpoint: Path, run: Path) -> None:
    """Fill a run folder with a checkpoint's parts in fp32, so that every stage starts from its weights.

    The optimisers' states are not part of a checkpoint: a restored stage warms up anew.
    """
    pipe = load_checkpoint(checkpoint)
    for name in ("vae", "text_encoder", "tokenizer", "unet", "scheduler"):
        if (run / name).exists():
            raise FileExistsError(f"{run / name} exists: give --run a folder that holds no weights yet")
    shutil.copytree(checkpoint / "tokenizer", run / "tokenizer")
    if (checkpoint / PREVIEW).is_dir():
        shutil.copytree(checkpoint / PREVIEW, run / PREVIEW)
    for name in ("vae", "text_encoder", "unet", "scheduler"):
        getattr(pipe, name).save_pretrained(run / name)
