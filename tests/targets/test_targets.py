"""The targets that exist: choosing them, what they need, and what they compute."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from fastdiff.config import MODULES, Precision
from fastdiff.engine_dir import open_engine
from fastdiff.errors import EngineDamagedError, EngineMismatchError, InputError, TargetError
from fastdiff.manifest import ModuleEntry
from fastdiff.targets import (
    TARGETS,
    Availability,
    cuda,
    default_precision,
    get_target,
    require_target,
    resolve_target,
    runs_on_gpu,
)
from tests.checkpoints import copy_checkpoint
from tests.compare import assert_close

ROOT = Path(__file__).parent.parent.parent
CPU_TARGETS = ("native", "onnxruntime", "torch")
SIZES = {"batch": 3, "height": 6, "width": 10, "tokens": 11}


@pytest.fixture(scope="session")
def torch_engine(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from fastdiff.build.build import build_engine

    return build_engine(tiny_checkpoint, tmp_path_factory.mktemp("torch") / "tiny.fd", target="torch").path


def random_arrays(engine: Path, name: str) -> dict[str, np.ndarray[Any, Any]]:
    from fastdiff.build.modules import module_spec, random_inputs

    return random_inputs(module_spec(name, open_engine(engine).manifest.model), SIZES, seed=3, vocab_size=100)


@pytest.mark.parametrize(("ok", "wanted"), [(True, "cuda"), (False, "native")])
def test_auto_is_cuda_where_it_runs(monkeypatch: pytest.MonkeyPatch, ok: bool, wanted: str) -> None:
    monkeypatch.setattr(cuda, "availability", lambda: Availability(ok, "a test"))
    assert resolve_target("auto") == wanted


@pytest.mark.parametrize("name", CPU_TARGETS)
def test_targets_work_here(name: str) -> None:
    available = require_target(name).availability()
    assert available.ok
    assert available.reason, "says which version is there"


def test_unknown_target() -> None:
    with pytest.raises(InputError, match=f"unknown target 'onnx': known are auto, {', '.join(TARGETS)}"):
        resolve_target("onnx")


@pytest.mark.parametrize(
    ("name", "package", "fix"),
    [("onnxruntime", "onnxruntime", "onnxruntime"), ("torch", "diffusers", "build")],
)
def test_missing_package_says_how_to_install(
    name: str, package: str, fix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda wanted: None if wanted == package else find(wanted)
    )
    with pytest.raises(TargetError, match=rf"{package}.*pip install 'fastdiff\[{fix}\]'"):
        require_target(name)


def test_engine_of_a_missing_target_is_refused(tiny_engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda wanted: None)
    with pytest.raises(EngineMismatchError, match=r"onnxruntime.*pip install 'fastdiff\[onnxruntime\]'"):
        open_engine(tiny_engine)
    with pytest.raises(TargetError, match="pip install"):
        open_engine(tiny_engine, check_machine=False).open_module("unet")


@pytest.mark.parametrize("name", MODULES)
def test_targets_agree(tiny_engine: Path, torch_engine: Path, name: str) -> None:
    arrays = random_arrays(tiny_engine, name)
    with open_engine(torch_engine).open_module(name) as reference:
        wanted = reference(**arrays)
    with open_engine(tiny_engine).open_module(name, threads=1) as session:
        found = session(**arrays)
        again = session(**arrays)
    assert list(found) == list(wanted)
    for key, value in wanted.items():
        assert value.dtype == found[key].dtype == np.float32
        assert_close(found[key], value, rel_l2=1e-5, label=f"{name}.{key}")
        np.testing.assert_array_equal(again[key], found[key])


def test_batch_is_not_limited_by_the_capture(tiny_engine: Path) -> None:
    """The graph was captured for batches below 64; the compiled module takes any."""
    engine = open_engine(tiny_engine)
    with engine.open_module("vae_decoder") as session:
        latents = np.random.default_rng(0).standard_normal((70, 4, 2, 3), np.float32)
        together = session(latent_sample=latents)["sample"]
        assert_close(together[66:], session(latent_sample=latents[66:])["sample"], rel_l2=1e-5)


def test_thread_counts_agree(tiny_engine: Path) -> None:
    engine = open_engine(tiny_engine)
    arrays = random_arrays(tiny_engine, "unet")
    results = [engine.open_module("unet", threads)(**arrays)["sample"] for threads in (1, 2, None)]
    for result in results[1:]:
        assert_close(result, results[0], rel_l2=1e-6)


def test_damaged_model_is_an_engine_error_even_without_hashes(tiny_engine: Path, tmp_path: Path) -> None:
    folder = copy_checkpoint(tiny_engine, tmp_path / "tiny.fd")
    file = folder / "unet.onnx"
    file.write_bytes(bytes(file.stat().st_size))
    with pytest.raises(EngineDamagedError, match=r"refuses unet\.onnx"):
        open_engine(folder, verify_hashes=False).open_module("unet")


def test_damaged_weights_of_the_torch_target(torch_engine: Path, tmp_path: Path) -> None:
    folder = copy_checkpoint(torch_engine, tmp_path / "tiny.fd")
    file = folder / "torch/unet/diffusion_pytorch_model.safetensors"
    file.write_bytes(bytes(file.stat().st_size))
    with pytest.raises(EngineDamagedError, match="corrupted"):
        open_engine(folder, verify_hashes=False).open_module("unet")


def test_vae_is_stored_once_for_torch(torch_engine: Path) -> None:
    engine = open_engine(torch_engine)
    assert engine.entry("vae_decoder").files == engine.entry("vae_encoder").files


RUN = """
import sys
import numpy as np
from fastdiff.engine_dir import open_engine
engine = open_engine(sys.argv[1])
engine.open_module("vae_decoder")(latent_sample=np.zeros((1, 4, 4, 4), np.float32))
loaded = {"torch", "diffusers", "transformers", "onnx", "onnxscript"} & set(sys.modules)
assert not loaded, loaded
"""


def test_onnxruntime_engine_runs_without_pytorch(tiny_engine: Path) -> None:
    command = [sys.executable, "-c", RUN, str(tiny_engine)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("name", TARGETS)
def test_importing_a_target_imports_no_vendor_library(name: str) -> None:
    code = f"import sys, {TARGETS[name]}; assert not {{'torch', 'onnxruntime', 'onnx'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_targets_are_modules() -> None:
    assert all(isinstance(get_target(name), ModuleType) for name in TARGETS)


@pytest.mark.parametrize(
    ("name", "device", "wanted"),
    [
        ("native", None, Precision.FP32),
        ("torch", None, Precision.FP32),
        ("onnxruntime", None, Precision.FP32),
        ("onnxruntime", "cuda", Precision.FP16),
        ("tensorrt", None, Precision.FP16),
        ("cuda", None, Precision.FP16),
    ],
)
def test_what_a_target_takes_unasked(name: str, device: str | None, wanted: Precision) -> None:
    assert default_precision(name, device) == wanted


@pytest.mark.parametrize(
    ("target", "requires", "wanted"),
    [
        ("native", {}, False),
        ("onnxruntime", {}, False),
        ("onnxruntime", {"device": "cuda"}, True),
        ("cuda", {}, True),
        ("tensorrt", {}, True),
    ],
)
def test_which_modules_run_on_a_gpu(target: str, requires: dict[str, str], wanted: bool) -> None:
    entry = ModuleEntry(target, Precision.FP16, (), (), {}, {}, 0, {}, 0.0, requires=requires)
    assert runs_on_gpu(entry) is wanted
