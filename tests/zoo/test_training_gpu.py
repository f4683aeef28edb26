"""The trainer on a GPU: what it leaves is on the CPU's disk format and goes on there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fastdiff.zoo.training.trainer import Settings, train


@pytest.mark.gpu
@pytest.mark.parametrize("muon", [False, True])
def test_a_short_training_learns_and_resumes(tmp_path: Path, muon: bool) -> None:
    """Sums of three numbers, as in test_trainer.py, through a hidden layer; 2 × 100 steps."""
    torch.manual_seed(0)
    settings = Settings(
        steps=100, batch=32, lr=2e-2, warmup=5, log_every=20, save_every=50, device="cuda", muon=muon
    )
    x = torch.randn(256, 3, generator=torch.Generator().manual_seed(1)).to("cuda")
    wanted = x.sum(1, keepdim=True)

    def network() -> nn.ModuleDict:
        torch.manual_seed(0)
        layers = nn.Sequential(nn.Linear(3, 16), nn.SiLU(), nn.Linear(16, 1))
        return nn.ModuleDict({"m": layers.to("cuda")})

    def error(model: nn.ModuleDict) -> float:
        with torch.no_grad():
            return float((model["m"](x) - wanted).square().mean())

    def run(model: nn.ModuleDict, steps: int) -> float:
        def loss(generator: torch.Generator) -> Tensor:
            rows = torch.randint(len(x), (32,), generator=generator).to("cuda")
            result: Tensor = (model["m"](x[rows]) - wanted[rows]).square().mean()
            return result

        train("stage", tmp_path, model, loss, replace(settings, steps=steps))
        return error(model)

    before = error(network())
    first = run(network(), 100)
    second = run(network(), 200)
    assert first < 0.5 * before
    assert second < first
    assert len((tmp_path / "stage.jsonl").read_text().splitlines()) == 10
