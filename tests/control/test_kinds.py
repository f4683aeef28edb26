"""Kinds of networks and files that the engine of the other tests does not have."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel
from safetensors.torch import load_file, save_file

from fastdiff.build.capture import CapturedModule, capture, run_eager
from fastdiff.build.checkpoint import load_checkpoint
from fastdiff.build.control import add_control
from fastdiff.build.modules import module_spec, random_inputs
from fastdiff.build.passes import run_passes
from fastdiff.control.spec import FeatureSpec
from fastdiff.errors import CheckpointError
from tests.checkpoints import make_checkpoint
from tests.control.conftest import Sources
from tests.controls import make_controlnet, make_ip_adapter, make_t2i_adapter


def _module_error(checkpoint: Any, name: str) -> float:
    """The module on the native target against PyTorch; the largest relative L2 error."""
    from fastdiff.config import Precision
    from fastdiff.manifest import ModuleEntry
    from fastdiff.targets import CompileOptions, get_target

    spec = module_spec(name, checkpoint.spec)
    part = checkpoint.load(spec.part)
    module = capture(CapturedModule(spec, spec.wrap(part), part))
    assert module.program is not None
    module = module.with_program(run_passes(module.program))
    folder = checkpoint.path.parent / f"{name}-compiled"
    folder.mkdir(exist_ok=True)
    target = get_target("native")
    compiled = target.compile(module, folder, CompileOptions(Precision.FP32, {}))
    entry = ModuleEntry(
        target="native",
        precision=Precision.FP32,
        inputs=spec.inputs,
        outputs=spec.outputs,
        shapes=spec.shapes,
        files=dict.fromkeys(compiled.files, ""),
        bytes=0,
        error={},
        seconds=0,
    )
    sizes = {symbol: 3 * size.multiple_of for symbol, size in spec.shapes.items()}
    arrays = random_inputs(spec, sizes, 0)
    wanted = run_eager(module.eager, spec.inputs, spec.outputs, arrays)
    with target.open(folder, name, entry, 1) as session:
        found = session(**arrays)
    assert found.keys() == wanted.keys()
    return max(
        float(np.linalg.norm(found[name] - wanted[name]) / np.linalg.norm(wanted[name])) for name in wanted
    )


@pytest.mark.parametrize("kind", ["plus", "full"])
def test_other_kinds_of_ip_adapter(kind: str, sources: Sources, tmp_path: Path) -> None:
    """A resampler and all hidden states: both equal diffusers' own module, and lower."""
    from diffusers import UNet2DConditionModel

    file = make_ip_adapter(tmp_path / f"{kind}.safetensors", sources.checkpoint, kind=kind, width=24)
    checkpoint = load_checkpoint(sources.checkpoint)
    checkpoint = add_control(checkpoint, ip_adapter=file, image_encoder=sources.image_encoder)
    checkpoint = replace(checkpoint, path=tmp_path / "x", spec=checkpoint.spec)
    adapter = checkpoint.spec.control.ip_adapter
    assert adapter is not None
    assert adapter.features == (17, 24)
    assert adapter.tokens == {"plus": 3, "full": 17}[kind]
    assert _module_error(checkpoint, "image_encoder") < 2e-6
    assert _module_error(checkpoint, "ip_adapter") < 5e-6

    unet = UNet2DConditionModel.from_pretrained(sources.checkpoint / "unet")
    tensors = {
        key.removeprefix("image_proj."): x for key, x in load_file(file).items() if "image_proj" in key
    }
    theirs = unet._convert_ip_adapter_image_proj_to_diffusers(tensors, low_cpu_mem_usage=False)
    spec = module_spec("ip_adapter", checkpoint.spec)
    given = torch.randn(2, 17, 24)
    with torch.no_grad():
        assert torch.equal(spec.wrap(checkpoint.load("ip_adapter"))(given), theirs(given))


