"""Stable Diffusion's upscaler by 4: a U-Net that takes the small picture, and how noisy that was made.

The noise level is a class label, and the picture's channels are the input ``condition``. The VAE has a factor
of 4, so that latents are as large as the small picture.
"""

from __future__ import annotations

from fastdiff.build.families.family import Family, Source
from fastdiff.build.families.shared import (
    channels_beside,
    check_conditions,
    conditions,
    sizes,
    text_window,
    vae_factor,
    vae_scaling,
)
from fastdiff.config import ModelSpec, PictureNoise
from fastdiff.errors import CheckpointError

__all__ = ["FAMILY", "describe"]

_SCHEDULER = "low_res_scheduler"
_PICTURE = 3
"""Channels of the small picture."""
_SCALING = 0.08333
"""The published model's, which its pipeline in diffusers takes whatever the VAE's config says: the first
uploads did not have it."""


def describe(source: Source) -> ModelSpec:
    """The ModelSpec. Raises CheckpointError."""
    unet, vae, text = (source.configs[part] for part in ("unet", "vae", "text_encoder"))
    factor, channels = vae_factor(vae), int(vae["latent_channels"])
    hidden = int(text["hidden_size"])
    check_conditions(source, hidden)
    return ModelSpec(
        family=FAMILY.name,
        latent_channels=channels,
        vae_scale_factor=factor,
        **{**vae_scaling(source), "scaling_factor": _SCALING},
        **sizes(unet, factor),
        max_tokens=text_window(source, "text_encoder"),
        hidden_size=hidden,
        condition_channels=channels_beside(source, channels, (_PICTURE,)),
        picture_noise=_picture_noise(source),
        **conditions(unet),
    )


def _picture_noise(source: Source) -> PictureNoise:
    """That of ``low_res_scheduler``, a DDPMScheduler. Raises CheckpointError."""
    config = source.configs[_SCHEDULER]
    if config.get("trained_betas") is not None or config.get("rescale_betas_zero_snr"):
        raise CheckpointError(
            f"{_SCHEDULER} of {source.path} has trained_betas or rescale_betas_zero_snr, wanted "
            "beta_start and beta_end alone: this upscaler is not supported"
        )
    return PictureNoise(
        str(config["beta_schedule"]),
        float(config["beta_start"]),
        float(config["beta_end"]),
        int(config["num_train_timesteps"]),
    )


FAMILY = Family(
    name="upscale",
    pipelines=("StableDiffusionUpscalePipeline",),
    parts={
        "text_encoder": ("CLIPTextModel",),
        "unet": ("UNet2DConditionModel",),
        "vae": ("AutoencoderKL",),
    },
    describe=describe,
    schedulers=("scheduler", _SCHEDULER),
)
