"""Published configurations of full-size models, measured with random weights: times do not depend on them.

Copied from the model cards' own config files; the parameter counts are those of the published weights, and
the tests hold the configurations to them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastdiff.config import ModelSpec

__all__ = ["PUBLISHED", "Published"]


@dataclass(frozen=True)
class Published:
    """One part of a published model: its config, the module that is measured, the config's source."""

    part: str
    module: str
    config: Mapping[str, Any]
    parameters: int
    model: ModelSpec
    source: str


_SD15_SOURCE = "https://huggingface.co/stable-diffusion-v1-5/stable-diffusion-v1-5"

_SD15 = ModelSpec(
    family="stable_diffusion",
    latent_channels=4,
    vae_scale_factor=8,
    scaling_factor=0.18215,
    shift_factor=0.0,
    default_height=512,
    default_width=512,
    default_batch=1,
    size_multiple=64,
    max_tokens=77,
    hidden_size=768,
)

_SD15_UNET = {
    "_class_name": "UNet2DConditionModel",
    "act_fn": "silu",
    "attention_head_dim": 8,
    "block_out_channels": [320, 640, 1280, 1280],
    "center_input_sample": False,
    "cross_attention_dim": 768,
    "down_block_types": [
        "CrossAttnDownBlock2D",
        "CrossAttnDownBlock2D",
        "CrossAttnDownBlock2D",
        "DownBlock2D",
    ],
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 4,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-05,
    "norm_num_groups": 32,
    "out_channels": 4,
    "sample_size": 64,
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
}

_SD15_VAE = {
    "_class_name": "AutoencoderKL",
    "act_fn": "silu",
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "in_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "out_channels": 3,
    "sample_size": 512,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}

_SDXL_SOURCE = "https://huggingface.co/stabilityai/stable-diffusion-xl-base-1.0"

_SDXL = ModelSpec(
    family="stable_diffusion_xl",
    latent_channels=4,
    vae_scale_factor=8,
    scaling_factor=0.13025,
    shift_factor=0.0,
    default_height=1024,
    default_width=1024,
    default_batch=1,
    size_multiple=32,
    max_tokens=77,
    hidden_size=2048,
    pooled_size=1280,
    time_ids=6,
)

_SDXL_UNET = {
    **_SD15_UNET,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "attention_head_dim": [5, 10, 20],
    "block_out_channels": [320, 640, 1280],
    "cross_attention_dim": 2048,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "projection_class_embeddings_input_dim": 2816,
    "sample_size": 128,
    "transformer_layers_per_block": [1, 2, 10],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "use_linear_projection": True,
}

_SDXL_VAE = {**_SD15_VAE, "force_upcast": True, "sample_size": 1024, "scaling_factor": 0.13025}

PUBLISHED: Mapping[str, Published] = {
    "sd15-unet": Published(
        "unet", "unet", _SD15_UNET, 859_520_964, _SD15, f"{_SD15_SOURCE}/blob/main/unet/config.json"
    ),
    "sd15-vae-decoder": Published(
        "vae", "vae_decoder", _SD15_VAE, 83_653_863, _SD15, f"{_SD15_SOURCE}/blob/main/vae/config.json"
    ),
    "sdxl-unet": Published(
        "unet", "unet", _SDXL_UNET, 2_567_463_684, _SDXL, f"{_SDXL_SOURCE}/blob/main/unet/config.json"
    ),
    "sdxl-vae-decoder": Published(
        "vae", "vae_decoder", _SDXL_VAE, 83_653_863, _SDXL, f"{_SDXL_SOURCE}/blob/main/vae/config.json"
    ),
}
"""Names that ``fastdiff bench`` takes in place of a checkpoint."""
