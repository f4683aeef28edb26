"""Small models of every shape that the native target takes: published structures with narrow layers.

Norms and biases are moved off ones and zeros, so that a weight that goes missing shows.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel, UNet2DModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from fastdiff.build.capture import CapturedModule, capture
from fastdiff.build.checkpoint import load_checkpoint
from fastdiff.build.modules import ModuleSpec, module_spec, module_wrapper
from fastdiff.build.passes import run_passes
from fastdiff.config import MODULES, ModelSpec, SizeRange, TensorSpec

VOCABULARY = 60
LATENT = ("batch", 4, "height", "width")
HIDDEN = TensorSpec("encoder_hidden_states", "float32", ("batch", "tokens", 24))
TIMESTEP = TensorSpec("timestep", "float32", ("batch",))


class _WithAddedConditions(nn.Module):
    """SDXL's U-Net: pooled text embedding and picture sizes come in beside the prompt."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, sample: Tensor, timestep: Tensor, hidden: Tensor, text_embeds: Tensor, time_ids: Tensor
    ) -> Any:
        added = {"text_embeds": text_embeds, "time_ids": time_ids}
        return self.model(sample, timestep, hidden, added_cond_kwargs=added, return_dict=False)[0]


class _WithClass(nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, sample: Tensor, timestep: Tensor, class_labels: Tensor) -> Any:
        return self.model(sample, timestep, class_labels, return_dict=False)[0]


def _unet_spec(name: str, multiple: int, *more: TensorSpec, channels: int = 4, out: int = 4) -> ModuleSpec:
    sides = SizeRange(2 * multiple, None, multiple)
    shapes = {"batch": SizeRange(), "height": sides, "width": sides}
    if HIDDEN in more:
        shapes["tokens"] = SizeRange()
    sample = TensorSpec("sample", "float32", ("batch", channels, "height", "width"))
    output = TensorSpec("sample", "float32", ("batch", out, "height", "width"))
    return ModuleSpec(name, "unet", (sample, TIMESTEP, *more), (output,), shapes)


def sd15_unet() -> CapturedModule:
    """Stable Diffusion 1.5: eight heads on every level, 1×1 convolutions as projections, no query biases."""
    model = UNet2DConditionModel(
        block_out_channels=(16, 32, 32, 32), attention_head_dim=8, cross_attention_dim=24, norm_num_groups=8
    )
    return _captured(_unet_spec("unet", 8, HIDDEN), module_wrapper("unet", model), model)


def sdxl_unet() -> CapturedModule:
    """SDXL: three levels, more transformers on the deeper ones, linear projections, added conditions."""
    model = UNet2DConditionModel(
        block_out_channels=(16, 32, 64),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 3),
        attention_head_dim=(2, 4, 8),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=20 + 6 * 8,
        cross_attention_dim=24,
        norm_num_groups=8,
    )
    text = TensorSpec("text_embeds", "float32", ("batch", 20))
    ids = TensorSpec("time_ids", "float32", ("batch", 6))
    return _captured(_unet_spec("unet", 4, HIDDEN, text, ids), _WithAddedConditions(model), model)


def pixel_unet() -> CapturedModule:
    """A pixel-space U-Net: attention blocks of its own kind, class labels, twice the output channels."""
    model = UNet2DModel(
        in_channels=3,
        out_channels=6,
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=8,
        norm_num_groups=8,
        num_class_embeds=VOCABULARY,
        resnet_time_scale_shift="scale_shift",
    )
    labels = TensorSpec("class_labels", "int64", ("batch",))
    return _captured(_unet_spec("unet", 4, labels, channels=3, out=6), _WithClass(model), model)


def _vae(name: str) -> CapturedModule:
    """Attention in the middle, a downsampling that pads at two sides, and a widening."""
    model = AutoencoderKL(
        block_out_channels=(16, 24),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=8,
    )
    spec = ModelSpec("stable_diffusion", 4, 2, 0.2, 0.0, 32, 32, 1, 4, 77, 24)
    return _captured(module_spec(name, spec), module_wrapper(name, model), model)


def _clip(activation: str) -> CapturedModule:
    config = CLIPTextConfig(
        vocab_size=VOCABULARY,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=3,
        max_position_embeddings=16,
        hidden_act=activation,
    )
    model = CLIPTextModel(config)
    spec = ModelSpec("stable_diffusion", 4, 2, 0.2, 0.0, 32, 32, 1, 4, 16, 24)
    return _captured(module_spec("text_encoder", spec), module_wrapper("text_encoder", model), model)


def _scenes(name: str) -> CapturedModule:
    checkpoint = load_checkpoint("scenes")
    spec = module_spec(name, checkpoint.spec)
    part = checkpoint.load(spec.part)
    return _normalised(CapturedModule(spec, spec.wrap(part), part))


MODELS: dict[str, Callable[[], CapturedModule]] = {
    "sd15_unet": sd15_unet,
    "sdxl_unet": sdxl_unet,
    "pixel_unet": pixel_unet,
    "vae_encoder": lambda: _vae("vae_encoder"),
    "vae_decoder": lambda: _vae("vae_decoder"),
    "clip_quick_gelu": lambda: _clip("quick_gelu"),
    "clip_gelu": lambda: _clip("gelu"),
    **{f"scenes_{name}": lambda name=name: _scenes(name) for name in MODULES},
}


@cache
def model(name: str) -> CapturedModule:
    """One of MODELS, captured and normalised once."""
    torch.manual_seed(0)
    return MODELS[name]()


def _captured(spec: ModuleSpec, eager: nn.Module, source: Any) -> CapturedModule:
    with torch.no_grad():
        for parameter in eager.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn(parameter.shape))
    return _normalised(CapturedModule(spec, eager.eval(), source))


def _normalised(module: CapturedModule) -> CapturedModule:
    module = capture(module)
    assert module.program is not None
    return module.with_program(run_passes(module.program))


def sizes_of(module: CapturedModule, step: int) -> dict[str, int]:
    """Sizes that differ from those of the capture, and from each other for different steps."""
    counts = {"batch": (3, 1, 2), "tokens": (5, 1, 9), "height": (2, 3, 5), "width": (3, 2, 2)}
    return {
        symbol: counts[symbol][step] * size.multiple_of
        if symbol in ("height", "width")
        else counts[symbol][step]
        for symbol, size in module.spec.shapes.items()
    }
