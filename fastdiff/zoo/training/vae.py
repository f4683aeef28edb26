"""Stage 1: the autoencoder. 64×64 pictures to 16×16×4 latents, L1 + 2·L2 reconstruction, a slight KL term."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from fastdiff.zoo.training.dataset import scenes_and_pictures
from fastdiff.zoo.training.trainer import Settings, leads, train

__all__ = ["FACTOR", "LATENT_CHANNELS", "SIZE", "autoencoder", "standardise", "to_tensor", "train_vae"]

SIZE = 64
FACTOR = 4
LATENT_CHANNELS = 4
KL_WEIGHT = 1e-4
POOL = 20_000


def autoencoder() -> AutoencoderKL:
    """The untrained model: factor 4, 4 latent channels, no attention. A 4×4 patch of a scene is two colours
    and the edge between them, most of which its neighbours know as well.
    """
    model = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 64),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        sample_size=SIZE,
        mid_block_add_attention=False,
    )
    with (
        torch.no_grad()
    ):  # begin with little sampling noise, else the decoder first learns to ignore the latents
        model.quant_conv.weight[LATENT_CHANNELS:].mul_(0.1)
        model.quant_conv.bias[LATENT_CHANNELS:].fill_(-5.0)
    return model


def to_tensor(pictures: np.ndarray) -> Tensor:
    """uint8 ``[B, H, W, 3]`` to float32 ``[B, 3, H, W]`` in -1..1."""
    return torch.from_numpy(np.array(pictures)).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


def reconstruction(y: Tensor, x: Tensor) -> Tensor:
    """Mean absolute error plus twice the mean squared error: sharp edges, and none far off."""
    error = y - x
    return torch.mean(error.abs() + 2 * error.square())


def train_vae(run: Path, settings: Settings) -> AutoencoderKL:
    """Train on drawn scenes and their mirror images; returns the EMA model, in ``run/vae`` as well."""
    torch.manual_seed(settings.seed)
    found = (run / "vae").is_dir()
    model = AutoencoderKL.from_pretrained(run / "vae") if found else autoencoder()
    model.to(settings.device)
    _, pictures = scenes_and_pictures(run, "vae-pool", POOL, seed=101 + settings.seed, size=SIZE)

    def loss(x: Tensor, noise: Tensor) -> Tensor:
        with torch.autocast(settings.device, torch.bfloat16):
            moments = model.encode(x).latent_dist
            latents = moments.mean.float() + moments.std.float() * noise
            y = model.decode(latents).sample.float()
        kl = 0.5 * (moments.mean.float() ** 2 + moments.var.float() - 1 - moments.logvar.float()).mean()
        return torch.add(reconstruction(y, x), kl, alpha=KL_WEIGHT)

    def drawn(generator: torch.Generator) -> Tensor:
        x = _batch(pictures, settings, generator)
        side = SIZE // FACTOR
        noise = torch.randn(len(x), LATENT_CHANNELS, side, side, generator=generator)
        return loss(x, noise.to(settings.device))

    train("vae", run, nn.ModuleDict({"vae": model}), drawn, settings)
    if not leads():
        return model
    sample = to_tensor(pictures[:2048]).to(settings.device)
    with torch.no_grad():
        standardise(model, torch.cat([model.encode(s).latent_dist.mean for s in torch.split(sample, 64)]))
    model.save_pretrained(run / "vae")
    return model


def standardise(model: AutoencoderKL, latents: Tensor) -> None:
    """Give each latent channel mean 0 and spread 1, so that the U-Net sees all of them alike.

    ``latents`` ``[N, C, h, w]`` are the model's own. The 1×1 convolutions at both ends of the latents take
    the change in and out again: what the autoencoder computes stays the same.
    """
    mean, std = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    encoder, decoder, n = model.quant_conv, model.post_quant_conv, len(mean)
    with torch.no_grad():
        encoder.weight[:n] /= std.view(-1, 1, 1, 1)
        encoder.bias[:n] = (encoder.bias[:n] - mean) / std
        encoder.bias[n:] -= 2 * std.log()
        decoder.bias += torch.einsum("oi,i->o", decoder.weight[:, :, 0, 0], mean)
        decoder.weight *= std.view(1, -1, 1, 1)
    model.register_to_config(scaling_factor=1.0)


def _batch(pictures: np.ndarray, settings: Settings, generator: torch.Generator) -> Tensor:
    """Random pictures of the pool, half of the time mirrored."""
    index = torch.randint(len(pictures), (settings.batch,), generator=generator).numpy()
    x = to_tensor(pictures[np.sort(index)]).to(settings.device)
    return x.flip(3) if torch.rand((), generator=generator) < 0.5 else x
