"""Models with the block structure of published ones and narrow layers, for tests of passes and targets.

Widths are divided until a test takes seconds; levels, blocks, head counts and what the models are conditioned
on are those of the published configurations. Of layers that repeat without change there are fewer: 3 in place
of 10 transformers on the last level of SDXL, 2 in place of 12 layers of CLIP. Norms and biases are moved off
ones and zeros, so that a weight that goes missing shows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from fastdiff.build.capture import CapturedModule, capture
from fastdiff.build.checkpoint import load_checkpoint
from fastdiff.build.modules import ModuleSpec, module_spec, module_wrapper, part_class
from fastdiff.build.passes import FUSIONS, PASSES, run_passes
from fastdiff.build.sides import with_any_sides
from fastdiff.config import MODULES, ModelSpec, SizeRange, TensorSpec, TextEncoderSpec

__all__ = ["MODELS", "PUBLISHED", "VOCABULARY", "captured_part", "fused", "model", "sizes_of"]

# diffusers' where it is installed; without it those of fastdiff/build/plain, which equal them
UNet2DConditionModel, AutoencoderKL = part_class("unet"), part_class("vae")

VOCABULARY = 60
LATENT = TensorSpec("sample", "float32", ("batch", 4, "height", "width"))
HIDDEN = TensorSpec("encoder_hidden_states", "float32", ("batch", "tokens", 24))
TIMESTEP = TensorSpec("timestep", "float32", ("batch",))
ENCODER = TextEncoderSpec("text_encoder", "tokenizer", 16, 24, layers=3)
SPEC = ModelSpec("stable_diffusion", 4, 8, 0.2, 0.0, 64, 64, 1, 64, 16, 24, text_encoders=(ENCODER,))


class _WithClass(nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, sample: Tensor, timestep: Tensor, class_labels: Tensor) -> Any:
        return self.model(sample, timestep, class_labels, return_dict=False)[0]


class _Pooled(nn.Module):
    """SDXL's second text encoder: what its U-Net attends to, and one embedding of the whole prompt."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor) -> tuple[Tensor, Tensor]:
        result = self.model(input_ids)
        return result.last_hidden_state, result.text_embeds


def _unet_spec(multiple: int, *more: TensorSpec, channels: int = 4, out: int = 4) -> ModuleSpec:
    sides = SizeRange(2 * multiple, None, multiple)
    shapes = {"batch": SizeRange(), "height": sides, "width": sides}
    if HIDDEN in more:
        shapes["tokens"] = SizeRange()
    sample = TensorSpec("sample", "float32", ("batch", channels, "height", "width"))
    output = TensorSpec("sample", "float32", ("batch", out, "height", "width"))
    return ModuleSpec("unet", "unet", (sample, TIMESTEP, *more), (output,), shapes)


def sd15() -> CapturedModule:
    """runwayml/stable-diffusion-v1-5, unet: 320, 640, 1280, 1280 channels, 8 heads everywhere."""
    model = UNet2DConditionModel(
        block_out_channels=(16, 32, 64, 64),
        layers_per_block=2,
        attention_head_dim=8,  # of which diffusers makes the head count
        cross_attention_dim=24,
        norm_num_groups=8,
    )
    return _captured(_unet_spec(8, HIDDEN), module_wrapper("unet", model), model)


def sdxl() -> CapturedModule:
    """stabilityai/stable-diffusion-xl-base-1.0, unet: 320, 640, 1280 channels, linear projections."""
    model = UNet2DConditionModel(
        block_out_channels=(16, 32, 64),
        layers_per_block=2,
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
    return _captured(_unet_spec(4, HIDDEN, text, ids), module_wrapper("unet", model), model)


def _autoencoder(name: str) -> CapturedModule:
    """The VAE of Stable Diffusion: 128, 256, 512, 512 channels, attention of one head in the middle."""
    model = AutoencoderKL(
        block_out_channels=(8, 16, 32, 32),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        norm_num_groups=8,
    )
    return _captured(module_spec(name, SPEC), module_wrapper(name, model), model)


def vae_decoder() -> CapturedModule:
    return _autoencoder("vae_decoder")


def vae_encoder() -> CapturedModule:
    return _autoencoder("vae_encoder")


def tiny_decoder() -> CapturedModule:
    """madebyollin/taesd, decoder: ReLU, tanh and nearest upsampling, without normalisation."""
    from diffusers import AutoencoderTiny

    tiny = AutoencoderTiny(
        encoder_block_out_channels=(8,) * 4,
        decoder_block_out_channels=(8,) * 4,
        num_encoder_blocks=(1,) * 4,
        num_decoder_blocks=(1,) * 4,
    )
    return _captured(module_spec("vae_decoder", SPEC), module_wrapper("vae_decoder", tiny), tiny)


def _clip_config(**options: Any) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=VOCABULARY,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=3,
        max_position_embeddings=16,
        bos_token_id=VOCABULARY - 2,
        pad_token_id=VOCABULARY - 1,
        **{"eos_token_id": VOCABULARY - 1, **options},
    )


