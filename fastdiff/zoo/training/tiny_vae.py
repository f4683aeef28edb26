"""Stage 4, apart from the others: a tiny autoencoder for previews, taught by the full one.

The structure is TAESD's (O. Boer Bohan, "Tiny AutoEncoder for Stable Diffusion", 2023): 3×3 convolutions and
ReLU without norms, which diffusers calls ``AutoencoderTiny``. The decoder learns what the full decoder gives
for the same latents, the encoder the full encoder's means.
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from torch import Tensor, nn

from fastdiff.zoo.training.dataset import scenes_and_pictures
from fastdiff.zoo.training.trainer import Settings, train
from fastdiff.zoo.training.vae import LATENT_CHANNELS, SIZE, reconstruction, to_tensor

__all__ = ["disturbed", "tiny_autoencoder", "train_tiny_vae"]

CHANNELS = 16
POOL = 6_000
SHARE_CLEAN = 0.5
"""Of the pictures whose latents are taught as they are; the others' are disturbed."""


def tiny_autoencoder() -> AutoencoderTiny:
    """The untrained model: factor 4, as ``scenes``' own, 16 channels on each of three levels."""
    return AutoencoderTiny(
        latent_channels=LATENT_CHANNELS,
        encoder_block_out_channels=(CHANNELS,) * 3,
        decoder_block_out_channels=(CHANNELS,) * 3,
        num_encoder_blocks=(1, 1, 1),
        num_decoder_blocks=(3, 2, 1),
    )


def disturbed(latents: Tensor, generator: torch.Generator) -> Tensor:
    """Latents [B, C, h, w] as a sampler's early estimates have them: shrunk towards the mean, and noisy."""
    count = len(latents)
    clean = torch.rand(count, 1, 1, 1, generator=generator) < SHARE_CLEAN
    size = 0.3 + 0.7 * torch.rand(count, 1, 1, 1, generator=generator)
    level = 0.3 * torch.rand(count, 1, 1, 1, generator=generator)
    noise = torch.randn(latents.shape, generator=generator)
    return torch.where(clean, latents, size * latents + level * noise)


def train_tiny_vae(run: Path, settings: Settings, teacher: Path) -> AutoencoderTiny:
    """Train on drawn scenes; returns the EMA model, in fp16 in ``run/preview_vae`` as well.

    ``teacher`` is the checkpoint folder with the full autoencoder, which must not be at a scale.
    """
    torch.manual_seed(settings.seed)
    full = AutoencoderKL.from_pretrained(teacher, subfolder="vae", torch_dtype=torch.float32)
    full.to(settings.device).requires_grad_(False)
    if full.config.scaling_factor != 1:
        raise ValueError(f"scaling_factor of {teacher}/vae is {full.config.scaling_factor}, wanted 1")
    model = tiny_autoencoder().to(settings.device)
    _, pictures = scenes_and_pictures(run, "tiny-vae-pool", POOL, seed=701 + settings.seed, size=SIZE)
    means = torch.cat(
        [
            full.encode(to_tensor(pictures[i : i + 50]).to(settings.device)).latent_dist.mean.cpu()
            for i in range(0, POOL, 50)
        ]
    )

    def drawn(generator: torch.Generator) -> Tensor:
        index = torch.randint(POOL, (settings.batch,), generator=generator)
        x = to_tensor(pictures[index.numpy()]).to(settings.device)
        mean = means[index]
        latents = disturbed(mean, generator).to(settings.device)
        encoded = torch.nn.functional.l1_loss(model.encode(x).latents, mean.to(settings.device))
        return 0.1 * encoded + reconstruction(model.decode(latents).sample, full.decode(latents).sample)

    train("tiny_vae", run, nn.ModuleDict({"tiny_vae": model}), drawn, settings)
    model.to(torch.float16).save_pretrained(run / "preview_vae")
    return model.float()
