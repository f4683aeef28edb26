"""The module of a T2I-Adapter: features of its picture for the way down of a U-Net."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from fastdiff.build.modules.controlnet import features, position
from fastdiff.build.modules.copies import with_submodule
from fastdiff.build.modules.spec import ModuleSpec, block_sizes
from fastdiff.config import ModelSpec, SizeRange, TensorSpec

__all__ = ["t2i_adapter_spec", "wrap_t2i_adapter"]

Tensors = tuple[TensorSpec, ...]


class _Unshuffle(nn.Module):
    """``torch.nn.PixelUnshuffle`` in operators that every target has."""

    def __init__(self, factor: int) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        factor = self.factor
        batch, channels, height, width = x.shape
        x = x.reshape(batch, channels, height // factor, factor, width // factor, factor)
        x = x.permute(0, 1, 3, 5, 2, 4)
        return x.reshape(batch, channels * factor**2, height // factor, width // factor)


class _Adapter(nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        model = with_submodule(model, "adapter.unshuffle", _Unshuffle(model.downscale_factor))
        for index, block in enumerate(model.adapter.body):
            if block.downsample is not None:
                # sides are multiples of all factors together, so rounding up changes nothing
                model = with_submodule(model, f"adapter.body.{index}.downsample", nn.AvgPool2d(2))
        self.model = model

    def forward(self, adapter_image: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.model(adapter_image))


def wrap_t2i_adapter(part: Any, inputs: Tensors, outputs: Tensors) -> nn.Module:
    """The module around a ``T2IAdapter``."""
    return _Adapter(part)


def t2i_adapter_spec(name: str, model: ModelSpec) -> ModuleSpec:
    """The spec of ``t2i_adapter``, ``t2i_adapter_2`` and so on."""
    adapter = model.control.t2i_adapters[position(name)]
    factor, sides = model.vae_scale_factor, block_sizes(model)
    picture = ("batch", adapter.image_channels, f"{factor}*height", f"{factor}*width")
    return ModuleSpec(
        name,
        name,
        (TensorSpec("adapter_image", "float32", picture),),
        features(model.control.feature_names(), adapter.features),
        {"batch": SizeRange(), "height": sides, "width": sides},
    )