def test_light_t2i_adapter(tmp_path: Path) -> None:
    """For U-Nets whose last two levels are alike, as in SD 1.x."""
    folder = make_checkpoint(tmp_path / "checkpoint", unet={"block_out_channels": (32, 32)})
    adapter = make_t2i_adapter(tmp_path / "adapter", adapter_type="light_adapter", channels=[32])
    checkpoint = add_control(load_checkpoint(folder), t2i_adapters=[adapter])
    assert checkpoint.spec.control.features == (FeatureSpec(32, 1), FeatureSpec(32, 2))
    assert _module_error(checkpoint, "t2i_adapter") < 2e-6


def original_layout(model: Any) -> dict[str, torch.Tensor]:
    """The tensors of a ControlNet of the tiny checkpoint's structure as they were called at first."""
    blocks = {
        "controlnet_cond_embedding.conv_in": "input_hint_block.0",
        "controlnet_cond_embedding.conv_out": "input_hint_block.14",
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "conv_in": "input_blocks.0.0",
        "down_blocks.0.resnets.0": "input_blocks.1.0",
        "down_blocks.0.attentions.0": "input_blocks.1.1",
        "down_blocks.0.downsamplers.0.conv": "input_blocks.2.0.op",
        "down_blocks.1.resnets.0": "input_blocks.3.0",
        "mid_block.resnets.0": "middle_block.0",
        "mid_block.attentions.0": "middle_block.1",
        "mid_block.resnets.1": "middle_block.2",
        "controlnet_mid_block": "middle_block_out.0",
        **{
            f"controlnet_cond_embedding.blocks.{index}": f"input_hint_block.{2 * index + 2}"
            for index in range(6)
        },
        **{f"controlnet_down_blocks.{index}": f"zero_convs.{index}.0" for index in range(4)},
    }
    layers = {
        "norm1": "in_layers.0",
        "conv1": "in_layers.2",
        "time_emb_proj": "emb_layers.1",
        "norm2": "out_layers.0",
        "conv2": "out_layers.3",
        "conv_shortcut": "skip_connection",
    }
    found = {}
    for key, tensor in model.state_dict().items():
        block = next(name for name in blocks if key.startswith(f"{name}."))
        rest = key.removeprefix(f"{block}.")
        if "resnets" in block:
            layer, _, kind = rest.rpartition(".")
            rest = f"{layers[layer]}.{kind}"
        found[f"control_model.{blocks[block]}.{rest}"] = tensor
    return found


def test_a_controlnet_in_one_file(sources: Sources, tmp_path: Path) -> None:
    """The original layout, which says nothing of its structure but by its tensors."""
    checkpoint = load_checkpoint(sources.checkpoint)
    folder = make_controlnet(
        tmp_path / "net", sources.checkpoint, conditioning_embedding_out_channels=(16, 32, 96, 256)
    )
    original = ControlNetModel.from_pretrained(folder)
    file = tmp_path / "net.safetensors"
    tensors = original_layout(original)
    save_file(tensors, file)
    with pytest.raises(CheckpointError, match="8 times smaller, the VAE 4 times"):
        add_control(checkpoint, controlnets=[file])
    eighth = replace(checkpoint, spec=replace(checkpoint.spec, vae_scale_factor=8, size_multiple=16))
    added = add_control(eighth, controlnets=[file])
    assert added.additions is not None
    assert set(added.additions.sha256()) == {"controlnet"}
    loaded = added.load("controlnet").state_dict()
    assert loaded.keys() == original.state_dict().keys()
    assert all(torch.equal(loaded[key], tensor) for key, tensor in original.state_dict().items())

    def refused(changed: dict[str, torch.Tensor], message: str) -> None:
        save_file(changed, file)
        with pytest.raises(CheckpointError, match=message):
            add_control(eighth, controlnets=[file]).load("controlnet")

    key = "control_model.input_blocks.3.0.in_layers.2.weight"
    refused({name: x for name, x in tensors.items() if name != key}, "does not fit the checkpoint's U-Net")
    refused({**tensors, key: tensors[key][:2].contiguous()}, "does not fit the checkpoint's U-Net")
    refused({**tensors, key: torch.full_like(tensors[key], torch.inf)}, "not finite")
    refused({"weight": torch.zeros(1)}, "has no input_hint_block")
    file.write_bytes(b"no tensors")
    with pytest.raises(CheckpointError, match="truncated or corrupted"):
        add_control(eighth, controlnets=[file]).load("controlnet")
