"""The target from a checkpoint to a picture on stand-ins of TensorRT and the GPU, and all that it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastdiff
from fastdiff.build.modules import module_spec, random_inputs
from fastdiff.config import MODULES
from fastdiff.engine_dir import open_engine
from fastdiff.errors import CaptureError, EngineDamagedError, EngineMismatchError, InputError, TargetError
from fastdiff.targets import require_target
from fastdiff.targets.gpu import Gpu
from fastdiff.targets.tensorrt import availability
from tests.checkpoints import copy_checkpoint
from tests.compare import assert_close
from tests.targets.tensorrt.conftest import H200, VERSION, Built, Machine

SIZES = {"batch": 2, "height": 6, "width": 10, "tokens": 40}


@pytest.mark.parametrize("name", MODULES)
def test_computes_what_pytorch_computes(built: Built, machine: Machine, tiny_engine: Path, name: str) -> None:
    engine = open_engine(built.path)
    arrays = random_inputs(module_spec(name, engine.manifest.model), SIZES, seed=3, vocab_size=100)
    with engine.open_module(name) as session, open_engine(tiny_engine).open_module(name) as reference:
        wanted = reference(**arrays)
        for _ in range(3):  # an ordinary run, a captured one, a replayed one
            found = session(**arrays)
            for key, value in wanted.items():
                assert_close(found[key], value, rel_l2=2e-3, label=f"{name}.{key}")
    assert [event[0] for event in machine.device.log] == ["run", "capture", "launch", "launch"]


def test_manifest_records_what_the_plan_is_for(built: Built) -> None:
    entry = open_engine_unchecked(built).entry("unet")
    assert entry.requires == {"gpu": H200.name, "compute_capability": "9.0", "tensorrt": VERSION}
    assert entry.tactics["refittable"] is True
    assert entry.tactics["outputs"] == ["out_sample"]
    # 32 pixels are 8 latent ones, in multiples of 2 from 4 on; guidance doubles the batch
    assert entry.tactics["profiles"] == [
        {"batch": [2, 2, 2], "height": [8, 8, 8], "width": [8, 8, 8], "tokens": [77, 77, 77]},
        {"batch": [1, 2, 4], "height": [4, 8, 16], "width": [4, 8, 16], "tokens": [1, 77, 154]},
    ]
    assert entry.shapes["height"].maximum == 16
    files = ("plan", "parameters.json", "weights.safetensors", "merge.plan")
    assert set(entry.files) == {f"unet.{file}" for file in files}
    assert set(open_engine_unchecked(built).entry("vae_decoder").files) == {"vae_decoder.plan"}
    assert sorted(path.name for path in built.path.iterdir() if path.suffix == ".onnx") == []


def open_engine_unchecked(built: Built) -> Any:
    return open_engine(built.path, check_machine=False)


def test_build_asks_for_a_workspace_that_is_there(built: Built) -> None:
    device, request = built.machine.device, built.machine.api.requests["unet"]
    assert 0.5 * device.capacity < request.workspace < device.capacity
    assert request.refittable


def test_progress_of_a_long_stage_grows(built: Built) -> None:
    fractions = [
        stage.fraction for stage in built.stages if (stage.module, stage.stage) == ("unet", "compile")
    ]
    assert fractions[0] == 0.0
    assert fractions[-1] == 1.0
    assert fractions == sorted(fractions)
    assert 0.6 in [round(fraction, 1) for fraction in fractions], "phases within a step count"


def test_timing_cache_is_beside_the_engine(built: Built) -> None:
    folder = built.path.parent / "tensorrt-timing-cache"
    (file,) = folder.glob("*.cache")
    assert file.name == "NVIDIA-H200-sm9.0-tensorrt10.16.1.11.cache"
    plans = [(name, f"{name}.merge") if name in ("unet", "text_encoder") else (name,) for name in MODULES]
    assert file.read_bytes() == b"".join(f"{name} measured;".encode() for names in plans for name in names)
    assert built.machine.api.requests["vae_encoder"].timing_cache.startswith(b"text_encoder measured;")


def test_pictures(built: Built, machine: Machine, tiny_engine: Path) -> None:
    """Three modules, one block of memory, and the picture of ONNX Runtime in float32."""
    options: dict[str, Any] = {"steps": 4, "seed": 1, "guidance": 3.0}
    wanted = fastdiff.load(tiny_engine)("a red circle", **options)
    pipeline = fastdiff.load(built.path)
    found = [pipeline("a red circle", **options) for _ in range(2)]
    for result in found:
        assert_close(result.latents, wanted.latents, rel_l2=5e-3)
    kinds = [event[0] for event in machine.device.log]
    assert kinds.count("capture") == 3, "one for each module: none became invalid"
    pipeline.close()
    assert machine.device.used() == 0
    assert not machine.device.streams
    assert not machine.device.graphs


def test_size_outside_the_profiles_is_refused_before_anything_runs(built: Built, machine: Machine) -> None:
    pipeline = fastdiff.load(built.path)
    with pytest.raises(InputError, match="height is 128: unet of this engine takes from 16 to 64"):
        pipeline("a star", height=128)
    with pytest.raises(InputError, match="3 pictures at once need a batch of 6 in unet"):
        pipeline("a star", num=3)
    assert machine.device.log == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"version": "10.16.0.72"}, "was built for TensorRT 10.16.1.11, here is 10.16.0.72; build it here"),
        (
            {"gpus": (Gpu(0, "NVIDIA L4", "8.9"),)},
            r"for NVIDIA H200 \(compute capability 9.0\), here is NVIDIA L4 \(compute capability 8.9\)",
        ),
        # the same name with another capability is another GPU
        ({"gpus": (Gpu(0, "NVIDIA H200", "9.1"),)}, r"here is NVIDIA H200 \(compute capability 9.1\)"),
        ({"gpus": ()}, "cannot run here: there is no NVIDIA GPU"),
        ({"missing": ["tensorrt"]}, r"not installed: tensorrt; .*pip install 'fastdiff\[tensorrt\]'"),
    ],
)
def test_engine_of_another_machine_is_refused(
    built: Built, machine: Machine, changes: dict[str, Any], words: str
) -> None:
    for key, value in changes.items():
        setattr(machine, key, value)
    with pytest.raises(EngineMismatchError, match=words) as caught:
        open_engine(built.path)
    assert "\n" not in str(caught.value)


def test_gpu_is_the_first_that_fits_unless_one_is_named(built: Built, machine: Machine) -> None:
    machine.gpus = (Gpu(0, "NVIDIA L4", "8.9"), Gpu(1, H200.name, "9.0"))
    from fastdiff.targets import tensorrt

    engine = open_engine(built.path)
    entry = engine.entry("text_encoder")
    tensorrt.open(built.path, "text_encoder", entry, None).close()
    tensorrt.open(built.path, "text_encoder", entry, None, device=1).close()
    with pytest.raises(EngineMismatchError, match="built for NVIDIA H200, GPU 0 is NVIDIA L4: use GPU 1"):
        tensorrt.open(built.path, "text_encoder", entry, None, device=0)
    with pytest.raises(EngineMismatchError, match="there is no GPU 7"):
        tensorrt.open(built.path, "text_encoder", entry, None, device=7)


@pytest.mark.parametrize(
    ("version", "ok"),
    [("10.0.1", False), ("10.1.0", True), ("11.4.0.106", True), ("12.0.0", False), ("", True)],
)
def test_versions(machine: Machine, version: str, ok: bool) -> None:
    machine.version = version
    available = availability()
    assert available.ok is ok
    if not ok:
        assert f"TensorRT is {version}, 10.1 to 11 are supported" in available.reason
        assert "pip install 'tensorrt>=10.1,<12'" in available.fix


def test_this_machine_says_what_is_missing() -> None:
    """Without stand-ins: either all of it is here, or the target says what is not."""
    available = availability()
    if available.ok:
        assert "TensorRT" in available.reason
        return
    with pytest.raises(TargetError, match=r"target 'tensorrt' cannot run here: .+; .+"):
        require_target("tensorrt")


def test_libraries_that_cannot_be_loaded(
    built: Built, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fastdiff.targets.tensorrt import backend

    def broken() -> None:
        raise ImportError("libnvinfer.so.10: cannot open shared object file")

    monkeypatch.setattr(backend, "api", broken)
    with pytest.raises(TargetError, match=r"TensorRT cannot be loaded \(libnvinfer.*--force-reinstall"):
        open_engine(built.path).open_module("unet")


def test_damaged_plan(built: Built, machine: Machine, tmp_path: Path) -> None:
    folder = copy_checkpoint(built.path, tmp_path / "tiny.fd")
    file = folder / "unet.plan"
    file.write_bytes(bytes(file.stat().st_size))
    with pytest.raises(EngineDamagedError, match=r"TensorRT refuses unet\.plan \(an engine cannot be made"):
        open_engine(folder, verify_hashes=False).open_module("unet")


def test_plan_of_another_module_is_noticed(built: Built, machine: Machine) -> None:
    """Its tensors would be read past the ends of the buffers."""
    from fastdiff.targets import tensorrt

    engine = open_engine(built.path)
    entry = engine.entry("vae_decoder")
    with pytest.raises(EngineDamagedError, match=r"vae_decoder\.plan has the tensors"):
        tensorrt.open(built.path, "unet", replaced(engine.entry("unet"), files=entry.files), None)


def test_tactics_that_nobody_wrote(built: Built, machine: Machine) -> None:
    from fastdiff.targets import tensorrt

    entry = open_engine(built.path).entry("unet")
    for tactics in (
        {},
        {"profiles": [], "outputs": ["out_sample"]},
        {"profiles": [{"batch": [1, 2, 3]}], "outputs": ["out_sample"]},
        {**entry.tactics, "outputs": []},
    ):
        with pytest.raises(EngineDamagedError, match="lists no plan and profiles; build it again"):
            tensorrt.open(built.path, "unet", replaced(entry, tactics=tactics), None)


def replaced(entry: Any, **changes: Any) -> Any:
    import dataclasses

    return dataclasses.replace(entry, **changes)


def test_a_build_that_tensorrt_refuses_leaves_nothing(
    machine: Machine, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    from tests.builds import build_captured

    machine.api.failure = "a plan cannot be made: no implementation for node Softmax_12"
    with pytest.raises(CaptureError, match=r"TensorRT cannot build text_encoder: .*Softmax_12"):
        build_captured(tiny_checkpoint, tmp_path / "tiny.fd", target="tensorrt")
    assert list(tmp_path.iterdir()) == []


def test_memory_that_is_full(built: Built, machine: Machine) -> None:
    machine.device.capacity = 1 << 16
    with pytest.raises(TargetError, match=r"no .* bytes left: ask for smaller or fewer pictures"):
        open_engine(built.path).open_module("unet")
    assert machine.device.used() == 0
    assert not machine.device.streams


def test_nan_stays_nan(built: Built, machine: Machine) -> None:
    """Nothing between the plan and the caller hides an overflow."""
    with open_engine(built.path).open_module("vae_decoder") as session:
        result = session(latent_sample=np.full((1, 4, 8, 8), 1e30, np.float32))["sample"]
    assert not np.isfinite(result).all()
