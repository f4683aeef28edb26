"""Stable Diffusion's U-Net and autoencoder in plain PyTorch, for machines without diffusers.

Names of weights and the operators of a captured graph are those of diffusers' classes of the same names, so
checkpoints, passes and targets cannot tell them apart (but for diffusers' divisions by one, which are left
out). What the configurations of SD 1.x, 2.x and SDXL do not use is refused, not ignored.
"""

from __future__ import annotations

from fastdiff.build.plain.autoencoder import AutoencoderKL
from fastdiff.build.plain.unet import UNet2DConditionModel

__all__ = ["AutoencoderKL", "UNet2DConditionModel"]
