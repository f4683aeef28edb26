"""Whole builds: what they record, how they fail, and that a failure leaves nothing."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from fastdiff.build import verify as verification
from fastdiff.build.build import BuildSummary, Stage, build_engine
from fastdiff.build.verify import verify_engine
from fastdiff.config import MODULES, Precision
from fastdiff.engine_dir import open_engine
from fastdiff.errors import (
    CheckpointError,
    EngineMismatchError,
    FastdiffError,
    InputError,
    OutputError,
    TargetError,
    VerificationError,
)
from fastdiff.targets import torch as torch_target
from tests.checkpoints import SCHEDULER, copy_checkpoint, make_checkpoint

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="session")
def torch_build(
    tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[BuildSummary, list[Stage]]:
    """A build for the target that needs no capture, with other default sizes and what it announced."""
    stages: list[Stage] = []
    output = tmp_path_factory.mktemp("torch") / "tiny.fd"
    summary = build_engine(
        tiny_checkpoint, output, target="torch", height=48, width=64, batch=2, progress=stages.append
    )
    return summary, stages


@pytest.mark.parametrize("name", MODULES)
def test_modules_are_recorded(tiny_engine: Path, name: str) -> None:
    entry = open_engine(tiny_engine).entry(name)
    assert entry.target == "onnxruntime"
    assert entry.precision is Precision.FP32
    assert 0 < entry.error["relative_l2"] < 1e-5
    assert entry.error["max_abs"] > 0
    assert entry.seconds > 0
    assert entry.bytes == sum((tiny_engine / file).stat().st_size for file in entry.files)
    assert entry.requires == {}, "a portable ONNX file runs on any machine"


def test_engine_is_complete(tiny_engine: Path, tiny_checkpoint: Path) -> None:
    manifest = open_engine(tiny_engine).manifest
    assert set(manifest.modules) == set(MODULES)
    assert manifest.scheduler == SCHEDULER
    assert manifest.model.default_height == 32
    assert {file.name for file in (tiny_engine / "tokenizer").iterdir()} == {
        "vocab.json",
        "merges.txt",
        "tokenizer_config.json",
        "special_tokens_map.json",
    }
    assert not list(tiny_engine.glob("*.exported*")), "intermediate files do not stay"
    provenance = manifest.provenance
    assert provenance["checkpoint"]["name"] == tiny_checkpoint.name
    assert not provenance["checkpoint"]["shipped"]
    assert provenance["libraries"]["torch"] == torch.__version__
    assert provenance["fastdiff"]["version"]
    assert provenance["machine"]["architecture"] == os.uname().machine
    assert provenance["machine"]["isa"]


def test_summary_and_defaults(torch_build: tuple[BuildSummary, list[Stage]]) -> None:
    summary, _ = torch_build
    engine = open_engine(summary.path)
    assert summary.engine_hash == engine.engine_hash
    assert [module.name for module in summary.modules] == list(MODULES)
    assert all(module.relative_l2 == 0 for module in summary.modules)
    assert summary.seconds >= sum(module.seconds for module in summary.modules)
    model = engine.manifest.model
    assert (model.default_height, model.default_width, model.default_batch) == (48, 64, 2)


def test_progress_announces_every_stage(torch_build: tuple[BuildSummary, list[Stage]]) -> None:
    _, stages = torch_build
    assert [stage.index for stage in stages] == list(range(16))
    assert {stage.total for stage in stages} == {16}
    assert [(stage.module, stage.stage) for stage in stages[:5]] == [
        ("text_encoder", "load"),
        ("text_encoder", "capture"),
        ("text_encoder", "compile"),
        ("text_encoder", "verify"),
        ("unet", "load"),
    ]


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"target": "abacus"}, InputError, "unknown target 'abacus'"),
        ({"target": "cuda"}, TargetError, "cannot run here: "),
        ({"precision": "bf16"}, InputError, "no precision bf16: use fp32, fp16, or --target cuda"),
        (
            {"precision": "fp16", "target": "onnxruntime"},
            InputError,
            "target 'onnxruntime' has no precision fp16: use fp32, or --target native",
        ),
        ({"memory": 0.9}, InputError, "memory is 0.9: give 1 or more"),
        ({"memory": math.nan}, InputError, "memory is nan: give 1 or more"),
        ({"precision": "fp7"}, InputError, "unknown precision 'fp7'"),
        ({"height": 38}, InputError, "height is 38: it must be a multiple of 4 and at least 16; try 36"),
        ({"width": 0}, InputError, "width is 0.*try 16"),
        ({"width": -8}, InputError, "width is -8"),
        ({"height": 8}, InputError, "height is 8.*at least 16"),
        ({"batch": 0}, InputError, "batch is 0"),
    ],
    ids=str,
)
def test_bad_arguments(
    tiny_checkpoint: Path, tmp_path: Path, arguments: dict[str, Any], error: type[FastdiffError], words: str
) -> None:
    with pytest.raises(error, match=words):
        build_engine(tiny_checkpoint, tmp_path / "x.fd", **arguments)
    assert list(tmp_path.iterdir()) == []


def test_existing_output_is_refused_before_any_work(tiny_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "x.fd").mkdir()
    stages: list[Stage] = []
    with pytest.raises(OutputError, match="exists"):
        build_engine(tiny_checkpoint, tmp_path / "x.fd", progress=stages.append)
    assert stages == []


def test_damaged_checkpoint_leaves_nothing(tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = copy_checkpoint(tiny_checkpoint, tmp_path / "checkpoint")
    weights = folder / "unet/diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="truncated"):
        build_engine(folder, tmp_path / "x.fd", target="torch")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_interrupt_leaves_nothing(tiny_checkpoint: Path, tmp_path: Path) -> None:
    def interrupt(stage: Stage) -> None:
        if stage.module == "unet":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_engine(tiny_checkpoint, tmp_path / "x.fd", target="torch", progress=interrupt)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("factor", [1.001, float("nan")])
def test_wrong_results_fail_the_build(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, factor: float
) -> None:
    """A target that loses a little of one weight, or makes its output NaN."""
    run = torch_target._TorchSession._run

    def damage(self: Any, arrays: Any) -> Any:
        return {name: value * factor for name, value in run(self, arrays).items()}

    monkeypatch.setattr(torch_target._TorchSession, "_run", damage)
    with pytest.raises(
        VerificationError, match=r"text_encoder: relative L2 error .* allowed in fp32 is 1e-04"
    ):
        build_engine(tiny_checkpoint, tmp_path / "x.fd", target="torch")
    assert list(tmp_path.iterdir()) == []


FULL_DISK = """
import resource, sys
from fastdiff.build.build import build_engine
from fastdiff.errors import OutputError
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), resource.RLIM_INFINITY))
try:
    build_engine(sys.argv[1], sys.argv[2], target="torch")
