"""Tiny random checkpoints of every family in the layout of diffusers, for the tests.

Structures are those of the published configurations, widths and counts of repeated layers are small. Norms
and biases are moved off ones and zeros, so that a weight that goes missing shows.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from fastdiff.build.weights import quiet
from tests.checkpoints import END, MAX_TOKENS, SCHEDULER, START, bpe, write_json, write_tokenizer

__all__ = ["FAMILIES", "make_family"]

EULER = {
    **{key: SCHEDULER[key] for key in ("beta_end", "beta_schedule", "beta_start", "num_train_timesteps")},
    "_class_name": "EulerDiscreteScheduler",
    "_diffusers_version": "0.30.0",
    "interpolation_type": "linear",
    "prediction_type": "epsilon",
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "use_karras_sigmas": False,
}
DDIM = {**SCHEDULER, "_class_name": "DDIMScheduler", "clip_sample": False}
DDIM.pop("skip_prk_steps")


def text_encoder(width: int = 32, projection: int = 0, **options: Any) -> Any:
    """CLIP's text model of 3 layers, with a projection where that is not 0."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    vocabulary, _ = bpe()
    config = CLIPTextConfig(
        vocab_size=len(vocabulary),
        hidden_size=width,
        intermediate_size=2 * width,
        projection_dim=projection or width,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=MAX_TOKENS,
        bos_token_id=vocabulary[START],
        eos_token_id=vocabulary[END],
        pad_token_id=vocabulary[END],
        **options,
    )
    return CLIPTextModelWithProjection(config) if projection else CLIPTextModel(config)


def unet(**options: Any) -> Any:
    """A conditional U-Net of two levels."""
    from diffusers import UNet2DConditionModel

    defaults: dict[str, Any] = {
        "sample_size": 8,
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": (16, 32),
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": 32,
        "attention_head_dim": 4,
        "norm_num_groups": 8,
    }
    return UNet2DConditionModel(**{**defaults, **options})


def vae(**options: Any) -> Any:
    """Stable Diffusion's autoencoder with a factor of 4."""
    from diffusers import AutoencoderKL

    defaults: dict[str, Any] = {
        "block_out_channels": (8, 16, 16),
        "down_block_types": ("DownEncoderBlock2D",) * 3,
        "up_block_types": ("UpDecoderBlock2D",) * 3,
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "sample_size": 32,
        "scaling_factor": 0.18215,
    }
    return AutoencoderKL(**{**defaults, **options})


def _xl_unet(hidden: int, pooled: int, ids: int, **options: Any) -> Any:
    return unet(
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2),
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=pooled + ids * 8,
        cross_attention_dim=hidden,
        **options,
    )


def sdxl() -> dict[str, Any]:
    """stabilityai/stable-diffusion-xl-base-1.0."""
    return {
        "pipeline": "StableDiffusionXLPipeline",
        "scheduler": EULER,
        "text_encoder": text_encoder(32, hidden_act="quick_gelu"),
        "text_encoder_2": text_encoder(24, 20, hidden_act="gelu"),
        "unet": _xl_unet(56, 20, 6),
        "vae": vae(scaling_factor=0.13025, force_upcast=True),
        "index": {"force_zeros_for_empty_prompt": True},
    }


def refiner() -> dict[str, Any]:
    """stabilityai/stable-diffusion-xl-refiner-1.0: the second text encoder alone, an aesthetic score."""
    return {
        "pipeline": "StableDiffusionXLImg2ImgPipeline",
        "scheduler": EULER,
        "text_encoder_2": text_encoder(24, 20, hidden_act="gelu"),
        "unet": _xl_unet(24, 20, 5),
        "vae": vae(scaling_factor=0.13025, force_upcast=True),
        "index": {"requires_aesthetics_score": True, "force_zeros_for_empty_prompt": False},
    }


FAMILIES: dict[str, Callable[[], dict[str, Any]]] = {make.__name__: make for make in (sdxl, refiner)}
"""By name: the pipeline's class, the scheduler's config, the parts, and further entries of the index."""

_TOKENIZERS = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}


def make_family(name: str, folder: Path) -> Path:
    """Write the checkpoint ``name`` of FAMILIES into ``folder`` (which must not exist) and return it."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        made = FAMILIES[name]()
        pipeline, scheduler = made.pop("pipeline"), made.pop("scheduler")
        index: dict[str, Any] = {
            "_class_name": pipeline,
            "_diffusers_version": "0.30.0",
            **made.pop("index", {}),
            "scheduler": ["diffusers", scheduler["_class_name"]],
        }
        folder.mkdir(parents=True)
        for part, model in made.items():
            for parameter in model.parameters():
                if parameter.dim() == 1:
                    parameter.add_(0.1 * torch.randn(parameter.shape))
            with quiet():
                model.save_pretrained(folder / part, safe_serialization=True)
            library = "transformers" if part in _TOKENIZERS else "diffusers"
            index[part] = [library, type(model).__name__]
            if part in _TOKENIZERS:
                write_tokenizer(folder / _TOKENIZERS[part])
                index[_TOKENIZERS[part]] = ["transformers", "CLIPTokenizer"]
    if "XL" in pipeline:
        for missing in ("text_encoder", "tokenizer"):
            index.setdefault(missing, [None, None])
    (folder / "scheduler").mkdir()
    write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
    write_json(folder / "model_index.json", index)
    return folder