def _clip(activation: str) -> CapturedModule:
    model = CLIPTextModel(_clip_config(hidden_act=activation))
    spec = module_spec("text_encoder", SPEC)
    return _captured(spec, spec.wrap(model), model)


def clip() -> CapturedModule:
    """openai/clip-vit-large-patch14, text model: quick GELU."""
    return _clip("quick_gelu")


def clip_gelu() -> CapturedModule:
    """laion/CLIP-ViT-H-14, text model, as Stable Diffusion 2 has it."""
    return _clip("gelu")


def _projected(eos: int) -> CapturedModule:
    model = CLIPTextModelWithProjection(_clip_config(hidden_act="gelu", projection_dim=20, eos_token_id=eos))
    spec = module_spec("text_encoder", replace(SPEC, text_encoders=()))
    pooled = TensorSpec("text_embeds", "float32", ("batch", 20))
    spec = ModuleSpec("text_encoder_2", "text_encoder", spec.inputs, (*spec.outputs, pooled), spec.shapes)
    return _captured(spec, _Pooled(model), model)


def clip_pooled() -> CapturedModule:
    """stabilityai/stable-diffusion-xl-base-1.0, text_encoder_2: pooled where the first end token stands."""
    return _projected(5)


def clip_pooled_by_largest() -> CapturedModule:
    """The same with the end token that older configurations give: pooled where the largest id stands."""
    return _projected(2)


def _pixels(**options: Any) -> CapturedModule:
    """A U-Net on pixels with attention blocks of its own kind, twice the output channels, and classes."""
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
        num_class_embeds=VOCABULARY,
        **options,
    )
    labels = TensorSpec("class_labels", "int64", ("batch",))
    return _captured(_unet_spec(4, labels, channels=3, out=6), _WithClass(model), model)


def pixels() -> CapturedModule:
    """As DDPM's: time embeddings are added; the middle block divides its sums by √2."""
    return _pixels(mid_block_scale_factor=2**0.5)


def pixels_scale_shift() -> CapturedModule:
    """As ADM's: time embeddings scale and shift, residual blocks change the size."""
    return _pixels(resnet_time_scale_shift="scale_shift", downsample_type="resnet", upsample_type="resnet")


PUBLISHED: dict[str, Callable[[], CapturedModule]] = {
    model.__name__: model
    for model in (
        sd15,
        sdxl,
        vae_decoder,
        vae_encoder,
        tiny_decoder,
        clip,
        clip_gelu,
        clip_pooled,
        clip_pooled_by_largest,
        pixels,
        pixels_scale_shift,
    )
}


MODELS = (*PUBLISHED, *(f"scenes_{name}" for name in MODULES))
"""These and the modules of the shipped checkpoint."""


@cache
def model(name: str) -> CapturedModule:
    """One of MODELS, captured once for all tests; its graph has been through no pass."""
    if name.startswith("scenes_"):
        return captured_part("scenes", name.removeprefix("scenes_"))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return PUBLISHED[name]()


@cache
def fused(name: str) -> ExportedProgram:
    """Its graph after all passes."""
    program = model(name).program
    assert program is not None
    return run_passes(program, PASSES + FUSIONS)


@cache
def captured_part(checkpoint: str | Path, name: str, any_sides: bool = False) -> CapturedModule:
    """A module of a checkpoint, captured once for all tests. Nobody may change its weights."""
    source = load_checkpoint(checkpoint)
    spec = module_spec(name, with_any_sides(source, source.spec) if any_sides else source.spec)
    part = source.load(spec.part)
    return capture(CapturedModule(spec, spec.wrap(part), part))


def _captured(spec: ModuleSpec, eager: nn.Module, source: Any) -> CapturedModule:
    with torch.no_grad():
        for parameter in eager.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn(parameter.shape))
    return capture(CapturedModule(spec, eager.eval(), source))


def sizes_of(module: CapturedModule, step: int) -> dict[str, int]:
    """Sizes that differ from those of the capture, and from each other for different steps."""
    counts = {"batch": (3, 1, 2), "tokens": (5, 1, 9), "height": (2, 3, 5), "width": (3, 2, 2)}
    return {
        symbol: counts[symbol][step] * size.multiple_of
        if symbol in ("height", "width")
        else counts[symbol][step]
        for symbol, size in module.spec.shapes.items()
    }
