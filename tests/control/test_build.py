"""Building with ControlNets, T2I-Adapters and IP-Adapters: what an engine has and records."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

import fastdiff
from fastdiff.build.build import build_engine
from fastdiff.build.checkpoint import load_checkpoint
from fastdiff.build.control import add_control
from fastdiff.build.refit import refit_engine
from fastdiff.build.verify import verify_engine
from fastdiff.config import TensorSpec
from fastdiff.control.spec import FeatureSpec
from fastdiff.engine_dir import open_engine
from fastdiff.errors import CheckpointError, EngineMismatchError, InputError
from tests.control.conftest import Sources
from tests.controls import make_controlnet

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
