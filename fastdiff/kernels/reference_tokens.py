"""The specification of token merging in plain PyTorch, a part of ``reference.py``.

D. Bolya and J. Hoffman, "Token Merging for Fast Stable Diffusion" (2023): similar tokens become one before an
attention and are given its result again after it. The authors choose a destination in each 2×2 square at
random or, without that, the upper left one; here it is always the latter, so that a picture depends on its
seed alone. Of the tokens N·numerator/denominator, rounded down, are merged into others.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastdiff.errors import InputError

__all__ = [
    "check_token_match",
    "check_token_plan",
    "merged_rows",
    "token_match",
    "token_merge",
    "token_unmerge",
]

_SMALLEST = 1e-12
"""Norm of a token that is all zeros, whose cosine is 0."""


def merged_rows(tokens: int, numerator: int, denominator: int) -> int:
    """How many tokens are left of ``tokens``."""
    return (tokens * (denominator - numerator) + denominator - 1) // denominator


def token_match(x: Tensor, numerator: int, denominator: int) -> Tensor:
    """The row in which each token of a picture is found after merging: (N, H·W) int64.

    ``x``: (N, H, W, C). Destinations are the tokens in even rows and columns of the whole 2×2 squares, which
    keep their order as rows 0 to D - 1. All others are sources; a source's match is the destination with the
    largest cosine. The sources whose match is closest get its row, as many as are merged, the others rows
    D, D + 1, … in their order. Of equals the first counts.
    """
    check_token_match(x, numerator, denominator)
    batch, height, width, channels = x.shape
    tokens, low, high = height * width, height // 2, width // 2
    unit = x / x.norm(dim=-1, keepdim=True).clamp_min(_SMALLEST)
    found = unit[:, : 2 * low : 2, : 2 * high : 2].reshape(batch, -1, channels)
    scores, match = (unit.reshape(batch, tokens, channels) @ found.transpose(1, 2)).max(-1)
    across = torch.arange(width, device=x.device)
    down = torch.arange(height, device=x.device)
    rows = (down % 2 == 0) & (down < 2 * low)
    columns = (across % 2 == 0) & (across < 2 * high)
    chosen = (rows[:, None] & columns[None, :]).reshape(1, tokens)
    order = torch.sort(scores.masked_fill(chosen, -2.0), stable=True, dim=-1, descending=True)[1]
    count = torch.arange(tokens, device=x.device).expand(batch, tokens)
    rank = torch.zeros_like(order).scatter(1, order, count)
    merged = rank < tokens * numerator // denominator
    alone = ~merged & ~chosen
    left = torch.cumsum(alone.to(torch.int64), 1) + (low * high - 1)
    own = torch.cumsum(chosen.to(torch.int64), 1) - 1
    return torch.where(chosen, own, torch.where(merged, match, left))


def check_token_match(x: Tensor, numerator: int, denominator: int) -> None:
    """Raise InputError for arguments that :func:`token_match` does not take."""
    if x.dim() != 4 or x.shape[1] < 2 or x.shape[2] < 2:
        raise InputError(
            f"x: found shape {tuple(x.shape)}, wanted batch, height, width of 2 or more, channels"
        )
    if not (denominator > 0 and 0 <= 4 * numerator <= 3 * denominator):
        raise InputError(f"share of merged tokens: found {numerator}/{denominator}, wanted 0 to 3/4")


def token_merge(x: Tensor, plan: Tensor, numerator: int, denominator: int) -> Tensor:
    """The means of the tokens that a plan puts in one row. ``x``: (N, T, C), ``plan``: (N, T)."""
    check_token_plan(x, plan)
    batch, tokens, channels = x.shape
    rows = merged_rows(tokens, numerator, denominator)
    counts = x.new_zeros(batch, rows).scatter_add(1, plan, x.new_ones(batch, tokens))
    index = plan.unsqueeze(-1).expand(batch, tokens, channels)
    sums = x.new_zeros(batch, rows, channels).scatter_add(1, index, x)
    return sums / counts.clamp_min(1).unsqueeze(-1)


def check_token_plan(x: Tensor, plan: Tensor) -> None:
    """Raise InputError for arguments that :func:`token_merge` does not take."""
    if x.dim() != 3 or plan.dim() != 2 or plan.dtype is not torch.int64:
        raise InputError(
            f"x and plan: found {x.dim()} and {plan.dim()} axes, {plan.dtype}, wanted 3 and 2 of int64"
        )


def token_unmerge(x: Tensor, plan: Tensor) -> Tensor:
    """Each token's row. ``x``: (N, R, C), ``plan``: (N, T), result: (N, T, C)."""
    check_token_plan(x, plan)
    return x.gather(1, plan.unsqueeze(-1).expand(plan.shape[0], plan.shape[1], x.shape[2]))
