"""Modules of text encoders."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from fastdiff.build.modules.spec import ModuleSpec
from fastdiff.config import ModelSpec, SizeRange, TensorSpec

__all__ = ["text_encoder_spec", "wrap_text_encoder"]


class _TextEncoder(nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor) -> Any:
        return self.model(input_ids).last_hidden_state


def wrap_text_encoder(part: Any) -> nn.Module:
    """The module around a ``CLIPTextModel``."""
    return _TextEncoder(part)


def text_encoder_spec(name: str, model: ModelSpec) -> ModuleSpec:
    """The spec of a text encoder."""
    encoder = next((encoder for encoder in model.text_encoders if encoder.module == name), None)
    width = model.hidden_size if encoder is None else encoder.hidden_size
    window = model.max_tokens if encoder is None else encoder.window
    return ModuleSpec(
        name,
        name,
        (TensorSpec("input_ids", "int64", ("batch", "tokens")),),
        (TensorSpec("last_hidden_state", "float32", ("batch", "tokens", width)),),
        {"batch": SizeRange(), "tokens": SizeRange(1, window)},
    )
