"""``fastdiff build --target onnxruntime --device cuda``: the whole build, with the CPU in the GPU's place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from fastdiff.build import verify
from fastdiff.config import Precision
from fastdiff.engine_dir import open_engine
from fastdiff.errors import EngineMismatchError, InputError, TargetError, VerificationError
from fastdiff.manifest import ModuleEntry
from fastdiff.targets import Availability, computes_in, require_target
from fastdiff.targets import onnxruntime as target
from fastdiff.targets.onnxruntime import CudaSession
from tests.builds import build_captured
from tests.compare import relative_l2
from tests.lora.made_up import random_updates
from tests.targets.onnxruntime.standard import on_the_cpu

MODULES = ("text_encoder", "vae_decoder")
HERE = Availability(True, "pretended")


@pytest.fixture
def pretended_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Open what was made for CUDA on the CPU, its operators written in standard ones."""

    def open_on_cuda(folder: Path, name: str, entry: ModuleEntry, *rest: Any) -> CudaSession:
        return CudaSession(folder, name, entry, f"{name}.onnx", lambda file: on_the_cpu(folder / file))

    monkeypatch.setattr(target, "_cuda_availability", lambda: HERE)
    monkeypatch.setattr(target, "_open_on_cuda", open_on_cuda)


@pytest.mark.usefixtures("pretended_gpu")
def test_build_and_open(tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options: dict[str, Any] = {"target": "onnxruntime", "precision": "fp16", "modules": MODULES}
    engine = build_captured(tiny_checkpoint, tmp_path / "tiny.fd", device="cuda", **options)
    opened = open_engine(engine)
    for name in MODULES:
        entry = opened.entry(name)
        assert entry.requires == {"device": "cuda"}
        assert entry.precision == Precision.FP16
        assert 1e-5 < entry.error["relative_l2"] < 1e-2, "the error of halves, not of float32"
        adaptable = [f"{name}.lora.onnx", f"{name}.parameters.json"] if name == "text_encoder" else []
        assert sorted(entry.files) == sorted([f"{name}.onnx", *adaptable])
    with opened.open_module("text_encoder", 1) as session:
        ids = np.arange(77).reshape(1, 77)
        inputs = {"input_ids": ids, "added_embeds": np.zeros((1, 77, session.inputs[1].shape[2]), np.float32)}
        plain = session(**inputs)["last_hidden_state"]
        updates = random_updates(session.adaptable(), 2, seed=1)
        session.set_adapters({path: [update] for path, update in updates.items()})
        assert relative_l2(session(**inputs)["last_hidden_state"], plain) > 0.1
        session.set_adapters({})
        assert np.array_equal(session(**inputs)["last_hidden_state"], plain)
    monkeypatch.setattr(target, "_cuda_availability", lambda: Availability(False, "no CUDA", "get it"))
    with pytest.raises(EngineMismatchError, match="text_encoder was built for CUDA, but no CUDA; get it"):
        open_engine(engine)


@pytest.mark.usefixtures("pretended_gpu")
def test_yardstick_is_pytorch_in_halves(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A module that is further off than twice PyTorch's error in the same type is refused."""
    options: dict[str, Any] = {"target": "onnxruntime", "precision": "fp16", "modules": ("text_encoder",)}
    run = CudaSession._run

    def worse(self: CudaSession, arrays: dict[str, Any]) -> dict[str, Any]:
        return {name: value * 1.02 for name, value in run(self, arrays).items()}

    monkeypatch.setattr(CudaSession, "_run", worse)
    with pytest.raises(VerificationError, match=r"text_encoder: relative L2 error .* allowed in fp16"):
        build_captured(tiny_checkpoint, tmp_path / "tiny.fd", device="cuda", **options)
    assert not (tmp_path / "tiny.fd").exists()


def test_devices_and_precisions() -> None:
    words = "target 'onnxruntime' has no precision fp32 on cuda: use fp16"
    with pytest.raises(InputError, match=words):
        require_target("onnxruntime", Precision.FP32, "cuda")
    with pytest.raises(InputError, match="target 'onnxruntime' has no device 'tpu': use cpu or cuda"):
        require_target("onnxruntime", Precision.FP32, "tpu")
    words = "target 'native' compiles for one kind of device: leave --device out, or use --target onnxruntime"
    with pytest.raises(InputError, match=words):
        require_target("native", Precision.FP32, "cuda")
    assert require_target("onnxruntime", Precision.FP32, "cpu") is target


def test_cuda_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(TargetError, match="without CUDA, wanted the package onnxruntime-gpu; install it"):
        require_target("onnxruntime", Precision.FP16, "cuda")


def test_who_computes_in_halves() -> None:
    """The native target stores halves and computes in float32: its yardstick is another."""
    assert computes_in("onnxruntime", Precision.FP16)
    assert not computes_in("onnxruntime", Precision.FP32)
    assert not computes_in("native", Precision.FP16)
    assert set(verify._TYPES) == {Precision.FP16, Precision.BF16}
