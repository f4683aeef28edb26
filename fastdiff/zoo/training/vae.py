"""Stage 1: the autoencoder. 64×64 pictures to 8×8×16 latents, L1 + L2 reconstruction and a slight KL term."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from fastdiff.zoo.training.dataset import scenes_and_pictures
from fastdiff.zoo.training.trainer import Settings, train

__all__ = ["FACTOR", "LATENT_CHANNELS", "SIZE", "autoencoder", "to_tensor", "train_decoder", "train_vae"]

SIZE = 64
FACTOR = 8
LATENT_CHANNELS = 16
KL_WEIGHT = 1e-4
POOL = 20_000
LATENT_NOISE = 0.04


def autoencoder() -> AutoencoderKL:
    """The untrained model: factor 8, 16 latent channels (a scene has few degrees of freedom per 8×8 patch,
    edges included), no attention.
    """
    model = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 64, 128),
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
    """uint8 ``[B, H, W, 3]`` to float32 ``[B, 3, H, W]`` in -1..1, channels last in memory."""
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
    model.to(settings.device, memory_format=torch.channels_last)
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
    sample = to_tensor(pictures[:2048]).to(settings.device)
    with torch.no_grad():
        std = torch.cat([model.encode(s).latent_dist.mean for s in torch.split(sample, 64)]).std()
    model.register_to_config(scaling_factor=float(1 / std))
    model.save_pretrained(run / "vae")
    return model


def _batch(pictures: np.ndarray, settings: Settings, generator: torch.Generator) -> Tensor:
    """Random pictures of the pool, half of the time mirrored."""
    index = torch.randint(len(pictures), (settings.batch,), generator=generator).numpy()
    x = to_tensor(pictures[np.sort(index)]).to(settings.device)
    return x.flip(3) if torch.rand((), generator=generator) < 0.5 else x


def train_decoder(run: Path, settings: Settings, pool: str = "unet-pool") -> AutoencoderKL:
    """Go on with the decoder alone, the encoder and so the U-Net's latents staying as they are.

    The latents get noise of LATENT_NOISE of their spread, as much as a sampler may leave. Writes
    ``run/vae`` again.
    """
    torch.manual_seed(settings.seed)
    model = AutoencoderKL.from_pretrained(run / "vae")
    model.to(settings.device, memory_format=torch.channels_last)
    pictures = np.load(run / f"{pool}.npy", mmap_mode="r")
    spread = LATENT_NOISE / model.config.scaling_factor
    trained = [*model.decoder.parameters(), *model.post_quant_conv.parameters()]

    def drawn(generator: torch.Generator) -> Tensor:
        x = _batch(pictures, settings, generator)
        with torch.autocast(settings.device, torch.bfloat16):
            with torch.no_grad():
                latents = model.encode(x).latent_dist.mean.float()
            noise = torch.randn(latents.shape, generator=generator) * torch.rand((), generator=generator)
            y = model.decode(latents + spread * noise.to(settings.device)).sample.float()
        return reconstruction(y, x)

    train("decoder", run, nn.ModuleDict({"vae": model}), drawn, settings, trained)
    model.save_pretrained(run / "vae")
    return model
