"""``AutoencoderKL``: Stable Diffusion's autoencoder (Rombach et al. 2022)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn import functional

from fastdiff.build.plain.blocks import AttentionBlock, Downsample2D, ResnetBlock2D, Upsample2D, optional
from fastdiff.build.plain.model import PlainModel

__all__ = ["AutoencoderKL"]

_EPS = 1e-6


class _Level(nn.Module):
    """Residual blocks on one size."""

    def __init__(self, width: int, out: int, layers: int, groups: int) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(
            [ResnetBlock2D(width if i == 0 else out, out, None, groups, _EPS) for i in range(layers)]
        )

    def forward(self, x: Tensor) -> Tensor:
        for resnet in self.resnets:
            x = resnet(x)
        return x


class _Down(_Level):
    def __init__(self, width: int, out: int, layers: int, groups: int, last: bool) -> None:
        super().__init__(width, out, layers, groups)
        self.downsamplers = optional(not last, Downsample2D(out, 0))

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        return x if self.downsamplers is None else self.downsamplers[0](x)


class _Up(_Level):
    def __init__(self, width: int, out: int, layers: int, groups: int, last: bool) -> None:
        super().__init__(width, out, layers, groups)
        self.upsamplers = optional(not last, Upsample2D(out))

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        return x if self.upsamplers is None else self.upsamplers[0](x)


class _Middle(nn.Module):
    def __init__(self, width: int, groups: int, attention: bool) -> None:
        super().__init__()
        self.attentions = nn.ModuleList([AttentionBlock(width, groups)] if attention else [])
        self.resnets = nn.ModuleList([ResnetBlock2D(width, width, None, groups, _EPS) for _ in range(2)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.resnets[0](x)
        for attention in self.attentions:
            x = attention(x)
        result: Tensor = self.resnets[1](x)
        return result


class _Encoder(nn.Module):
    def __init__(self, c: Any) -> None:
        super().__init__()
        channels, groups = c.block_out_channels, c.norm_num_groups
        self.conv_in = nn.Conv2d(c.in_channels, channels[0], 3, padding=1)
        self.down_blocks = nn.ModuleList(
            [
                _Down(channels[max(0, i - 1)], out, c.layers_per_block, groups, i + 1 == len(channels))
                for i, out in enumerate(channels)
            ]
        )
        self.mid_block = _Middle(channels[-1], groups, c.mid_block_add_attention)
        self.conv_norm_out = nn.GroupNorm(groups, channels[-1], _EPS)
        self.conv_out = nn.Conv2d(channels[-1], 2 * c.latent_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for block in self.down_blocks:
            x = block(x)
        result: Tensor = self.conv_out(functional.silu(self.conv_norm_out(self.mid_block(x))))
        return result


class _Decoder(nn.Module):
    def __init__(self, c: Any) -> None:
        super().__init__()
        channels, groups = list(reversed(c.block_out_channels)), c.norm_num_groups
        self.conv_in = nn.Conv2d(c.latent_channels, channels[0], 3, padding=1)
        self.mid_block = _Middle(channels[0], groups, c.mid_block_add_attention)
        self.up_blocks = nn.ModuleList(
            [
                _Up(channels[max(0, i - 1)], out, c.layers_per_block + 1, groups, i + 1 == len(channels))
                for i, out in enumerate(channels)
            ]
        )
        self.conv_norm_out = nn.GroupNorm(groups, channels[-1], _EPS)
        self.conv_out = nn.Conv2d(channels[-1], c.out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mid_block(self.conv_in(x))
        for block in self.up_blocks:
            x = block(x)
        result: Tensor = self.conv_out(functional.silu(self.conv_norm_out(x)))
        return result


class AutoencoderKL(PlainModel):
    """See diffusers' class of this name. ``encoder`` gives mean and log-variance before ``quant_conv``,
    ``decoder`` takes latents after ``post_quant_conv``; both convolutions may be None.
    """

    DEFAULTS: ClassVar[Mapping[str, Any]] = {
        "in_channels": 3,
        "out_channels": 3,
        "block_out_channels": (64,),
        "layers_per_block": 1,
        "latent_channels": 4,
        "norm_num_groups": 32,
        "sample_size": 32,
        "scaling_factor": 0.18215,
        "shift_factor": None,
        "force_upcast": True,
        "mid_block_add_attention": True,
        "use_quant_conv": True,
        "use_post_quant_conv": True,
    }
    FIXED: ClassVar[Mapping[str, tuple[Any, ...]]] = {"act_fn": ("silu",)}

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        c = self.config
        for key, kind in (("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")):
            for found in getattr(c, key, ()):
                if found != kind:
                    raise ValueError(f"{key} has {found!r}, wanted {kind}: install diffusers for it")
        z = c.latent_channels
        self.encoder = _Encoder(c)
        self.decoder = _Decoder(c)
        self.quant_conv = nn.Conv2d(2 * z, 2 * z, 1) if c.use_quant_conv else None
        self.post_quant_conv = nn.Conv2d(z, z, 1) if c.use_post_quant_conv else None
