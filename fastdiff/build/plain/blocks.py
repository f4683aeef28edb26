"""Blocks that U-Net and autoencoder share: residual block, transformer, attention of one head, resampling.

Pictures are [B, C, H, W], sequences [B, N, C].
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional

__all__ = ["AttentionBlock", "Downsample2D", "ResnetBlock2D", "Transformer2DModel", "Upsample2D", "optional"]


class ResnetBlock2D(nn.Module):
    """norm, SiLU, 3×3 twice, the time embedding [B, ``time``] added in between, and the shortcut."""

    def __init__(self, channels: int, out: int, time: int | None, groups: int, eps: float) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, channels, eps)
        self.conv1 = nn.Conv2d(channels, out, 3, padding=1)
        self.time_emb_proj = nn.Linear(time, out) if time else None
        self.norm2 = nn.GroupNorm(groups, out, eps)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(channels, out, 1) if channels != out else None

    def forward(self, x: Tensor, time: Tensor | None = None) -> Tensor:
        """[B, channels, H, W] to [B, out, H, W]."""
        hidden = self.conv1(functional.silu(self.norm1(x)))
        if self.time_emb_proj is not None and time is not None:
            hidden = hidden + self.time_emb_proj(functional.silu(time))[:, :, None, None]
        hidden = self.conv2(functional.silu(self.norm2(hidden)))
        shortcut: Tensor = x if self.conv_shortcut is None else self.conv_shortcut(x)
        result: Tensor = shortcut + hidden
        return result


class Attention(nn.Module):
    """``heads`` heads over ``width`` channels; keys and values of ``context``, by default of x itself."""

    def __init__(self, width: int, heads: int, context: int | None = None, bias: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(width, width, bias=bias)
        self.to_k = nn.Linear(context or width, width, bias=bias)
        self.to_v = nn.Linear(context or width, width, bias=bias)
        self.to_out = nn.ModuleList([nn.Linear(width, width)])

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Queries x [B, N, width], context [B, M, context] to [B, N, width]."""
        context = x if context is None else context
        batch, size = x.shape[0], self.to_q.out_features // self.heads
        query, key, value = (
            tensor.view(batch, -1, self.heads, size).transpose(1, 2)
            for tensor in (self.to_q(x), self.to_k(context), self.to_v(context))
        )
        hidden = functional.scaled_dot_product_attention(query, key, value)
        hidden = hidden.transpose(1, 2).reshape(batch, -1, self.heads * size)
        result: Tensor = self.to_out[0](hidden)
        return result


class AttentionBlock(Attention):
    """The autoencoder's: norm, attention of one head over all pixels, and the residual."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__(channels, 1, bias=True)
        self.group_norm = nn.GroupNorm(groups, channels, 1e-6)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """[B, C, H, W] to the same; ``context`` is not used."""
        batch, channels, height, width = x.shape
        hidden = x.view(batch, channels, height * width).transpose(1, 2)
        hidden = self.group_norm(hidden.transpose(1, 2)).transpose(1, 2)
        hidden = super().forward(hidden)
        return hidden.transpose(-1, -2).reshape(batch, channels, height, width) + x


class _Gated(nn.Module):
    """GEGLU (Shazeer 2020): half of the projection times the GELU of the other."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, 2 * inner)

    def forward(self, x: Tensor) -> Tensor:
        hidden, gate = self.proj(x).chunk(2, dim=-1)
        result: Tensor = hidden * functional.gelu(gate)
        return result


class _FeedForward(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        # what stands between them in diffusers is a dropout
        self.net = nn.ModuleList([_Gated(width, 4 * width), nn.Identity(), nn.Linear(4 * width, width)])

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.net[2](self.net[0](x))
        return result


class _TransformerBlock(nn.Module):
    def __init__(self, width: int, heads: int, context: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn1 = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.attn2 = Attention(width, heads, context)
        self.norm3 = nn.LayerNorm(width)
        self.ff = _FeedForward(width)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        x = self.attn1(self.norm1(x)) + x
        x = self.attn2(self.norm2(x), context) + x
        result: Tensor = self.ff(self.norm3(x)) + x
        return result


class Transformer2DModel(nn.Module):
    """``layers`` transformer blocks over the pixels of a picture, projected in and out, and the residual.

    ``linear``: the projections are linear layers, as in SD 2 and SDXL, else 1×1 convolutions.
    """

    def __init__(self, width: int, heads: int, layers: int, context: int, groups: int, linear: bool) -> None:
        super().__init__()
        self.linear = linear
        self.norm = nn.GroupNorm(groups, width, 1e-6)
        self.proj_in = nn.Linear(width, width) if linear else nn.Conv2d(width, width, 1)
        self.transformer_blocks = nn.ModuleList(
            [_TransformerBlock(width, heads, context) for _ in range(layers)]
        )
        self.proj_out = nn.Linear(width, width) if linear else nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """Pixels x [B, width, H, W], context [B, M, context] to [B, width, H, W]."""
        batch, channels, height, width = x.shape
        hidden = self.norm(x)
        if not self.linear:
            hidden = self.proj_in(hidden)
        hidden = hidden.permute(0, 2, 3, 1).reshape(batch, height * width, channels)
        if self.linear:
            hidden = self.proj_in(hidden)
        for block in self.transformer_blocks:
            hidden = block(hidden, context)
        if self.linear:
            hidden = self.proj_out(hidden)
        hidden = hidden.reshape(batch, height, width, channels).permute(0, 3, 1, 2).contiguous()
        if not self.linear:
            hidden = self.proj_out(hidden)
        result: Tensor = hidden + x
        return result


class Downsample2D(nn.Module):
    """3×3 of stride 2; the autoencoder's (``padding`` 0) pads below and to the right only."""

    def __init__(self, channels: int, padding: int) -> None:
        super().__init__()
        self.padding = padding
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=padding)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to [B, C, H / 2, W / 2]."""
        if self.padding == 0:
            x = functional.pad(x, (0, 1, 0, 1), mode="constant", value=0)
        result: Tensor = self.conv(x)
        return result


class Upsample2D(nn.Module):
    """Every pixel four times, then 3×3."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        """[B, C, H, W] to [B, C, 2 H, 2 W], or to the ``output_size`` (height, width)."""
        if output_size is None:
            x = functional.interpolate(x, scale_factor=2.0, mode="nearest")
        else:
            x = functional.interpolate(x, size=list(output_size), mode="nearest")
        result: Tensor = self.conv(x)
        return result


def optional(wanted: bool, module: nn.Module) -> nn.ModuleList | None:
    """A list of one module, as diffusers keeps its samplers, or None."""
    return nn.ModuleList([module]) if wanted else None
