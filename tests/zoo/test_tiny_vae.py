"""The training of the tiny autoencoder, for a few steps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderTiny

from fastdiff.zoo import resolve
from fastdiff.zoo.training import tiny_vae
from fastdiff.zoo.training.trainer import Settings


def test_a_few_steps_write_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiny_vae, "POOL", 50)
    settings = Settings(steps=12, batch=4, lr=3e-3, warmup=2, muon=True, log_every=4)
    trained = tiny_vae.train_tiny_vae(tmp_path, settings, resolve("scenes"))
    rows = [json.loads(line) for line in (tmp_path / "tiny_vae.jsonl").read_text().splitlines()]
    assert rows[-1]["loss"] < rows[0]["loss"]
    again = AutoencoderTiny.from_pretrained(tmp_path / "preview_vae", torch_dtype=torch.float32)
    latents = torch.zeros(1, 4, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(
            again.decode(latents).sample, trained.decode(latents).sample, atol=0.01, rtol=0
        )


def test_half_of_the_latents_stay_as_they_are() -> None:
    latents = torch.ones(200, 4, 2, 2)
    found = tiny_vae.disturbed(latents, torch.Generator().manual_seed(0))
    same = (found == latents).flatten(1).all(1)
    assert 70 <= int(same.sum()) <= 130
    assert found[~same].mean() < 0.9
