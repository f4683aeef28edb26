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


def sdxl_inpainting() -> dict[str, Any]:
    """diffusers/stable-diffusion-xl-1.0-inpainting-0.1: mask and masked latents beside the latents."""
    return {
        **sdxl(),
        "pipeline": "StableDiffusionXLInpaintPipeline",
        "unet": _xl_unet(56, 20, 6, in_channels=9),
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


def sd2() -> dict[str, Any]:
    """stabilityai/stable-diffusion-2-1: v-prediction, linear projections, head counts per block, attention in
    float32 whatever the weights are, OpenCLIP's text encoder.
    """
    return {
        "pipeline": "StableDiffusionPipeline",
        "scheduler": {**DDIM, "prediction_type": "v_prediction"},
        "text_encoder": text_encoder(32, hidden_act="gelu"),
        "unet": unet(attention_head_dim=(2, 4), use_linear_projection=True, upcast_attention=True),
        "vae": vae(),
    }


def lcm() -> dict[str, Any]:
    """SimianLuo/LCM_Dreamshaper_v7: the guidance scale comes in as an embedding."""
    keys = ("beta_end", "beta_schedule", "beta_start", "num_train_timesteps")
    scheduler = {**{key: SCHEDULER[key] for key in keys}, "_class_name": "LCMScheduler", "clip_sample": False}
    return {
        "pipeline": "LatentConsistencyModelPipeline",
        "scheduler": {**scheduler, "original_inference_steps": 50, "set_alpha_to_one": True},
        "text_encoder": text_encoder(),
        "unet": unet(time_cond_proj_dim=12),
        "vae": vae(),
        "index": {"requires_safety_checker": False},
    }


def inpainting() -> dict[str, Any]:
    """stable-diffusion-inpainting: mask and masked latents beside the latents."""
    return {
        "pipeline": "StableDiffusionInpaintPipeline",
        "scheduler": SCHEDULER,
        "text_encoder": text_encoder(),
        "unet": unet(in_channels=9),
        "vae": vae(),
    }


def upscale() -> dict[str, Any]:
    """stabilityai/stable-diffusion-x4-upscaler: the small picture and a noise level."""
    return {
        "pipeline": "StableDiffusionUpscalePipeline",
        "scheduler": {**DDIM, "prediction_type": "v_prediction"},
        "schedulers": {"low_res_scheduler": {**DDIM, "_class_name": "DDPMScheduler"}},
        "text_encoder": text_encoder(32, hidden_act="gelu"),
        "unet": unet(in_channels=7, num_class_embeds=40, use_linear_projection=True),
        "vae": vae(),
    }


def tiny_vae() -> dict[str, Any]:
    """Any model with madebyollin/taesd as its VAE."""
    from diffusers import AutoencoderTiny

    widths = (8, 8, 8)
    tiny = AutoencoderTiny(
        encoder_block_out_channels=widths,
        decoder_block_out_channels=widths,
        num_encoder_blocks=(1, 1, 2),
        num_decoder_blocks=(2, 1, 1),
    )
    return {
        "pipeline": "StableDiffusionPipeline",
        "scheduler": DDIM,
        "text_encoder": text_encoder(),
        "unet": unet(),
        "vae": tiny,
    }


def _pixel_unet(**options: Any) -> Any:
    from diffusers import UNet2DModel

    defaults: dict[str, Any] = {
        "sample_size": 16,
        "in_channels": 3,
        "out_channels": 3,
        "block_out_channels": (16, 32),
        "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": 8,
        "norm_num_groups": 8,
    }
    return UNet2DModel(**{**defaults, **options})


_LINEAR = {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear", "num_train_timesteps": 1000}


def ddpm() -> dict[str, Any]:
    """google/ddpm-cat-256: pixels, DDPM's blocks."""
    scheduler = {**_LINEAR, "_class_name": "DDPMScheduler", "variance_type": "fixed_small"}
    return {
        "pipeline": "DDPMPipeline",
        "scheduler": {**scheduler, "clip_sample": True, "prediction_type": "epsilon"},
        "unet": _pixel_unet(freq_shift=1, flip_sin_to_cos=False, norm_eps=1e-6, downsample_padding=0),
    }


def consistency() -> dict[str, Any]:
    """openai/diffusers-cd_imagenet64_l2: ADM's blocks and classes, one step from noise to picture."""
    scheduler = {"_class_name": "CMStochasticIterativeScheduler", "num_train_timesteps": 40}
    adm = {"resnet_time_scale_shift": "scale_shift", "downsample_type": "resnet", "upsample_type": "resnet"}
    return {
        "pipeline": "ConsistencyModelPipeline",
        "scheduler": {**scheduler, "sigma_min": 0.002, "sigma_max": 80.0, "s_noise": 1.0, "rho": 7.0},
        "unet": _pixel_unet(num_class_embeds=10, **adm),
    }


def vq_latent() -> dict[str, Any]:
    """CompVis/ldm-celebahq-256: no prompt, latents of a VQ-VAE."""
    from diffusers import VQModel

    coder = VQModel(
        block_out_channels=(8, 16, 16),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        latent_channels=3,
        norm_num_groups=4,
        num_vq_embeddings=32,
        scaling_factor=0.5,
    )
    coder.quantize.embedding.weight.normal_()
    return {
        "pipeline": "LDMPipeline",
        "scheduler": {**DDIM, "steps_offset": 0},
        "unet": _pixel_unet(),
        "vqvae": coder,
    }


FAMILIES: dict[str, Callable[[], dict[str, Any]]] = {
    make.__name__: make
    for make in (
        sd2,
        sdxl,
        sdxl_inpainting,
        refiner,
        lcm,
        inpainting,
        upscale,
        tiny_vae,
        ddpm,
        consistency,
        vq_latent,
    )
}
"""By name: the pipeline's class, the scheduler's config, the parts, and further entries of the index."""

_TOKENIZERS = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}


def _calm(model: Any) -> None:
    """Let random weights give predictions and pictures with the spread of real ones."""
    if hasattr(model, "conv_out"):  # a U-Net
        model.conv_out.weight.mul_(4 if hasattr(model.config, "cross_attention_dim") else 2)
    elif hasattr(model, "decoder"):
        last = getattr(model.decoder, "conv_out", None)
        last = model.decoder.layers[-1] if last is None else last
        last.weight.mul_(2)


def make_family(name: str, folder: Path) -> Path:
    """Write the checkpoint ``name`` of FAMILIES into ``folder`` (which must not exist) and return it."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        made = FAMILIES[name]()
        pipeline, scheduler = made.pop("pipeline"), made.pop("scheduler")
        others = made.pop("schedulers", {})
        index: dict[str, Any] = {
            "_class_name": pipeline,
            "_diffusers_version": "0.30.0",
            **made.pop("index", {}),
        }
        folder.mkdir(parents=True)
        for part, model in made.items():
            for parameter in model.parameters():
                if parameter.dim() == 1:
                    parameter.add_(0.1 * torch.randn(parameter.shape))
            _calm(model)
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
    for name, config in {"scheduler": scheduler, **others}.items():
        (folder / name).mkdir()
        write_json(folder / name / "scheduler_config.json", config)
        index[name] = ["diffusers", config["_class_name"]]
    write_json(folder / "model_index.json", index)
    return folder
