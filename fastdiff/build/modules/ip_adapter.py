"""Modules of an IP-Adapter: image encoder, projection to tokens, and the U-Net's attention to these.

Attention is decoupled: tokens of the prompt and of the picture have keys and values of their own, and the
results are added, ``Attention(q, k, v) + scale · Attention(q, k', v')`` (Ye et al., 2023, equation 5).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from fastdiff.build.modules.copies import with_submodule
from fastdiff.build.modules.spec import ModuleSpec
from fastdiff.config import ModelSpec, SizeRange, TensorSpec

__all__ = [
    "ImageAttention",
    "image_encoder_spec",
    "ip_adapter_spec",
    "wrap_image_encoder",
    "wrap_ip_adapter",
]

Tensors = tuple[TensorSpec, ...]


class ImageAttention(nn.Module):
    """Keys and values of the picture's tokens for every cross-attention of a U-Net.

    ``shapes`` gives (inner width, token width) of each, in the order of the U-Net's attention processors,
    whose place it takes. ``attend`` says what the next evaluation looks at.
    """

    def __init__(self, shapes: list[tuple[int, int]]) -> None:
        super().__init__()
        self.keys = nn.ModuleList(nn.Linear(tokens, inner, bias=False) for inner, tokens in shapes)
        self.values = nn.ModuleList(nn.Linear(tokens, inner, bias=False) for inner, tokens in shapes)
        self._tokens: Tensor | None = None
        self._scale: Tensor | None = None

    def attend(self, image_embeds: Tensor, image_scale: Tensor) -> None:
        """Tokens [batch, tokens, width] and their scale [batch] from now on."""
        self._tokens, self._scale = image_embeds, image_scale

    def processor(self, index: int) -> Any:
        """What diffusers calls in the place of one of its attention processors."""

        def process(
            attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor, *rest: Any, **options: Any
        ) -> Any:
            tokens, scale = self._tokens, self._scale
            assert tokens is not None
            assert scale is not None
            query = attn.to_q(hidden_states)
            text = _attention(
                attn.heads, query, attn.to_k(encoder_hidden_states), attn.to_v(encoder_hidden_states)
            )
            image = _attention(attn.heads, query, self.keys[index](tokens), self.values[index](tokens))
            return attn.to_out[0](text + scale[:, None, None] * image)

        return process


def _attention(heads: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention of [batch, tokens, heads · size] tensors."""
    batch, _, inner = query.shape
    q, k, v = (x.view(batch, -1, heads, inner // heads).transpose(1, 2) for x in (query, key, value))
    return scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, -1, inner)


class _Patches(nn.Module):
    """A convolution whose windows do not overlap, as a product with each window: kernels are 14 × 14."""

    def __init__(self, conv: Any) -> None:
        super().__init__()
        self.size = conv.kernel_size[0]
        weight = conv.weight.detach()
        self.weight = nn.Parameter(weight.reshape(len(weight), -1), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        size = self.size
        batch, channels, height, width = x.shape
        rows, columns = height // size, width // size
        x = x.reshape(batch, channels, rows, size, columns, size).permute(0, 2, 4, 1, 3, 5)
        x = nn.functional.linear(x.reshape(batch, rows * columns, -1), self.weight)
        return x.transpose(1, 2).reshape(batch, -1, rows, columns)


class _ImageEncoder(nn.Module):
    def __init__(self, model: Any, hidden: bool) -> None:
        super().__init__()
        path = "vision_model.embeddings.patch_embedding"
        self.model = with_submodule(model, path, _Patches(model.get_submodule(path)))
        self.hidden = hidden

    def forward(self, pixel_values: Tensor) -> Any:
        vision = self.model.vision_model
        hidden = vision.pre_layrnorm(vision.embeddings(pixel_values))
        layers = list(vision.encoder.layers)
        for layer in layers[:-1] if self.hidden else layers:
            hidden = layer(hidden, attention_mask=None)
        if self.hidden:
            return hidden
        return self.model.visual_projection(vision.post_layernorm(hidden[:, :1])).squeeze(1)


class _Projection(nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, image_features: Tensor) -> Any:
        if not hasattr(self.model, "latents"):
            return self.model(image_features)
        latents = self.model.latents.expand(image_features.shape[0], -1, -1)
        hidden = self.model.proj_in(image_features)
        for layer in self.model.layers:
            latents = layer(hidden, latents, latents)
        return self.model.norm_out(self.model.proj_out(latents))


def wrap_image_encoder(part: Any, inputs: Tensors, outputs: Tensors) -> nn.Module:
    """A ``CLIPVisionModelWithProjection``: the embedding of a picture, or the hidden states before the last
    layer where the output has an axis of tokens.
    """
    return _ImageEncoder(part, len(outputs[0].shape) == 3)


def wrap_ip_adapter(part: Any, inputs: Tensors, outputs: Tensors) -> nn.Module:
    """The projection of an image encoder's features to tokens."""
    return _Projection(part.projection)


def image_encoder_spec(name: str, model: ModelSpec) -> ModuleSpec:
    """The spec of the image encoder."""
    adapter = model.control.ip_adapter
    assert adapter is not None
    size = adapter.image_size
    return ModuleSpec(
        name,
        name,
        (TensorSpec("pixel_values", "float32", ("batch", 3, size, size)),),
        (TensorSpec("image_features", "float32", ("batch", *adapter.features)),),
        {"batch": SizeRange()},
    )


def ip_adapter_spec(name: str, model: ModelSpec) -> ModuleSpec:
    """The spec of the projection to tokens."""
    adapter = model.control.ip_adapter
    assert adapter is not None
    return ModuleSpec(
        name,
        name,
        (TensorSpec("image_features", "float32", ("batch", *adapter.features)),),
        (TensorSpec("image_embeds", "float32", ("batch", adapter.tokens, model.hidden_size)),),
        {"batch": SizeRange()},
    )
