"""A U-Net that is captured for sides of any length.

Going down, a U-Net halves its sides and rounds up; going up, each upsampler has to give the size of what its
result is put beside. diffusers passes that size along where a side is no multiple of all the halvings, which
it asks of the sample: the exporter would answer for one size. Here it is passed along without asking.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from fastdiff.build.modules.copies import copied, with_submodule

__all__ = ["unet_for_any_sides"]


class _Unasked:
    """In the place of ``num_upsamplers``: no side is a multiple of ``2**num_upsamplers``."""

    def __rpow__(self, base: int) -> _Unasked:
        return self

    def __rmod__(self, side: Any) -> int:
        return 1


class _Upsampler(nn.Module):
    """The nearest pixels of a picture of a given size, then the convolution of ``Upsample2D``."""

    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor, output_size: tuple[int, int]) -> Any:
        return self.conv(functional.interpolate(x, size=tuple(output_size), mode="nearest"))


def unet_for_any_sides(wrapper: nn.Module) -> nn.Module:
    """The module of a ``UNet2DConditionModel`` for sides of any length; weights and their names stay."""
    unet: Any = wrapper.model
    for index, block in enumerate(unet.up_blocks):
        if block.upsamplers is not None:
            path = f"up_blocks.{index}.upsamplers.0"
            unet = with_submodule(unet, path, _Upsampler(block.upsamplers[0].conv))
    unet = copied(unet)
    unet.num_upsamplers = _Unasked()
    wrapper = copied(wrapper)
    wrapper.model = unet
    return wrapper
