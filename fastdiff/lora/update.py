"""One low-rank update of one layer's weight."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["MODULES", "LowRank"]

MODULES = ("unet", "text_encoder", "text_encoder_2")
"""Modules of an engine that LoRAs are for."""


@dataclass(frozen=True)
class LowRank:
    """``W + scale · up · down`` in place of the weight W.

    down   float32 [rank, in], of a convolution [rank, in, kernel_h, kernel_w]
    up     float32 [out, rank]
    scale  alpha / rank times what the caller asked for
    """

    down: NDArray[np.float32]
    up: NDArray[np.float32]
    scale: float

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight that it is an update of."""
        return (self.up.shape[0], *self.down.shape[1:])

    @property
    def rank(self) -> int:
        """Columns of ``up`` and rows of ``down``."""
        return int(self.down.shape[0])

    def times(self, factor: float) -> LowRank:
        """The update with another scale."""
        return LowRank(self.down, self.up, self.scale * factor)

    def matrix(self) -> NDArray[np.float32]:
        """``scale · up · down`` in the weight's shape."""
        flat = self.down.reshape(self.rank, math.prod(self.down.shape[1:]))
        return np.asarray((np.float32(self.scale) * self.up) @ flat, np.float32).reshape(self.shape)