except OutputError as error:
    print(error)
"""


def test_full_disk_leaves_nothing(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """The system refuses to write past a limit, which the second module's weights reach."""
    command = [sys.executable, "-W", "ignore", "-c", FULL_DISK, str(tiny_checkpoint), str(tmp_path / "x.fd")]
    result = subprocess.run([*command, "200000"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert "no space left" in result.stdout, result.stderr
    assert list(tmp_path.iterdir()) == []


def test_verify_measures_again(tiny_engine: Path, tiny_checkpoint: Path) -> None:
    engine = open_engine(tiny_engine)
    errors = verify_engine(engine, tiny_checkpoint)
    assert set(errors) == set(MODULES)
    for name, error in errors.items():
        assert error.relative_l2 == pytest.approx(engine.entry(name).error["relative_l2"], rel=0.5)
    assert verify_engine(engine) == {}, "built from a folder, and none is given"


def test_verify_refuses_another_checkpoint(tiny_engine: Path, tmp_path: Path) -> None:
    other = make_checkpoint(tmp_path / "other", seed=1)
    with pytest.raises(EngineMismatchError, match="built from another checkpoint"):
        verify_engine(open_engine(tiny_engine), other)


def test_verify_uses_the_shipped_checkpoint_that_is_recorded(
    torch_build: tuple[BuildSummary, list[Stage]],
    tiny_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from fastdiff import zoo

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(zoo, "resolve", {"tiny": tiny_checkpoint}.__getitem__)
    engine = open_engine(build_engine("tiny", "out.fd", target="torch").path)
    assert engine.manifest.provenance["checkpoint"]["name"] == "tiny"
    assert set(verify_engine(engine)) == set(MODULES)


def test_verify_fails_over_the_tolerance(
    torch_build: tuple[BuildSummary, list[Stage]], tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verification, "_error", lambda result, expected: (2e-4, 1.0))
    with pytest.raises(VerificationError, match=r"2\.00e-04"):
        verify_engine(open_engine(torch_build[0].path), tiny_checkpoint)
