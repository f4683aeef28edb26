"""``UNet2DConditionModel``: the U-Net of Stable Diffusion (Rombach 2022) and SDXL (Podell 2023)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from fastdiff.build.plain.blocks import (
    Downsample2D,
    ResnetBlock2D,
    Transformer2DModel,
    Upsample2D,
    optional,
)
from fastdiff.build.plain.model import PlainModel

__all__ = ["UNet2DConditionModel"]


class _TimestepEmbedding(nn.Module):
    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(width, out)
        self.linear_2 = nn.Linear(out, out)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.linear_2(functional.silu(self.linear_1(x)))
        return result


class _Block(nn.Module):
    """Residual blocks, each followed by a transformer where the level has them."""

    def __init__(self, resnets: list[nn.Module], transformers: list[nn.Module]) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(resnets)
        if transformers:
            self.attentions = nn.ModuleList(transformers)
        self.has_cross_attention = bool(transformers)

    def step(self, index: int, x: Tensor, time: Tensor, context: Tensor) -> Tensor:
        x = self.resnets[index](x, time)
        if self.has_cross_attention:
            x = self.attentions[index](x, context)
        return x


class _Down(_Block):
    def __init__(self, resnets: list[nn.Module], transformers: list[nn.Module], last: bool, out: int) -> None:
        super().__init__(resnets, transformers)
        self.downsamplers = optional(not last, Downsample2D(out, 1))

    def forward(self, x: Tensor, time: Tensor, context: Tensor) -> tuple[Tensor, list[Tensor]]:
        skips = []
        for index in range(len(self.resnets)):
            x = self.step(index, x, time, context)
            skips.append(x)
        if self.downsamplers is not None:
            x = self.downsamplers[0](x)
            skips.append(x)
        return x, skips


class _Up(_Block):
    def __init__(self, resnets: list[nn.Module], transformers: list[nn.Module], last: bool, out: int) -> None:
        super().__init__(resnets, transformers)
        self.upsamplers = optional(not last, Upsample2D(out))

    def forward(self, x: Tensor, skips: list[Tensor], time: Tensor, context: Tensor, sized: bool) -> Tensor:
        for index in range(len(self.resnets)):
            x = self.step(index, torch.cat([x, skips.pop()], dim=1), time, context)
        if self.upsamplers is None:
            return x
        return self.upsamplers[0](x, skips[-1].shape[2:] if sized else None)  # type: ignore[no-any-return]


class _Middle(_Block):
    def forward(self, x: Tensor, time: Tensor, context: Tensor) -> Tensor:
        x = self.resnets[0](x, time)
        return self.resnets[1](self.attentions[0](x, context), time)  # type: ignore[no-any-return]


class UNet2DConditionModel(PlainModel):
    """See diffusers' class of this name; ``attention_head_dim`` counts heads there, and here."""

    DEFAULTS: ClassVar[Mapping[str, Any]] = {
        "sample_size": None,
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": (320, 640, 1280, 1280),
        "down_block_types": (*("CrossAttnDownBlock2D",) * 3, "DownBlock2D"),
        "up_block_types": ("UpBlock2D", *("CrossAttnUpBlock2D",) * 3),
        "layers_per_block": 2,
        "attention_head_dim": 8,
        "cross_attention_dim": 1280,
        "norm_num_groups": 32,
        "norm_eps": 1e-5,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "transformer_layers_per_block": 1,
        "use_linear_projection": False,
        "addition_embed_type": None,
        "addition_time_embed_dim": None,
        "projection_class_embeddings_input_dim": None,
    }
    FIXED: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "act_fn": ("silu",),
        "addition_embed_type": (None, "text_time"),
        "attention_type": ("default",),
        "center_input_sample": (False,),
        "class_embed_type": (None,),
        "conv_in_kernel": (3,),
        "conv_out_kernel": (3,),
        "cross_attention_norm": (None,),
        "downsample_padding": (1,),
        "dual_cross_attention": (False,),
        "encoder_hid_dim": (None,),
        "encoder_hid_dim_type": (None,),
        "mid_block_only_cross_attention": (None,),
        "mid_block_scale_factor": (1,),
        "mid_block_type": ("UNetMidBlock2DCrossAttn",),
        "num_attention_heads": (None,),
        "num_class_embeds": (None,),
        "only_cross_attention": (False,),
        "resnet_out_scale_factor": (1.0,),
        "resnet_skip_time_act": (False,),
        "resnet_time_scale_shift": ("default",),
        "reverse_transformer_layers_per_block": (None,),
        "time_cond_proj_dim": (None,),
        "time_embedding_act_fn": (None,),
        "time_embedding_dim": (None,),
        "time_embedding_type": ("positional",),
        "timestep_post_act": (None,),
    }

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        c = self.config
        channels, count = list(c.block_out_channels), len(c.block_out_channels)
        heads = _per_level(c.attention_head_dim, count)
        depths = _per_level(c.transformer_layers_per_block, count)
        time = 4 * channels[0]

        def resnet(width: int, out: int) -> nn.Module:
            return ResnetBlock2D(width, out, time, c.norm_num_groups, c.norm_eps)

        def transformer(level: int) -> nn.Module:
            return Transformer2DModel(
                channels[level],
                heads[level],
                depths[level],
                c.cross_attention_dim,
                c.norm_num_groups,
                c.use_linear_projection,
            )

        self.conv_in = nn.Conv2d(c.in_channels, channels[0], 3, padding=1)
        self.time_embedding = _TimestepEmbedding(channels[0], time)
        if c.addition_embed_type == "text_time":
            self.add_embedding = _TimestepEmbedding(c.projection_class_embeddings_input_dim, time)
        self.down_blocks = nn.ModuleList()
        skips, width = [channels[0]], channels[0]
        for level, kind in enumerate(c.down_block_types):
            out, layers = channels[level], range(c.layers_per_block)
            resnets = [resnet(width if layer == 0 else out, out) for layer in layers]
            transformers = [transformer(level) for _ in layers if _attends(kind, "Down")]
            last = level + 1 == count
            self.down_blocks.append(_Down(resnets, transformers, last, out))
            skips += [out] * (len(layers) + (not last))
            width = out
        self.mid_block = _Middle([resnet(width, width), resnet(width, width)], [transformer(count - 1)])
        self.up_blocks = nn.ModuleList()
        for index, kind in enumerate(c.up_block_types):
            level = count - 1 - index
            out, layers = channels[level], range(c.layers_per_block + 1)
            resnets = [resnet((width if layer == 0 else out) + skips.pop(), out) for layer in layers]
            transformers = [transformer(level) for _ in layers if _attends(kind, "Up")]
            self.up_blocks.append(_Up(resnets, transformers, index + 1 == count, out))
            width = out
        self.num_upsamplers: Any = count - 1
        self.conv_norm_out = nn.GroupNorm(c.norm_num_groups, channels[0], c.norm_eps)
        self.conv_out = nn.Conv2d(channels[0], c.out_channels, 3, padding=1)

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        added_cond_kwargs: dict[str, Tensor] | None = None,
        return_dict: bool = False,
    ) -> tuple[Tensor]:
        """The predicted noise or velocity [B, out_channels, H, W], alone in a tuple.

        sample [B, in_channels, H, W], timestep [B], encoder_hidden_states [B, tokens, cross_attention_dim];
        for SDXL added_cond_kwargs with text_embeds [B, pooled] and time_ids [B, 6].
        """
        c = self.config
        time = self.time_embedding(self._sinusoids(timestep, c.block_out_channels[0]).to(sample.dtype))
        if c.addition_embed_type == "text_time":
            assert added_cond_kwargs is not None
            text, ids = added_cond_kwargs["text_embeds"], added_cond_kwargs["time_ids"]
            embedded = self._sinusoids(ids.flatten(), c.addition_time_embed_dim)
            embedded = torch.concat([text, embedded.reshape((text.shape[0], -1))], dim=-1)
            time = time + self.add_embedding(embedded.to(time.dtype))
        # Halving rounds up where a side is no multiple of all halvings; then sizes come from the way down.
        sized = any(side % 2**self.num_upsamplers for side in sample.shape[2:])
        x = self.conv_in(sample)
        skips = [x]
        for block in self.down_blocks:
            x, more = block(x, time, encoder_hidden_states)
            skips += more
        x = self.mid_block(x, time, encoder_hidden_states)
        for block in self.up_blocks:
            x = block(x, skips, time, encoder_hidden_states, sized)
        return (self.conv_out(functional.silu(self.conv_norm_out(x))),)

    def _sinusoids(self, values: Tensor, width: int) -> Tensor:
        """[N] as float32 [N, width]: sines and cosines of frequencies from 1 down to 1/10000 (DDPM's)."""
        half = width // 2
        exponent = -math.log(10000) * torch.arange(0, half, dtype=torch.float32, device=values.device)
        exponent = exponent / (half - self.config.freq_shift)
        angles = values[:, None].float() * torch.exp(exponent)[None, :]
        embedded = torch.cat([torch.sin(angles), torch.cos(angles)], dim=-1)
        if self.config.flip_sin_to_cos:
            embedded = torch.cat([embedded[:, half:], embedded[:, :half]], dim=-1)
        return embedded


def _per_level(value: Any, count: int) -> list[int]:
    return [value] * count if isinstance(value, int) else list(value)


def _attends(kind: str, direction: str) -> bool:
    plain = f"{direction}Block2D"
    if kind not in (plain, f"CrossAttn{plain}"):
        raise ValueError(f"block {kind!r}, wanted {plain} or CrossAttn{plain}: install diffusers for it")
    return kind != plain
