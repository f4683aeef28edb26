"""Muon: momentum whose matrices are made orthogonal before they are applied, for every weight with two or
more axes.

Source: K. Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024), with the update's
scale of J. Liu et al., "Muon is Scalable for LLM Training" (2025), eq. 4, so that AdamW's learning rate and
weight decay serve unchanged. Under ``torch.distributed`` the processes share the matrices out between them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn

__all__ = ["Muon", "orthogonalised"]

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5


def orthogonalised(matrices: Tensor) -> Tensor:
    """About ``U V^T`` of each matrix ``U S V^T`` by Newton-Schulz iterations: ``[N, rows, columns]``, any
    float type; bfloat16 out, singular values within 0.7 to 1.2.
    """
    x = matrices.bfloat16()
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    x = (x / (x.float().norm(dim=(1, 2), keepdim=True) + 1e-7)).bfloat16()
    a, b, c = COEFFICIENTS
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """``parameters`` with two or more axes; a convolution counts as the matrix ``[out, in * kernel]``."""

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            updates = _shared_out([self._nesterov(p, group["momentum"]) for p in parameters])
            for p, update in zip(parameters, updates, strict=True):
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(update.view(p.shape), alpha=-group["lr"] * 0.2 * max(update.shape) ** 0.5)

    def _nesterov(self, p: nn.Parameter, momentum: float) -> Tensor:
        """Fold the gradient into the momentum; the look-ahead direction as a matrix."""
        assert p.grad is not None
        state = self.state[p]
        if not state:
            state["momentum"] = torch.zeros_like(p)
        state["momentum"].lerp_(p.grad, 1 - momentum)
        return p.grad.lerp(state["momentum"], momentum).flatten(1)


def _shared_out(matrices: list[Tensor]) -> list[Tensor]:
    """``orthogonalised`` of each, every process doing a part of about the same cost."""
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    work = [min(m.shape) * m.numel() for m in matrices]
    load, parts = [0] * world, [list[int]() for _ in range(world)]
    for i in sorted(range(len(matrices)), key=lambda i: -work[i]):
        least = load.index(min(load))
        load[least] += work[i]
        parts[least].append(i)
    by_shape = defaultdict(list)
    for i in parts[rank]:
        by_shape[matrices[i].shape].append(i)
    done: dict[int, Tensor] = {}
    for members in by_shape.values():
        done.update(zip(members, orthogonalised(torch.stack([matrices[i] for i in members])), strict=True))
    if world > 1:
        sizes = [[matrices[i].numel() for i in part] for part in parts]
        blank = matrices[0].new_zeros(max(map(sum, sizes)) - sum(sizes[rank]), dtype=torch.bfloat16)
        mine = torch.cat([*(done[i].flatten() for i in parts[rank]), blank])
        gathered = [torch.empty_like(mine) for _ in range(world)]
        dist.all_gather(gathered, mine)
        for part, size, flat in zip(parts, sizes, gathered, strict=True):
            for i, update in zip(part, torch.split(flat[: sum(size)], size), strict=True):
                done[i] = update.view(matrices[i].shape)
    return [done[i] for i in range(len(matrices))]
