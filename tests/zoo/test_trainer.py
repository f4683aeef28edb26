from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fastdiff.zoo.training.trainer import Settings, run_processes, train
from tests.compare import assert_close

SETTINGS = Settings(steps=12, batch=4, lr=1e-2, warmup=2, ema=0.5, save_every=5, log_every=3)


def _loss(model: nn.Linear) -> object:
    def loss(generator: torch.Generator) -> Tensor:
        x = torch.randn(4, 3, generator=generator)
        return (model(x) - x.sum(1, keepdim=True)).square().mean()

    return loss


def _fresh() -> nn.ModuleDict:
    torch.manual_seed(0)
    return nn.ModuleDict({"m": nn.Linear(3, 1)})


@pytest.mark.parametrize("muon", [False, True])
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path, muon: bool) -> None:
    settings = replace(SETTINGS, muon=muon)
    whole = _fresh()
    train("stage", tmp_path / "whole", whole, _loss(whole["m"]), settings)
    cut = _fresh()
    stopped = replace(settings, log_every=1)

    class StoppedError(Exception):
        pass

    calls = 0
    inner = _loss(cut["m"])

    def interrupted(generator: torch.Generator) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 8:
            raise StoppedError
        return inner(generator)

    try:
        train("stage", tmp_path / "cut", cut, interrupted, stopped)
        raise AssertionError("the run was meant to be interrupted")
    except StoppedError:
        pass
    again = _fresh()
    train("stage", tmp_path / "cut", again, _loss(again["m"]), settings)
    for name, value in whole.state_dict().items():
        assert_close(again.state_dict()[name], value, max_abs=1e-7, label=name)


def test_the_log_grows_and_the_loss_falls(tmp_path: Path) -> None:
    model = _fresh()
    settings = Settings(steps=200, batch=4, lr=5e-2, warmup=5, log_every=20)
    train("stage", tmp_path, model, _loss(model["m"]), settings)
    rows = (tmp_path / "stage.jsonl").read_text().splitlines()
    assert len(rows) == 10
    with torch.no_grad():
        x = torch.eye(3)
        assert_close(model["m"](x), torch.ones(3, 1), max_abs=0.1, label="EMA weights")


def test_half_precision_weights_learn_through_float32_masters(tmp_path: Path) -> None:
    # Steps of 1e-4 on weights near 1 are lost in bfloat16's 2^-8: without masters nothing would move.
    model = _fresh()
    with torch.no_grad():
        model["m"].weight.fill_(0.9)
        model["m"].bias.fill_(0.0)
    model.bfloat16()
    half = Settings(steps=100, batch=4, lr=1e-4, warmup=1, ema=0.0, weight_decay=0.0)

    def loss(generator: torch.Generator) -> Tensor:
        x = torch.randn(4, 3, generator=generator).bfloat16()
        return (model["m"](x) - x.sum(1, keepdim=True)).float().square().mean()

    train("stage", tmp_path, model, loss, half)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert (model["m"].weight - 0.9).min() > 2e-3


def _stage(folder: Path, muon: bool) -> None:
    model = _fresh()  # one matrix: with Muon the second process has none to make orthogonal
    train("stage", folder, model, _loss(model["m"]), replace(SETTINGS, muon=muon))
    torch.save(model.state_dict(), folder / f"{torch.distributed.get_rank()}.pt")


@pytest.mark.parametrize("muon", [False, True])
def test_two_processes_hold_the_same_weights_and_one_writes_the_log(tmp_path: Path, muon: bool) -> None:
    run_processes(2, partial(_stage, tmp_path, muon))
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    for name, value in first.items():
        assert_close(second[name], value, max_abs=0.0, label=name)
    assert len((tmp_path / "stage.jsonl").read_text().splitlines()) == SETTINGS.steps // SETTINGS.log_every
