"""Published structures that ``fastdiff.published`` has not: of models without a prompt, and of the upscaler.

They are written down here from the models' papers and repositories, not copied; the numbers of parameters of
the published weights hold them to that.
"""

from __future__ import annotations

from typing import Any

from fastdiff.published import config_files, part_config

__all__ = ["UNET_PARAMETERS", "files_of"]

UNET_PARAMETERS = {
    "x4-upscaler": 473_398_020,
    "ldm-celebahq-256": 274_056_163,
    "cd-imagenet64": 295_897_731,
    "ddpm-cifar10-32": 35_746_307,
}
"""Parameters of the U-Nets."""

_LINEAR = {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear", "num_train_timesteps": 1000}
_PIXELS: dict[str, Any] = {"_class_name": "UNet2DModel", "in_channels": 3, "out_channels": 3}


def files_of(model: str) -> dict[str, dict[str, Any]]:
    """The JSON files of a model by their path in its folder, as ``fastdiff.published.config_files``."""
    made = {
        "x4-upscaler": _upscaler,
        "ldm-celebahq-256": _faces,
        "cd-imagenet64": _consistency,
        "ddpm-cifar10-32": _ddpm,
    }.get(model)
    files = config_files(model) if made is None else made()
    files["model_index.json"]["_diffusers_version"] = "0.30.0"  # which diffusers asks for
    return files


def _index(pipeline: str, **parts: str) -> dict[str, Any]:
    library = {"text_encoder": "transformers", "tokenizer": "transformers"}
    index = {part: [library.get(part, "diffusers"), kind] for part, kind in parts.items()}
    return {"_class_name": pipeline, **index}


def _blocks(plain: str, other: str, count: int, first: bool) -> list[str]:
    return [plain, *[other] * count] if first else [*[other] * count, plain]


def _upscaler() -> dict[str, dict[str, Any]]:
    """stabilityai/stable-diffusion-x4-upscaler, with SD 2's text encoder."""
    noise = {**_LINEAR, "beta_schedule": "scaled_linear"}
    scheduler = {
        **noise,
        "_class_name": "DDIMScheduler",
        "clip_sample": False,
        "prediction_type": "v_prediction",
        "set_alpha_to_one": False,
        "steps_offset": 1,
    }
    unet = {
        "_class_name": "UNet2DConditionModel",
        "sample_size": 128,
        "in_channels": 7,
        "out_channels": 4,
        "block_out_channels": [256, 512, 512, 1024],
        "layers_per_block": 2,
        "down_block_types": _blocks("DownBlock2D", "CrossAttnDownBlock2D", 3, True),
        "up_block_types": _blocks("UpBlock2D", "CrossAttnUpBlock2D", 3, False),
        "only_cross_attention": [True, True, True, False],
        "attention_head_dim": 8,
        "cross_attention_dim": 1024,
        "num_class_embeds": 1000,
        "use_linear_projection": True,
    }
    vae = {
        "_class_name": "AutoencoderKL",
        "sample_size": 256,
        "block_out_channels": [128, 256, 512],
        "layers_per_block": 2,
        "latent_channels": 4,
        "down_block_types": ["DownEncoderBlock2D"] * 3,
        "up_block_types": ["UpDecoderBlock2D"] * 3,
        "scaling_factor": 0.08333,
    }
    index = _index(
        "StableDiffusionUpscalePipeline",
        low_res_scheduler="DDPMScheduler",
        scheduler="DDIMScheduler",
        text_encoder="CLIPTextModel",
        tokenizer="CLIPTokenizer",
        unet="UNet2DConditionModel",
        vae="AutoencoderKL",
    )
    return {
        "model_index.json": {**index, "max_noise_level": 350},
        "low_res_scheduler/scheduler_config.json": {**noise, "_class_name": "DDPMScheduler"},
        "scheduler/scheduler_config.json": scheduler,
        "text_encoder/config.json": part_config("sd21", "text_encoder"),
        "unet/config.json": unet,
        "vae/config.json": vae,
    }


def _faces() -> dict[str, dict[str, Any]]:
    """CompVis/ldm-celebahq-256: Rombach et al. 2022, table 12, with the VQ-VAE of factor 4."""
    unet = {
        **_PIXELS,
        "sample_size": 64,
        "block_out_channels": [224, 448, 672, 896],
        "layers_per_block": 2,
        "down_block_types": _blocks("DownBlock2D", "AttnDownBlock2D", 3, True),
        "up_block_types": _blocks("UpBlock2D", "AttnUpBlock2D", 3, False),
        "attention_head_dim": 32,
    }
    vqvae = {
        "_class_name": "VQModel",
        "sample_size": 256,
        "block_out_channels": [128, 256, 512],
        "layers_per_block": 2,
        "latent_channels": 3,
        "num_vq_embeddings": 8192,
        "down_block_types": ["DownEncoderBlock2D"] * 3,
        "up_block_types": ["UpDecoderBlock2D"] * 3,
    }
    scheduler = {
        **_LINEAR,
        "_class_name": "DDIMScheduler",
        "beta_start": 0.0015,
        "beta_end": 0.0195,
        "beta_schedule": "scaled_linear",
        "clip_sample": False,
    }
    return {
        "model_index.json": _index(
            "LDMPipeline", scheduler="DDIMScheduler", unet="UNet2DModel", vqvae="VQModel"
        ),
        "scheduler/scheduler_config.json": scheduler,
        "unet/config.json": unet,
        "vqvae/config.json": vqvae,
    }


def _consistency() -> dict[str, dict[str, Any]]:
    """openai/diffusers-cd_imagenet64_l2: Dhariwal and Nichol 2021, the ADM of 64² with classes."""
    unet = {
        **_PIXELS,
        "sample_size": 64,
        "block_out_channels": [192, 384, 576, 768],
        "layers_per_block": 3,
        "down_block_types": _blocks("ResnetDownsampleBlock2D", "AttnDownBlock2D", 3, True),
        "up_block_types": _blocks("ResnetUpsampleBlock2D", "AttnUpBlock2D", 3, False),
        "attention_head_dim": 64,
        "num_class_embeds": 1000,
        "resnet_time_scale_shift": "scale_shift",
        "downsample_type": "resnet",
        "upsample_type": "resnet",
    }
    scheduler = {
        "_class_name": "CMStochasticIterativeScheduler",
        "num_train_timesteps": 40,
        "sigma_min": 0.002,
        "sigma_max": 80.0,
        "s_noise": 1.0,
        "rho": 7.0,
    }
    return {
        "model_index.json": _index(
            "ConsistencyModelPipeline", scheduler="CMStochasticIterativeScheduler", unet="UNet2DModel"
        ),
        "scheduler/scheduler_config.json": scheduler,
        "unet/config.json": unet,
    }


def _ddpm() -> dict[str, dict[str, Any]]:
    """google/ddpm-cifar10-32: Ho, Jain and Abbeel 2020, appendix B."""
    unet = {
        **_PIXELS,
        "sample_size": 32,
        "block_out_channels": [128, 256, 256, 256],
        "layers_per_block": 2,
        "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
        "attention_head_dim": None,
        "norm_eps": 1e-6,
        "freq_shift": 1,
        "flip_sin_to_cos": False,
        "downsample_padding": 0,
    }
    scheduler = {**_LINEAR, "_class_name": "DDPMScheduler", "variance_type": "fixed_large"}
    return {
        "model_index.json": _index("DDPMPipeline", scheduler="DDPMScheduler", unet="UNet2DModel"),
        "scheduler/scheduler_config.json": {**scheduler, "clip_sample": True},
        "unet/config.json": unet,
    }
