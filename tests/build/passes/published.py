"""Models with the block structure of published ones and narrow layers, captured for tests of the passes.

Widths are divided until a test takes seconds; levels, blocks, head counts, transformer depths and what the
models are conditioned on are those of the published configurations. Normalisation groups go down with the
widths where 32 no longer divides them.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from fastdiff.build.modules import module_wrapper

__all__ = ["PUBLISHED", "Model"]


@dataclass(frozen=True)
class Model:
    """A captured model, inputs of sizes other than captured, and its prompt and schedule inputs."""

    program: ExportedProgram
    inputs: tuple[Tensor, ...]
    prompt: tuple[str, ...] = ()
    schedule: tuple[str, ...] = ()


class _StableDiffusionXl(nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        text_embeds: Tensor,
        time_ids: Tensor,
    ) -> Any:
        added = {"text_embeds": text_embeds, "time_ids": time_ids}
        options = {"added_cond_kwargs": added, "return_dict": False}
        return self.model(sample, timestep, encoder_hidden_states, **options)[0]


class _Pixels(nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, sample: Tensor, timestep: Tensor, class_labels: Tensor) -> Any:
        return self.model(sample, timestep, class_labels, return_dict=False)[0]


def _capture(module: nn.Module, factor: int, shapes: dict[str, tuple[int, ...]], **stages: Any) -> Model:
    """Capture ``module``; ``shapes`` with 0 for symbolic sizes, sides of pictures multiples of ``factor``."""
    batch, tokens = Dim("batch", max=63), Dim("tokens", max=77)
    sides = (factor * Dim("height", min=2), factor * Dim("width", min=2))

    def inputs(n: int, m: int, height: int, width: int) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(n)
        result = []
        for name, shape in shapes.items():
            free = [n, m] if len(shape) < 4 else [n, factor * height, factor * width]
            size = [length or free.pop(0) for length in shape]
            if name in ("input_ids", "class_labels"):
                result.append(torch.randint(0, 10, size, generator=generator))
            elif name == "timestep":
                result.append(1000 * torch.rand(size, generator=generator))
            else:
                result.append(torch.randn(size, generator=generator))
        return tuple(result)

    dynamic = []
    for shape in shapes.values():
        free = [batch, tokens] if len(shape) < 4 else [batch, *sides]
        dynamic.append({axis: free.pop(0) for axis, length in enumerate(shape) if length == 0})
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.export.export(
            module.eval(), inputs(2, 7, 6, 10), dynamic_shapes=tuple(dynamic), strict=False
        )
    return Model(program, inputs(3, 5, 4, 2), **stages)


def sd15() -> Model:
    """runwayml/stable-diffusion-v1-5, unet: 320, 640, 1280, 1280 channels, 8 heads everywhere."""
    from diffusers import UNet2DConditionModel

    model = UNet2DConditionModel(
        sample_size=64,
        block_out_channels=(32, 64, 128, 128),
        layers_per_block=2,
        attention_head_dim=8,  # of which diffusers makes the head count
        cross_attention_dim=48,
    )
    shapes = {"sample": (0, 4, 0, 0), "timestep": (0,), "encoder_hidden_states": (0, 0, 48)}
    stages = {"prompt": ("encoder_hidden_states",), "schedule": ("timestep",)}
    return _capture(module_wrapper("unet", model), 8, shapes, **stages)


def sdxl() -> Model:
    """stabilityai/stable-diffusion-xl-base-1.0, unet: 320, 640, 1280 channels, depth 10 at the last."""
    from diffusers import UNet2DConditionModel

    model = UNet2DConditionModel(
        sample_size=128,
        block_out_channels=(40, 80, 160),
        layers_per_block=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 10),
        attention_head_dim=(5, 10, 20),
        use_linear_projection=True,
        cross_attention_dim=64,
        addition_embed_type="text_time",
        addition_time_embed_dim=32,
        projection_class_embeddings_input_dim=40 + 6 * 32,
        norm_num_groups=8,
    )
    shapes = {
        "sample": (0, 4, 0, 0),
        "timestep": (0,),
        "encoder_hidden_states": (0, 0, 64),
        "text_embeds": (0, 40),
        "time_ids": (0, 6),
    }
    prompt = ("encoder_hidden_states", "text_embeds", "time_ids")
    return _capture(_StableDiffusionXl(model), 4, shapes, prompt=prompt, schedule=("timestep",))


def _autoencoder() -> Any:
    """The VAE of Stable Diffusion: 128, 256, 512, 512 channels, attention of one head in the middle."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        block_out_channels=(16, 32, 64, 64),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        norm_num_groups=8,
    )


def vae_decoder() -> Model:
    return _capture(module_wrapper("vae_decoder", _autoencoder()), 1, {"latent_sample": (0, 4, 0, 0)})


def vae_encoder() -> Model:
    return _capture(module_wrapper("vae_encoder", _autoencoder()), 8, {"sample": (0, 3, 0, 0)})


def clip() -> Model:
    """openai/clip-vit-large-patch14, text model: quick GELU, 12 heads; 3 of its 12 layers."""
    from transformers import CLIPTextConfig, CLIPTextModel

    ends = {"bos_token_id": 97, "eos_token_id": 98, "pad_token_id": 98}
    model = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=99,
            hidden_size=48,
            intermediate_size=192,
            num_hidden_layers=3,
            num_attention_heads=12,
            **ends,
        )
    )
    return _capture(module_wrapper("text_encoder", model), 1, {"input_ids": (0, 0)})


def _pixels(**options: Any) -> Model:
    """A U-Net on pixels with attention, a variance beside each output and classes."""
    from diffusers import UNet2DModel

    model = UNet2DModel(
        sample_size=32,
        in_channels=3,
        out_channels=6,
        block_out_channels=(16, 32, 32),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=8,
        norm_num_groups=8,
        num_class_embeds=10,
        **options,
    )
    shapes = {"sample": (0, 3, 0, 0), "timestep": (0,), "class_labels": (0,)}
    return _capture(_Pixels(model), 4, shapes, prompt=("class_labels",), schedule=("timestep",))


def pixels() -> Model:
    """As DDPM's: time embeddings are added; the middle block divides its sums by √2."""
    return _pixels(mid_block_scale_factor=2**0.5)


def pixels_scale_shift() -> Model:
    """As ADM's: time embeddings scale and shift, residual blocks change the size."""
    return _pixels(resnet_time_scale_shift="scale_shift", downsample_type="resnet", upsample_type="resnet")


PUBLISHED = {
    model.__name__: model
    for model in (sd15, sdxl, vae_decoder, vae_encoder, clip, pixels, pixels_scale_shift)
}
