"""Tiny diffusers pipelines in memory, which share what they have in common, and their compiled twins."""

from __future__ import annotations

import inspect
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fastdiff
from tests.checkpoints import SCHEDULER, write_tokenizer
from tests.families import text_encoder, unet, vae

__all__ = ["PIPELINES", "compiled", "component", "original", "picture", "psnr", "quick"]

_FLAT = {
    "block_out_channels": (16,),
    "down_block_types": ("CrossAttnDownBlock2D",),
    "up_block_types": ("CrossAttnUpBlock2D",),
}


def _controlnet() -> Any:
    from diffusers import ControlNetModel

    return ControlNetModel(
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=4,
        norm_num_groups=8,
        conditioning_embedding_out_channels=(8, 16, 16),
        controlnet_conditioning_channel_order="bgr",
    )


def _pixels() -> Any:
    from diffusers import UNet2DModel

    return UNet2DModel(
        sample_size=16,
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=8,
    )


def _tiny() -> Any:
    from diffusers import AutoencoderTiny

    widths = {"encoder_block_out_channels": (8, 8, 8), "decoder_block_out_channels": (8, 8, 8)}
    return AutoencoderTiny(
        **widths, num_encoder_blocks=(1, 1, 1), num_decoder_blocks=(1, 1, 1), scaling_factor=1.0
    )


_MODELS: dict[str, Callable[[], Any]] = {
    "text_encoder": lambda: text_encoder(32),
    "text_encoder_2": lambda: text_encoder(24, 20, hidden_act="gelu"),
    "unet": unet,
    "inpainting": lambda: unet(in_channels=9, **_FLAT),
    "lcm": lambda: unet(time_cond_proj_dim=16, **_FLAT),
    "xl": lambda: unet(
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=20 + 6 * 8,
        cross_attention_dim=56,
    ),
    "vae": vae,
    "tiny": _tiny,
    "pixels": _pixels,
    "controlnet": _controlnet,
}


@cache
def component(name: str) -> Any:
    """A model with random weights: norms and biases off ones and zeros, predictions with some spread."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(len(name))
        model = _MODELS[name]()
        for label, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn(parameter.shape))
            if label.startswith("controlnet_") and parameter.dim() == 4:
                parameter.add_(0.1 * torch.randn(parameter.shape))  # which begin as zeros
    return model.eval()


@cache
def _tokenizer() -> Any:
    from transformers import CLIPTokenizer

    with tempfile.TemporaryDirectory() as folder:
        write_tokenizer(Path(folder) / "tokenizer")
        return CLIPTokenizer.from_pretrained(Path(folder) / "tokenizer")


PIPELINES: dict[str, tuple[str, str, dict[str, str], dict[str, Any]]] = {
    "text to image": ("StableDiffusionPipeline", "PNDM", {"unet": "unet"}, {}),
    "image to image": ("StableDiffusionImg2ImgPipeline", "PNDM", {"unet": "unet"}, {}),
    "inpainting with 4 channels": ("StableDiffusionInpaintPipeline", "DDIM", {"unet": "unet"}, {}),
    "inpainting with 9 channels": ("StableDiffusionInpaintPipeline", "PNDM", {"unet": "inpainting"}, {}),
    "LCM": ("LatentConsistencyModelPipeline", "LCM", {"unet": "lcm"}, {}),
    "SDXL": (
        "StableDiffusionXLPipeline",
        "EulerDiscrete",
        {"unet": "xl"},
        {"text_encoder_2": "text_encoder_2"},
    ),
    "ControlNet": (
        "StableDiffusionControlNetPipeline",
        "DDIM",
        {"unet": "unet"},
        {"controlnet": "controlnet"},
    ),
    "tiny autoencoder": ("StableDiffusionPipeline", "DDIM", {"unet": "unet", "vae": "tiny"}, {}),
    "pixels": ("DDPMPipeline", "DDPM", {"unet": "pixels"}, {}),
}
"""By name: class, scheduler, components by their names here, and components that others do not have."""


def original(name: str) -> Any:
    """A pipeline of PIPELINES."""
    import diffusers

    kind, scheduler, models, more = PIPELINES[name]
    kind_of_scheduler = getattr(diffusers, f"{scheduler}Scheduler")
    known = inspect.signature(kind_of_scheduler).parameters
    options = {key: value for key, value in SCHEDULER.items() if key in known}
    parts: dict[str, Any] = {label: component(model) for label, model in {**models, **more}.items()}
    if kind == "DDPMPipeline":
        pipe = diffusers.DDPMPipeline(parts["unet"], kind_of_scheduler())
    else:
        parts = {"vae": component("vae"), "text_encoder": component("text_encoder"), **parts}
        parts |= {"tokenizer": _tokenizer(), "scheduler": kind_of_scheduler(**options)}
        if "XL" in kind:
            parts["tokenizer_2"] = _tokenizer()
        else:
            parts |= {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        pipe = getattr(diffusers, kind)(**parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def quick(patch: pytest.MonkeyPatch) -> None:
    """Measure every layer once, for a moment: what is compared does not depend on the algorithm."""
    from fastdiff.targets.native import compiler

    patch.setattr(compiler, "_ROUNDS", 1)
    patch.setattr(compiler, "_SECONDS", 1e-5)


def compiled(pipe: Any, cache: Path, **options: Any) -> Any:
    """The compiled twin, with engines in ``cache``."""
    with pytest.MonkeyPatch.context() as patch:
        quick(patch)
        return fastdiff.compile(pipe, cache=cache, **{"target": "native", "progress": False, **options})


def picture(side: int = 32, seed: int = 5) -> Any:
    """A colourful picture to start from."""
    from PIL import Image

    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), np.uint8))
    return coarse.resize((side, side), Image.Resampling.BICUBIC)


def psnr(found: Any, wanted: Any) -> float:
    """Peak signal-to-noise ratio in dB of pictures whose values are 0 to 1."""
    error = float(np.mean((np.asarray(found, np.float64) - np.asarray(wanted, np.float64)) ** 2))
    return float("inf") if error == 0 else -10 * float(np.log10(error))
