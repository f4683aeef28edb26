"""The activations of ``reference.ACTIVATIONS`` on float32 blocks, for kernels to call."""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["activate", "gelu"]


@triton.jit
def gelu(x: tl.tensor) -> tl.tensor:
    """GELU with the error function (Hendrycks and Gimpel 2016), not its approximations."""
    return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))


@triton.jit
def activate(
    x: tl.tensor,
    ACTIVATION: tl.constexpr,
) -> tl.tensor:
    """One of "none", "silu", "gelu" and "quick_gelu"; "geglu" takes two blocks, ``a * gelu(b)``."""
    if ACTIVATION == "silu":
        x = x * tl.sigmoid(x)
    elif ACTIVATION == "gelu":
        x = gelu(x)
    elif ACTIVATION == "quick_gelu":
        x = x * tl.sigmoid(1.702 * x)
    else:
        tl.static_assert(ACTIVATION == "none", "unknown activation")
    return x
