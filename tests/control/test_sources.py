"""Files and folders that are refused: missing, damaged, or of another structure than the U-Net."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from fastdiff.build.checkpoint import load_checkpoint
from fastdiff.build.control import add_control
from fastdiff.errors import CheckpointError
from tests.checkpoints import read_json, write_json
from tests.control.conftest import Sources
from tests.controls import make_image_encoder, make_ip_adapter


def change(folder: Path, copy: Path, **values: Any) -> Path:
    """A copy of a folder with another config."""
    shutil.copytree(folder, copy)
    write_json(copy / "config.json", {**read_json(copy / "config.json"), **values})
    return copy


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"cross_attention_dim": 48}, r"cross_attention_dim is 48, that of the checkpoint's U-Net is 32"),
        ({"block_out_channels": [32, 48]}, r"block_out_channels is \[32, 48\], .* is \[32, 64\]"),
        ({"layers_per_block": 2}, r"layers_per_block is 2, .* is 1"),
        ({"in_channels": 9}, r"in_channels is 9, .* is 4"),
        ({"class_embed_type": "timestep"}, "class_embed_type is 'timestep'"),
        ({"conditioning_embedding_out_channels": [4, 8]}, r"2 times smaller, the VAE 4 times"),
        ({"controlnet_conditioning_channel_order": "xyz"}, "rgb or bgr"),
        ({"_class_name": "ControlNetUnionModel"}, "holds a ControlNetUnionModel"),
    ],
)
def test_controlnets_that_do_not_fit(
    values: dict[str, Any], message: str, sources: Sources, tmp_path: Path
) -> None:
    folder = change(sources.controlnets[0], tmp_path / "other", **values)
    with pytest.raises(CheckpointError, match=message) as caught:
        add_control(load_checkpoint(sources.checkpoint), controlnets=[folder])
    assert "\n" not in str(caught.value)


def test_folders_that_are_no_networks(sources: Sources, tmp_path: Path) -> None:
    checkpoint = load_checkpoint(sources.checkpoint)
    empty = tmp_path / "empty"
    empty.mkdir()
    text = tmp_path / "text"
    text.mkdir()
    (text / "config.json").write_text("{")
    bare = tmp_path / "bare"
    shutil.copytree(sources.controlnets[0], bare)
    (bare / "diffusion_pytorch_model.safetensors").rename(bare / "diffusion_pytorch_model.bin")
    for given, message in (
        (tmp_path / "none", "does not exist"),
        (sources.checkpoint / "model_index.json", "is a file"),
        (empty, "config.json is missing"),
        (text, "not readable JSON"),
        (bare, "only pickled weights"),
        (sources.t2i_adapters[0], "holds a T2IAdapter: a ControlNet must be a ControlNetModel"),
    ):
        with pytest.raises(CheckpointError, match=message):
            add_control(checkpoint, controlnets=[given])
    with pytest.raises(CheckpointError, match="give a list of folders"):
        add_control(checkpoint, controlnets=str(bare))
    with pytest.raises(CheckpointError, match="without an IP-Adapter"):
        add_control(checkpoint, image_encoder=sources.image_encoder)


def test_adapters_that_do_not_fit(sources: Sources, tmp_path: Path) -> None:
    checkpoint = load_checkpoint(sources.checkpoint)
    for name, values, message in (
        ("narrow", {"channels": [16, 64]}, r"features is 16/1 64/2, .* is 32/1 64/2"),
        ("coarse", {"downscale_factor": 16}, r"multiples of 32, the checkpoint makes .* of 8"),
        ("five", {"in_channels": 5}, "in_channels is 5"),
        ("kind", {"adapter_type": "other"}, "refuses its config"),
    ):
        folder = change(sources.t2i_adapters[0], tmp_path / name, **values)
        with pytest.raises(CheckpointError, match=message):
            add_control(checkpoint, t2i_adapters=[folder])


def test_ip_adapters_that_do_not_fit(sources: Sources, tmp_path: Path) -> None:
    checkpoint = load_checkpoint(sources.checkpoint)
    tensors = load_file(sources.ip_adapter)

    def refused(name: str, changed: dict[str, torch.Tensor], message: str, load: bool = False) -> None:
        file = tmp_path / f"{name}.safetensors"
        save_file(changed, file)
        if load:
            added = add_control(checkpoint, ip_adapter=file)
        with pytest.raises(CheckpointError, match=message):
            added.load("unet") if load else add_control(checkpoint, ip_adapter=file)

    wide = make_ip_adapter(tmp_path / "wide.safetensors", sources.checkpoint, hidden=48)
    with pytest.raises(CheckpointError, match=r"tokens of width 48, cross_attention_dim .* is 32"):
        add_control(checkpoint, ip_adapter=wide)
    encoder = make_image_encoder(tmp_path / "encoder", projection=28)
    with pytest.raises(CheckpointError, match=r"features of width 20, projection_dim of .* is 28"):
        add_control(checkpoint, ip_adapter=sources.ip_adapter, image_encoder=encoder)
    refused("other", {"weight": torch.zeros(1)}, "has the tensor weight")
    refused("half", {key: x for key, x in tensors.items() if "image" in key}, "no tensors of ip_adapter")
    refused("nan", {**tensors, "image_proj.norm.bias": torch.full((32,), torch.nan)}, "not finite")
    refused("unknown", {**tensors, "image_proj.more": torch.zeros(1)}, "no projection that diffusers knows")
    face = {"image_proj.norm.weight": torch.ones(32), "image_proj.proj.0.weight": torch.ones(8, 4)}
    refused("face", {**face, "ip_adapter.1.to_k_ip.weight": torch.zeros(1)}, "for faces")
    refused(
        "few", {key: x for key, x in tensors.items() if ".1.to_k" not in key}, "lacks 1.to_k_ip.weight", True
    )
    refused("more", {**tensors, "ip_adapter.99.to_k_ip.weight": torch.zeros(1)}, "unknown 99.to_k", True)
    refused("shape", {**tensors, "ip_adapter.1.to_k_ip.weight": torch.zeros(3, 32)}, r"shape \[3, 32\]", True)
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(sources.ip_adapter.read_bytes()[:100])
    for given, message in (
        (broken, "truncated or corrupted"),
        (tmp_path / "none.safetensors", "does not exist"),
        (tmp_path, "give the file of one IP-Adapter"),
        (sources.checkpoint / "model_index.json", "pickles are not read"),
    ):
        with pytest.raises(CheckpointError, match=message):
            add_control(checkpoint, ip_adapter=given)
