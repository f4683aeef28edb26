"""Building with ControlNets, T2I-Adapters and IP-Adapters: what is read, recorded and refused."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel
from safetensors.torch import load_file, save_file

import fastdiff
from fastdiff.build.build import build_engine
from fastdiff.build.capture import CapturedModule, capture, run_eager
from fastdiff.build.checkpoint import load_checkpoint
from fastdiff.build.control import add_control
from fastdiff.build.modules import module_spec, random_inputs
from fastdiff.build.passes import run_passes
from fastdiff.build.refit import refit_engine
from fastdiff.build.verify import verify_engine
from fastdiff.config import TensorSpec
from fastdiff.control.spec import FeatureSpec
from fastdiff.engine_dir import open_engine
from fastdiff.errors import CheckpointError, EngineMismatchError, InputError
from tests.checkpoints import make_checkpoint, read_json, write_json
from tests.control.conftest import Sources
from tests.controls import make_controlnet, make_image_encoder, make_ip_adapter, make_t2i_adapter

LEVELS = (FeatureSpec(32, 1), FeatureSpec(32, 1), FeatureSpec(32, 2), FeatureSpec(64, 2), FeatureSpec(64, 2))


def test_engine_has_the_modules_and_inputs(native: fastdiff.Pipeline) -> None:
    manifest = native.engine.manifest
    assert set(manifest.modules) == {
        *("text_encoder", "unet", "vae_decoder", "vae_encoder"),
        *("controlnet_embedding", "controlnet", "controlnet_2_embedding", "controlnet_2"),
        *("t2i_adapter", "t2i_adapter_2", "image_encoder", "ip_adapter"),
    }
    assert manifest.model.control.residuals == LEVELS
    unet = {tensor.name: tensor.shape for tensor in manifest.modules["unet"].inputs}
    assert list(unet)[3:] == [
        *(f"down_residual_{index}" for index in range(4)),
        *("mid_residual", "adapter_feature_0", "adapter_feature_1", "image_embeds", "image_scale"),
    ]
    assert unet["down_residual_2"] == ("batch", 32, "height/2", "width/2")
    assert unet["image_embeds"] == ("batch", "image_tokens", 32)
    assert unet["image_scale"] == ("batch",)
    assert set(manifest.provenance["control"]) == {
        *("controlnet", "controlnet_2", "t2i_adapter", "t2i_adapter_2", "image_encoder", "ip_adapter")
    }


def test_an_engine_without_control_is_as_before(tiny_native_engine: Path) -> None:
    manifest = open_engine(tiny_native_engine).manifest
    assert "control" not in manifest.provenance
    assert '"control"' not in (tiny_native_engine / "engine.json").read_text()
    assert len(manifest.modules["unet"].inputs) == 3


def test_sizes_on_lower_levels() -> None:
    spec = TensorSpec("x", "float32", ("batch", 3, "height/2", "8*width"))
    assert spec.concrete({"batch": 2, "height": 12, "width": 5}) == (2, 3, 6, 40)
    with pytest.raises(ValueError, match="not a symbolic size"):
        TensorSpec("x", "float32", ("height/0",)).factors()


def test_verify_compares_with_what_it_was_built_with(native: fastdiff.Pipeline, sources: Sources) -> None:
    with pytest.raises(EngineMismatchError, match=r"another controlnet .* as --controlnet$"):
        verify_engine(native.engine, sources.checkpoint)
    with pytest.raises(EngineMismatchError, match="another controlnet_2"):
        verify_engine(
            native.engine, sources.checkpoint, **{**sources.options(), "controlnets": sources.controlnets[:1]}
        )
    few = ("t2i_adapter", "ip_adapter")
    modules = {name: native.engine.entry(name) for name in few}
    engine = replace(native.engine, manifest=replace(native.engine.manifest, modules=modules))
    errors = verify_engine(engine, sources.checkpoint, **sources.options())
    assert set(errors) == set(few)
    assert max(error.relative_l2 for error in errors.values()) < 2e-6


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


def test_refit_refuses_engines_with_control(native: fastdiff.Pipeline, sources: Sources) -> None:
    with pytest.raises(InputError, match="has controlnet_embedding, which --refit does not replace"):
        refit_engine(sources.checkpoint, native.engine.path)


def test_a_failed_build_leaves_nothing(sources: Sources, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        build_engine(sources.checkpoint, tmp_path / "x.fd", target="torch", controlnets=[tmp_path / "none"])
    assert not list(tmp_path.iterdir())


def test_a_controlnet_of_another_seed_is_another_engine(sources: Sources, tmp_path: Path) -> None:
    """Hashes are those of the files, so that an engine knows its parts."""
    checkpoint = load_checkpoint(sources.checkpoint)
    same = tmp_path / "same"
    shutil.copytree(sources.controlnets[0], same)
    other = make_controlnet(tmp_path / "other", sources.checkpoint, seed=77)
    hashes = []
    for folder in (sources.controlnets[0], same, other):
        additions = add_control(checkpoint, controlnets=[folder]).additions
        assert additions is not None
        hashes.append(additions.sha256()["controlnet"])
    assert hashes[0] == hashes[1] != hashes[2]
