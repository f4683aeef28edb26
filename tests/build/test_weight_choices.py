"""Which of a folder's weights are read: variants, shards, moving averages."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from fastdiff.build.checkpoint import load_checkpoint
from fastdiff.errors import CheckpointError
from tests.checkpoints import copy_checkpoint

UNET = "diffusion_pytorch_model"


@pytest.fixture
def folder(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy to add weights to."""
    return copy_checkpoint(tiny_checkpoint, tmp_path / "checkpoint")


def unet(folder: Path, **options: Any) -> dict[str, Any]:
    weights: dict[str, Any] = load_checkpoint(folder, **options).load("unet").state_dict()
    return weights


def shard(file: Path, infix: str) -> None:
    """Cut a file into two with an index, under the names that the library gives them."""
    tensors = load_file(file)
    names = sorted(tensors)
    halves = {1: names[: len(names) // 2], 2: names[len(names) // 2 :]}
    weight_map = {}
    for number, keys in halves.items():
        name = f"{UNET}{infix}-{number:05}-of-00002.safetensors"
        save_file({key: tensors[key] for key in keys}, file.with_name(name), metadata={"format": "pt"})
        weight_map |= dict.fromkeys(keys, name)
    file.with_name(f"{UNET}.safetensors.index{infix}.json").write_text(
        json.dumps({"metadata": {"total_size": 0}, "weight_map": weight_map})
    )
    file.unlink()


@pytest.mark.parametrize("variant", ["fp16", "non_ema"])
@pytest.mark.parametrize("shards", [False, True])
def test_a_variant_is_read_where_a_part_has_it(folder: Path, variant: str, shards: bool) -> None:
    file = folder / "unet" / f"{UNET}.safetensors"
    tensors = {key: 3 * tensor for key, tensor in load_file(file).items()}
    other = file.with_name(f"{UNET}.{variant}.safetensors")
    save_file(tensors, other, metadata={"format": "pt"})
    if shards:
        shard(other, f".{variant}")
    plain = unet(folder)
    chosen = unet(folder, variant=variant)
    assert all(torch.equal(chosen[key], 3 * plain[key]) for key in plain)
    assert load_checkpoint(folder).sha256() != load_checkpoint(folder, variant=variant).sha256()
    load_checkpoint(folder, variant=variant).load("vae")  # which has plain weights alone


def test_shards_of_plain_weights(folder: Path, tiny_checkpoint: Path) -> None:
    shard(folder / "unet" / f"{UNET}.safetensors", "")
    ours, theirs = unet(folder), unet(tiny_checkpoint)
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_a_variant_that_no_part_has(folder: Path) -> None:
    with pytest.raises(CheckpointError, match="has no weights of variant 'bf16': leave --variant out"):
        load_checkpoint(folder, variant="bf16")


def test_moving_averages_of_a_folder(folder: Path) -> None:
    with pytest.raises(CheckpointError, match="has no folder unet_ema with moving averages"):
        load_checkpoint(folder, ema=True)
    shutil.copytree(folder / "unet", folder / "unet_ema")
    file = folder / "unet_ema" / f"{UNET}.safetensors"
    tensors = {key: tensor / 2 for key, tensor in load_file(file).items()}
    save_file(tensors, file, metadata={"format": "pt"})
    plain, averaged = unet(folder), unet(folder, ema=True)
    assert all(torch.equal(averaged[key], plain[key] / 2) for key in plain)
