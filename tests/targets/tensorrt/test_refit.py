"""New weights in an engine that exists: through the command line and the function, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastdiff.build.build import Stage, build_engine
from fastdiff.build.modules import module_spec, random_inputs
from fastdiff.build.refit import refit_engine
from fastdiff.cli import main
from fastdiff.engine_dir import open_engine
from fastdiff.errors import CaptureError, EngineMismatchError, InputError, VerificationError
from fastdiff.lora import LowRank
from tests.builds import build_captured
from tests.checkpoints import copy_checkpoint, make_checkpoint
from tests.compare import assert_close
from tests.lora.made_up import add_to, random_updates
from tests.targets.tensorrt.conftest import Machine

NAMES = ("text_encoder", "vae_decoder")


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the same architecture with other weights."""
    return make_checkpoint(tmp_path_factory.mktemp("tuned") / "tuned", seed=7)


@pytest.fixture(scope="module")
def two_modules(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An engine of the two modules that are captured fastest."""
    output = tmp_path_factory.mktemp("refit") / "tiny.fd"
    with pytest.MonkeyPatch.context() as patch:
        Machine().install(patch)
        options: dict[str, Any] = {"target": "tensorrt", "precision": "fp16", "modules": NAMES}
        return build_captured(tiny_checkpoint, output, refit=True, **options)


@pytest.fixture
def engine(two_modules: Path, machine: Machine, tmp_path: Path) -> Path:
    return copy_checkpoint(two_modules, tmp_path / "tiny.fd")


def test_weights_are_replaced_and_verified(
    engine: Path, tuned: Path, machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    old = open_engine(engine)
    assert main(["build", str(tuned), "-o", str(engine), "--refit"]) == 0
    assert "target tensorrt, fp16" in capsys.readouterr().out
    new = open_engine(engine)
    assert new.manifest.provenance["checkpoint"]["name"] == "tuned"
    assert machine.api.requests == {}, "nothing was built"
    for name in NAMES:
        before, after = old.entry(name), new.entry(name)
        assert before.files.keys() == after.files.keys()
        assert before.files != after.files, "the contents have changed"
        assert (before.tactics, before.requires, before.shapes) == (
            after.tactics,
            after.requires,
            after.shapes,
        )
        assert 0 < after.error["relative_l2"] < 1e-2
    model = new.manifest.model
    sizes = {"batch": 2, "height": 6, "width": 10, "tokens": 40}
    given = random_inputs(module_spec("vae_decoder", model), sizes, seed=1)
    with new.open_module("vae_decoder") as session:
        found = session(**given)["sample"]
    assert_close(found, eager(tuned, "vae_decoder", given, {})["sample"], rel_l2=2e-3)
    given = random_inputs(module_spec("text_encoder", model), sizes, seed=1, vocab_size=100)
    with new.open_module("text_encoder") as session:
        plain = session(**given)["last_hidden_state"]
        updates = random_updates(session.adaptable(), 2, seed=1, size=0.3)
        session.set_adapters({path: [update] for path, update in updates.items()})
        found = session(**given)["last_hidden_state"]
        wanted = eager(tuned, "text_encoder", given, updates)["last_hidden_state"]
        assert_close(found, wanted, rel_l2=3e-3, label="a LoRA on the new weights")
        session.set_adapters({})
        assert np.array_equal(session(**given)["last_hidden_state"], plain)
    assert [path.name for path in engine.parent.iterdir()] == [engine.name]


def eager(checkpoint: Path, name: str, given: dict[str, Any], updates: dict[str, LowRank]) -> dict[str, Any]:
    """What PyTorch computes, with updates in its weights."""
    from fastdiff.build.capture import run_eager
    from fastdiff.build.checkpoint import load_checkpoint

    source = load_checkpoint(checkpoint)
    spec = module_spec(name, source.spec)
    part = source.load(spec.part)
    add_to(part, updates)
    return run_eager(spec.wrap(part), spec.inputs, spec.outputs, given)


def test_progress(engine: Path, tiny_checkpoint: Path) -> None:
    stages: list[Stage] = []
    with pytest.raises(StopError):
        refit_engine(tiny_checkpoint, engine, progress=lambda stage: stop_after(stages, stage))
    assert [(stage.module, stage.stage) for stage in stages] == [
        ("text_encoder", "load"),
        ("text_encoder", "capture"),
        ("text_encoder", "compile"),
    ]
    assert stages[-1].total == 8


class StopError(Exception):
    pass


def stop_after(stages: list[Stage], stage: Stage) -> None:
    stages.append(stage)
    if stage.stage == "compile":
        raise StopError


def test_failure_leaves_the_old_engine(
    engine: Path, tuned: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As TensorRT 11.3 is known to: a refitted plan that computes something else."""
    before = open_engine(engine).engine_hash

    def keep_old_weights(plan: Path, network: Path, refitted: Path) -> None:
        refitted.write_bytes(plan.read_bytes())

    monkeypatch.setattr(machine.api, "refit", keep_old_weights)
    with pytest.raises(VerificationError, match="text_encoder: relative L2 error"):
        refit_engine(tuned, engine)
    assert open_engine(engine).engine_hash == before
    assert [path.name for path in engine.parent.iterdir()] == [engine.name]


def test_checkpoint_of_another_size(engine: Path, tuned: Path, tmp_path: Path) -> None:
    from diffusers import AutoencoderKL

    wider = copy_checkpoint(tuned, tmp_path / "wider")
    config = dict(AutoencoderKL.load_config(wider / "vae"))
    AutoencoderKL.from_config({**config, "block_out_channels": (8, 16, 32)}).save_pretrained(wider / "vae")
    before = open_engine(engine).engine_hash
    with pytest.raises(CaptureError, match=r"cannot refit vae_decoder: \d+ weights are missing"):
        refit_engine(wider, engine)
    assert open_engine(engine).engine_hash == before


def test_model_of_another_kind(engine: Path, tiny_checkpoint: Path) -> None:
    import dataclasses

    from fastdiff.build.checkpoint import load_checkpoint

    source = load_checkpoint(tiny_checkpoint)
    other = dataclasses.replace(source, spec=dataclasses.replace(source.spec, hidden_size=48))
    with pytest.raises(EngineMismatchError, match=r"built for a hidden_size of 32, .* has 48"):
        refit_engine(other, engine)


def test_engine_that_was_not_built_for_it(tiny_engine: Path, tiny_checkpoint: Path) -> None:
    with pytest.raises(
        InputError, match=r"was not built to be refitted: build it again with --refit --force"
    ):
        refit_engine(tiny_checkpoint, tiny_engine)


def test_target_that_cannot(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="target 'native' cannot replace weights: use --target tensorrt"):
        build_engine(tiny_checkpoint, tmp_path / "tiny.fd", refit=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("target", "precision"), [("onnxruntime", None), (None, "bf16")])
def test_target_and_precision_are_the_engines(
    engine: Path, tiny_checkpoint: Path, target: str | None, precision: str | None
) -> None:
    found = "tensorrt" if target else "fp16"
    words = f"of text_encoder is {found}, not {target or precision}: leave --(target|precision) out"
    with pytest.raises(InputError, match=words):
        refit_engine(tiny_checkpoint, engine, target=target, precision=precision)


@pytest.mark.parametrize("option", [("--height", "48"), ("--batch", "2")])
def test_options_that_refitting_cannot_change(
    engine: Path, tiny_checkpoint: Path, option: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["build", str(tiny_checkpoint), "-o", str(engine), "--refit", *option]) == 2
    assert f"--refit keeps all but its weights, so leave out {option[0]}" in capsys.readouterr().err
