"""Tiny random ControlNets, T2I-Adapters, IP-Adapters and image encoders in the published structure.

What training starts at zero, such as the last convolutions of a ControlNet, is random here, and norms and
biases are moved off ones and zeros, so that a weight or a residual that goes missing shows.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

__all__ = ["make_controlnet", "make_image_encoder", "make_ip_adapter", "make_t2i_adapter", "picture"]

IMAGE_SIDE = 32
"""Of the pictures that the tiny image encoder takes, in patches of 8."""


def picture(seed: int, width: int = 32, height: int = 32) -> Image.Image:
    """Smooth colours that differ with the seed."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (5, 6, 3), np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC)


def _randomise(module: nn.Module, size: float) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.dim() == 1 or not bool(parameter.any()):
                parameter.add_(size * torch.randn(parameter.shape))


def make_controlnet(folder: Path, checkpoint: Path, *, seed: int = 1, **options: Any) -> Path:
    """A ControlNet in the structure of the checkpoint's U-Net; pictures shrink 4 times, as in the VAE."""
    from diffusers import ControlNetModel, UNet2DConditionModel

    unet = UNet2DConditionModel.from_config(
        UNet2DConditionModel.load_config(checkpoint / "unet", local_files_only=True)
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = ControlNetModel.from_unet(
            unet, conditioning_embedding_out_channels=(4, 6, 8), load_weights_from_unet=False
        )
        if options:
            net = ControlNetModel.from_config({**net.config, **options})
        _randomise(net, 0.2)
    net.save_pretrained(folder, safe_serialization=True)
    return folder


def make_t2i_adapter(folder: Path, *, seed: int = 2, **options: Any) -> Path:
    """A T2I-Adapter for the tiny checkpoint's two levels, 4 times smaller than its picture at first."""
    from diffusers import T2IAdapter

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        settings = {"channels": [32, 64], "num_res_blocks": 1, "downscale_factor": 4}
        adapter = T2IAdapter(**{**settings, **options})
        _randomise(adapter, 0.2)
    adapter.save_pretrained(folder, safe_serialization=True)
    return folder


def make_image_encoder(folder: Path, *, seed: int = 3, projection: int = 20) -> Path:
    """A CLIP image encoder of 2 layers of width 24."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    config = CLIPVisionConfig(
        hidden_size=24,
        intermediate_size=40,
        projection_dim=projection,
        num_hidden_layers=2,
        num_attention_heads=3,
        image_size=IMAGE_SIDE,
        patch_size=8,
        hidden_act="gelu",
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = CLIPVisionModelWithProjection(config)
        _randomise(model, 0.2)
        model.vision_model.embeddings.class_embedding.data.normal_()
    model.save_pretrained(folder, safe_serialization=True)
    return folder


def make_ip_adapter(
    file: Path, checkpoint: Path, *, kind: str = "plain", seed: int = 4, hidden: int = 32, width: int = 20
) -> Path:
    """The tensors of a published IP-Adapter for a checkpoint's U-Net, in one file.

    ``kind`` is plain, plus or full; ``hidden`` is the width of the U-Net's tokens, ``width`` that of the
    image encoder's features.
    """
    from diffusers import UNet2DConditionModel
    from safetensors.torch import save_file

    unet = UNet2DConditionModel.from_config(
        UNet2DConditionModel.load_config(checkpoint / "unet", local_files_only=True)
    )
    tensors: dict[str, torch.Tensor] = {}
    with torch.random.fork_rng():
        torch.manual_seed(seed)

        def draw(name: str, *shape: int, mean: float = 0.0) -> None:
            scale = 0.3 if len(shape) == 1 else shape[-1] ** -0.5
            tensors[name] = mean + scale * torch.randn(shape)

        if kind == "plain":
            draw("image_proj.proj.weight", 4 * hidden, width)
            draw("image_proj.proj.bias", 4 * hidden)
            draw("image_proj.norm.weight", hidden, mean=1.0)
            draw("image_proj.norm.bias", hidden)
        elif kind == "full":
            draw("image_proj.proj.0.weight", width, width)
            draw("image_proj.proj.0.bias", width)
            draw("image_proj.proj.2.weight", hidden, width)
            draw("image_proj.proj.2.bias", hidden)
            draw("image_proj.proj.3.weight", hidden, mean=1.0)
            draw("image_proj.proj.3.bias", hidden)
        else:
            _draw_resampler(draw, width, hidden)
        index = 1
        for name in unet.attn_processors:
            if name.endswith("attn2.processor"):
                inner, tokens = unet.get_submodule(name.removesuffix(".processor")).to_k.weight.shape
                draw(f"ip_adapter.{index}.to_k_ip.weight", inner, tokens)
                draw(f"ip_adapter.{index}.to_v_ip.weight", inner, tokens)
                index += 2
    save_file(tensors, file)
    return file


def _draw_resampler(draw: Any, width: int, hidden: int, inner: int = 64, queries: int = 3) -> None:
    """The tensors of IP-Adapter Plus: 4 layers of attention with heads of 64 and a feed-forward network."""
    draw("image_proj.latents", 1, queries, inner)
    draw("image_proj.proj_in.weight", inner, width)
    draw("image_proj.proj_in.bias", inner)
    draw("image_proj.proj_out.weight", hidden, inner)
    draw("image_proj.proj_out.bias", hidden)
    draw("image_proj.norm_out.weight", hidden, mean=1.0)
    draw("image_proj.norm_out.bias", hidden)
    for layer in range(4):
        start = f"image_proj.layers.{layer}"
        for norm in ("0.norm1", "0.norm2", "1.0"):
            draw(f"{start}.{norm}.weight", inner, mean=1.0)
            draw(f"{start}.{norm}.bias", inner)
        draw(f"{start}.0.to_q.weight", inner, inner)
        draw(f"{start}.0.to_kv.weight", 2 * inner, inner)
        draw(f"{start}.0.to_out.weight", inner, inner)
        draw(f"{start}.1.1.weight", 4 * inner, inner)
        draw(f"{start}.1.3.weight", inner, 4 * inner)
