"""The plain models against diffusers' classes: names of weights, outputs, operators of the captured graph."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import nn
from torch.export import ExportedProgram

from fastdiff.bench.configs import PUBLISHED
from fastdiff.build import modules, plain
from fastdiff.build.capture import CapturedModule, capture
from fastdiff.build.passes import run_passes
from fastdiff.build.weights import load_part
from tests.compare import assert_close
from tests.published import model


def config_of(name: str) -> dict[str, Any]:
    config = dict(model(name).source.config)
    return {key: value for key, value in config.items() if not key.startswith("_")}


def twin(name: str) -> nn.Module:
    """A model of tests/published.py in our class, with the weights that diffusers' class has there."""
    theirs = model(name).source
    kind = getattr(plain, type(theirs).__name__)
    with torch.device("meta"):
        ours = kind.from_config(config_of(name))
    ours.load_state_dict(theirs.state_dict(), assign=True)  # strict: the same names
    return ours.eval()


def operators(program: ExportedProgram) -> Counter[str]:
    """Kinds of nodes after the passes of every target, sizes left out: how many there are is the writer's."""
    normalised = run_passes(program)
    return Counter(
        str(node.target)
        for node in normalised.graph.nodes
        if node.op == "call_function" and "sym_" not in str(node.target) and "aten" in str(node.target)
    )


@pytest.mark.parametrize("name", ["sd15", "sdxl", "vae_decoder", "vae_encoder"])
def test_outputs_and_graph_are_those_of_diffusers(name: str) -> None:
    captured = model(name)
    ours = twin(name)
    eager = modules.module_wrapper(captured.spec.name, ours)
    inputs = modules.random_inputs(captured.spec, {"batch": 2, "height": 8, "width": 16, "tokens": 5}, 0)
    tensors = [torch.from_numpy(inputs[tensor.name]) for tensor in captured.spec.inputs]
    with torch.no_grad():
        found, wanted = eager(*tensors), captured.eager(*tensors)
    for one, other in zip(
        found if isinstance(found, tuple) else (found,),
        wanted if isinstance(wanted, tuple) else (wanted,),
        strict=True,
    ):
        assert_close(one, other, max_abs=0.0, label=name)
    program = capture(CapturedModule(captured.spec, eager, ours)).program
    assert program is not None
    assert captured.program is not None
    assert operators(program) == operators(captured.program)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configurations_have_the_published_weights(name: str) -> None:
    published = PUBLISHED[name]
    kind = modules.PART_CLASSES[published.part][1]
    with torch.device("meta"):
        ours = getattr(plain, kind).from_config(published.config)
        theirs = getattr(diffusers, kind).from_config(dict(published.config))
    assert {n: t.shape for n, t in ours.state_dict().items()} == {
        n: t.shape for n, t in theirs.state_dict().items()
    }


def test_files_are_read_and_written_as_diffusers_does(
    scenes_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = load_part(scenes_checkpoint / "vae", "vae").state_dict()
    hide_diffusers(monkeypatch)
    ours = load_part(scenes_checkpoint / "vae", "vae")
    assert isinstance(ours, plain.AutoencoderKL)
    ours.save_pretrained(tmp_path / "vae")
    again = diffusers.AutoencoderKL.from_pretrained(tmp_path / "vae", use_safetensors=True).state_dict()
    assert again.keys() == wanted.keys() == ours.state_dict().keys()
    for name, tensor in wanted.items():
        assert_close(ours.state_dict()[name], tensor, max_abs=0.0, label=name)
        assert_close(again[name], tensor, max_abs=0.0, label=name)


def test_the_shipped_unet_is_a_plain_one(scenes_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hide_diffusers(monkeypatch)
    assert isinstance(load_part(scenes_checkpoint / "unet", "unet"), plain.UNet2DConditionModel)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (plain.UNet2DConditionModel, {"resnet_time_scale_shift": "scale_shift"}),
        (plain.UNet2DConditionModel, {"down_block_types": ["AttnDownBlock2D"], "block_out_channels": [32]}),
        (plain.AutoencoderKL, {"up_block_types": ["AttnUpDecoderBlock2D"]}),
    ],
)
def test_what_it_does_not_have_is_refused(kind: Any, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="install diffusers"), torch.device("meta"):
        kind.from_config(options)


def hide_diffusers(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name == "diffusers" else find_spec(name, *rest),
    )
