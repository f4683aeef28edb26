"""Stage 3: the U-Net. ε-prediction over 1,000 steps of scaled-linear betas, 10 % empty captions, Min-SNR
weighting, timesteps stratified over each batch.

Pictures are encoded once (mean and standard deviation per pool entry), captions are phrased anew several
times.
The text encoder stays as stage 2 left it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMScheduler, EulerDiscreteScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from fastdiff.zoo.training.captions import caption
from fastdiff.zoo.training.dataset import scenes_and_pictures
from fastdiff.zoo.training.scene import Scene
from fastdiff.zoo.training.text_encoder import HIDDEN, encode
from fastdiff.zoo.training.trainer import Settings, leads, train
from fastdiff.zoo.training.vae import FACTOR, LATENT_CHANNELS, SIZE, to_tensor

__all__ = ["SCHEDULE", "encode_pool", "prepare_unet", "save_unet", "train_unet", "unet"]

POOL = 100_000
PHRASINGS = 4
EMPTY = 0.1
SNR_GAMMA = 5.0
SCHEDULE = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon",
}


def unet() -> UNet2DConditionModel:
    """The untrained model: 16×16 for edges, then two levels with attention for what is where."""
    return UNet2DConditionModel(
        sample_size=SIZE // FACTOR,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=(96, 160, 192),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=HIDDEN,
        attention_head_dim=4,
        norm_num_groups=32,
    )


def encode_pool(run: Path, vae: AutoencoderKL, pictures: np.ndarray, device: str) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of every picture's latents, scaled, half precision, cached in ``run``."""
    file = run / "unet-latents.pt"
    if file.exists():
        stored = torch.load(file, weights_only=True)
        return stored["mean"], stored["std"]
    means, stds = [], []
    vae.to(device)
    with torch.no_grad(), torch.autocast(device, torch.bfloat16):
        for i in range(0, len(pictures), 100):
            moments = vae.encode(to_tensor(pictures[i : i + 100]).to(device)).latent_dist
            means.append((moments.mean.float() * vae.config.scaling_factor).half().cpu())
            stds.append((moments.std.float() * vae.config.scaling_factor).half().cpu())
    mean, std = torch.cat(means), torch.cat(stds)
    torch.save({"mean": mean, "std": std}, file)
    return mean, std


def encode_captions(run: Path, tokenizer: CLIPTokenizer, scenes: list[Scene], seed: int) -> Tensor:
    """Token ids of PHRASINGS captions of every scene, int64 ``[PHRASINGS, N, WINDOW]``, cached in ``run``."""
    file = run / "unet-captions.pt"
    if not file.exists():
        rng = np.random.default_rng(seed)
        ids = torch.stack([encode(tokenizer, [caption(s, rng) for s in scenes]) for _ in range(PHRASINGS)])
        torch.save(ids, file)
    return torch.as_tensor(torch.load(file, weights_only=True))


def prepare_unet(run: Path, seed: int, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Draw and encode the pool and its captions: latents' mean and standard deviation, token ids. Cached."""
    tokenizer = CLIPTokenizer.from_pretrained(run / "tokenizer")
    scenes, pictures = scenes_and_pictures(run, "unet-pool", POOL, seed=303 + seed, size=SIZE)
    mean, std = encode_pool(run, AutoencoderKL.from_pretrained(run / "vae"), pictures, device)
    return mean, std, encode_captions(run, tokenizer, scenes, 404 + seed)


def train_unet(run: Path, settings: Settings) -> UNet2DConditionModel:
    """Train on the prepared pool; returns the EMA model, in ``run/unet`` and ``run/scheduler`` as well."""
    torch.manual_seed(settings.seed)
    device = settings.device
    tokenizer = CLIPTokenizer.from_pretrained(run / "tokenizer")
    text = CLIPTextModel.from_pretrained(run / "text_encoder").eval().to(device)
    mean, std, phrased = prepare_unet(run, settings.seed, device)
    empty = encode(tokenizer, [""])
    model = UNet2DConditionModel.from_pretrained(run / "unet") if (run / "unet").is_dir() else unet()
    model.train().to(device, torch.bfloat16)
    if device == "cpu":  # plain matrix products: their backward is faster there on sequences this short
        model.set_attn_processor(AttnProcessor())
    scheduler = DDPMScheduler(**SCHEDULE)
    alpha_bar = scheduler.alphas_cumprod.to(device)
    snr = alpha_bar / (1 - alpha_bar)
    weight = torch.clamp(snr, max=SNR_GAMMA) / snr

    def loss(x: Tensor, noise: Tensor, timestep: Tensor, hidden: Tensor) -> Tensor:
        a = alpha_bar[timestep].view(-1, 1, 1, 1)
        noisy = a.sqrt() * x + (1 - a).sqrt() * noise
        predicted = model(noisy.bfloat16(), timestep, hidden.bfloat16()).sample
        error = (predicted.float() - noise).square().mean((1, 2, 3))
        return torch.mean(error * weight[timestep])

    def drawn(generator: torch.Generator) -> Tensor:
        n = settings.batch
        index = torch.randint(len(mean), (n,), generator=generator)
        x = mean[index].float() + std[index].float() * torch.randn(n, *mean.shape[1:], generator=generator)
        which = int(torch.randint(PHRASINGS, (), generator=generator))
        ids = torch.where(torch.rand(n, 1, generator=generator) < EMPTY, empty, phrased[which][index])
        with torch.no_grad(), torch.autocast(device, torch.bfloat16):
            hidden = text(ids.to(device)).last_hidden_state.float()
        timestep = ((torch.arange(n) + torch.rand(n, generator=generator)) * (1000 / n)).long()
        noise = torch.randn(x.shape, generator=generator)
        return loss(x.to(device), noise.to(device), timestep.to(device), hidden)

    train("unet", run, nn.ModuleDict({"unet": model}), drawn, settings)
    if leads():
        save_unet(run, model)
    return model


def save_unet(run: Path, model: UNet2DConditionModel) -> None:
    """Write the model and the scheduler that draws it best in few steps (docs/samplers.md).

    Further settings are no settings of Euler's but, as in Stable Diffusion's configs, tell other schedulers
    how they are to treat this model: ``clip_sample`` that latents are not bounded by ±1.
    """
    model.save_pretrained(run / "unet")
    scheduler = EulerDiscreteScheduler(**SCHEDULE, timestep_spacing="leading", steps_offset=1)
    scheduler.register_to_config(clip_sample=False, set_alpha_to_one=False, skip_prk_steps=True)
    scheduler.save_pretrained(run / "scheduler")
