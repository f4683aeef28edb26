"""The target from a captured module to pictures: on the CPU as far as it goes there, on a GPU all of it."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastdiff.config import Precision
from fastdiff.denoise import Denoiser
from fastdiff.errors import EngineDamagedError, InputError, NumericError, TargetError
from fastdiff.manifest import ModuleEntry
from fastdiff.samplers import (
    Estimate,
    Generator,
    Langevin,
    Linear,
    NoiseSchedule,
    StepTable,
    Threshold,
    Variance,
    make_table,
    sample,
)
from fastdiff.targets import CompileOptions, cuda
from fastdiff.targets.cuda import compiler, session
from fastdiff.targets.cuda.compiler import Machine, compile_module
from fastdiff.targets.cuda.session import CHECK_FINITE, CudaSession, open_session
from fastdiff.targets.gpu import Gpu
from tests.compare import assert_close, relative_l2
from tests.targets.cuda.models import CPU, arrays_of, expected, lowered, model, sizes_of


def once(function: Callable[[], Any]) -> float:
    """A clock for which everything takes as long."""
    function()
    return 1.0


def entry_of(name: str, files: tuple[str, ...], precision: Precision) -> ModuleEntry:
    spec = model(name).spec
    hashes = dict.fromkeys(files, "0" * 64)
    return ModuleEntry("cuda", precision, spec.inputs, spec.outputs, spec.shapes, hashes, 0, {}, 0.0)


def compiled(
    name: str,
    folder: Path,
    precision: Precision = Precision.FP32,
    timer: Callable[[Any], float] = once,
    **options: Any,
) -> tuple[ModuleEntry, Any]:
    """A module of tests/published.py, compiled for the CPU."""
    folder.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiler, "lower_module", lambda module: lowered(name))
        result = compile_module(
            model(name), folder, CompileOptions(precision, **options), Machine(CPU, 0, timer)
        )
    return entry_of(name, result.files, precision), result


@pytest.mark.parametrize("name", ["sd15", "vae_decoder", "clip_pooled", "sdxl"])
def test_a_compiled_module_is_the_module(tmp_path: Path, name: str) -> None:
    entry, result = compiled(name, tmp_path, sizes=sizes_of(model(name), 0))
    assert result.tactics["implementations"]
    assert result.requires == {}  # of a CPU
    with open_session(tmp_path, model(name).name, entry, CPU) as opened:
        for step in (0, 1, 2, 0):
            arrays = arrays_of(name, step)
            for output, wanted in expected(name, arrays).items():
                assert_close(opened(**arrays)[output], wanted, rel_l2=1e-5, label=output)


def test_what_is_faster_together_is_fused(tmp_path: Path) -> None:
    def timer(function: Any) -> float:
        function()
        call = function.args[0]
        bare = call.node.op == "conv2d" and all(x is None for x in call.inputs[1:])
        return 0.1 if bare and "bias" not in call.weights else 1.0

    _, plain = compiled("vae_decoder", tmp_path / "plain", sizes={"batch": 1, "height": 4, "width": 6})
    _, fused = compiled(
        "vae_decoder", tmp_path / "fused", timer=timer, sizes={"batch": 1, "height": 4, "width": 6}
    )
    assert not any(name.startswith("add_") for name in plain.tactics["implementations"])
    assert fused.tactics["implementations"]["add_group_norm_silu: torch"] > 20
    entry = entry_of("vae_decoder", fused.files, Precision.FP32)
    with open_session(tmp_path / "fused", "vae_decoder", entry, CPU) as opened:
        arrays = arrays_of("vae_decoder")
        wanted = expected("vae_decoder", arrays)["sample"]
        assert_close(opened(**arrays)["sample"], wanted, rel_l2=1e-5)


@pytest.fixture(scope="module")
def unet(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ModuleEntry]:
    folder = tmp_path_factory.mktemp("cuda") / "sd15"
    entry, _ = compiled("sd15", folder)
    return folder, entry


def states(guided: bool) -> np.ndarray[Any, Any]:
    return np.random.default_rng(1).standard_normal((4 if guided else 2, 7, 24)).astype(np.float32)


@pytest.mark.parametrize("sampler", ["ddim", "pndm", "euler", "dpmpp_2m"])
@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_the_loop_is_the_loop(unet: tuple[Path, ModuleEntry], sampler: str, guidance: float) -> None:
    """All steps through the session's stages, against the plain loop around single calls of the session."""
    schedule = NoiseSchedule.from_config({"_class_name": "DDIMScheduler"})
    table = make_table(sampler, schedule, 6, eta=0.7 if sampler == "ddim" else 0.0)
    start = Generator(3).randn((2, 4, 16, 24)) * np.float32(table.init_noise_sigma)
    prompt = states(guidance != 1)
    with open_session(*unet[:1], "unet", unet[1], CPU) as opened:

        def denoise(x: Any, timestep: float, guided: bool) -> tuple[Any, Any]:
            both = np.concatenate([x, x]) if guided else x
            step = np.float32(timestep)
            output = opened(sample=both, timestep=step, encoder_hidden_states=prompt)["sample"]
            return (output[2:], output[:2]) if guided else (output, None)

        wanted = sample(table, denoise, start, guidance=guidance, noise=Generator(5))
        seen: list[int] = []
        found = opened.sample(
            table,
            start,
            {"encoder_hidden_states": prompt},
            guidance,
            Generator(5),
            lambda step, total, latents: seen.append(step),
        )
        assert_close(found, wanted, rel_l2=2e-5)
        assert seen == list(range(1, table.evaluations + 1))


def test_which_tables_the_session_runs_itself(unet: tuple[Path, ModuleEntry]) -> None:
    """One dynamic threshold, and steps without guidance among others; the latter compute both halves."""
    schedule = NoiseSchedule.from_config({"_class_name": "DDIMScheduler"})
    table = make_table("ddim", schedule, 3)
    threshold = Estimate(Linear(1.0, -0.5), 0.5, threshold=Threshold(0.9, 2.0))

    def changed(**fields: object) -> StepTable:
        return dataclasses.replace(
            table, steps=tuple(dataclasses.replace(step, **fields) for step in table.steps)
        )

    with open_session(*unet[:1], "unet", unet[1], CPU) as opened:
        runs = [table, changed(estimate=threshold), table.with_guidance((None, 1.0, None))]
        assert all(opened.runs(each, 3.0) for each in runs)
        assert not opened.runs(changed(langevin=Langevin(0.1)), 3.0)
        assert not opened.runs(changed(variance=Variance()), 3.0)
        # On a CPU the step is the registered op, which has the threshold as well.
        start = Generator(3).randn((2, 4, 16, 24))
        inputs = {"encoder_hidden_states": states(True)}
        found = opened.sample(runs[1], start, inputs, 3.0, Generator(0), None)
        wanted = Denoiser(
            opened,
            {"encoder_hidden_states": states(True)[2:]},
            {"encoder_hidden_states": states(True)[:2]},
        )
        assert_close(found, sample(runs[1], wanted, start, guidance=3.0), rel_l2=2e-5)


def test_sdxls_added_conditions_reach_the_steps(tmp_path: Path) -> None:
    """Its embedding of prompt and sizes joins the timestep's: the steps read those inputs themselves."""
    entry, _ = compiled("sdxl", tmp_path)
    arrays = arrays_of("sdxl", 1)
    batch = len(arrays["sample"])
    schedule = NoiseSchedule.from_config({"_class_name": "EulerDiscreteScheduler"})
    table = make_table("euler", schedule, 3)
    rest = {name: array for name, array in arrays.items() if name not in ("sample", "timestep")}
    start = arrays["sample"] * np.float32(table.init_noise_sigma)
    with open_session(tmp_path, "unet", entry, CPU) as opened:

        def denoise(x: Any, timestep: float, guided: bool) -> tuple[Any, Any]:
            return opened(sample=x, timestep=np.full(batch, timestep, np.float32), **rest)["sample"], None

        wanted = sample(table, denoise, start)
        found = opened.sample(table, start, rest, 1.0, Generator(0), None)
        assert_close(found, wanted, rel_l2=2e-5)


def test_nan_is_found_and_its_layer_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry, _ = compiled("vae_decoder", tmp_path)
    path = tmp_path / "vae_decoder.cuda.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    node = next(n for n in document["graph"]["nodes"] if n["path"].endswith("resnets.1.conv2"))
    node["attributes"]["scale"] = 1e39  # beyond float32
    path.write_text(json.dumps(document), encoding="utf-8")
    arrays = arrays_of("vae_decoder")
    with open_session(tmp_path, "vae_decoder", entry, CPU) as opened:
        assert not np.isfinite(opened(**arrays)["sample"]).all()
    monkeypatch.setenv(CHECK_FINITE, "1")
    with (
        open_session(tmp_path, "vae_decoder", entry, CPU) as opened,
        pytest.raises(NumericError, match=rf"conv2d in {node['path']} "),
    ):
        opened(**arrays)


def test_halves_are_as_close_as_pytorchs(tmp_path: Path) -> None:
    entry, result = compiled("vae_decoder", tmp_path, Precision.FP16)
    assert result.tactics["scaled"] == {"values": 0, "largest": 0, "islands": 0}
    arrays = arrays_of("vae_decoder")
    with open_session(tmp_path, "vae_decoder", entry, CPU) as opened:
        found = opened(**arrays)["sample"]
    assert found.dtype == np.float32
    assert 1e-5 < relative_l2(found, expected("vae_decoder", arrays)["sample"]) < 1e-2


def test_an_entry_that_names_other_inputs_is_refused(unet: tuple[Path, ModuleEntry]) -> None:
    folder, entry = unet
    other = dataclasses.replace(entry, inputs=entry.inputs[:2])
    with pytest.raises(EngineDamagedError, match="the manifest says otherwise; build the engine again"):
        open_session(folder, "unet", other, CPU)


def test_tensors_in_and_out(tmp_path: Path) -> None:
    """As arrays, without the host: results are those of the last call."""
    entry, _ = compiled("vae_decoder", tmp_path)
    with open_session(tmp_path, "vae_decoder", entry, CPU) as opened:
        for step in (0, 1, 0):
            arrays = arrays_of("vae_decoder", step)
            found = opened.run_tensors({name: torch.from_numpy(array) for name, array in arrays.items()})
            assert_close(found["sample"], opened(**arrays)["sample"], max_abs=0.0)


def test_a_closed_session_says_so(unet: tuple[Path, ModuleEntry]) -> None:
    opened = open_session(unet[0], "unet", unet[1], CPU)
    opened.close()
    with pytest.raises(InputError, match="has been closed"):
        opened(**arrays_of("sd15"))


def test_without_a_gpu_it_says_what_is_missing(tmp_path: Path) -> None:
    if cuda.availability().ok:
        pytest.skip("this machine has a GPU")
    available = cuda.availability()
    assert "NVIDIA" in available.reason
    assert available.fix
    entry = entry_of("sd15", ("unet.cuda.json",), Precision.FP16)
    with pytest.raises(TargetError, match="target 'cuda' cannot run here: "):
        cuda.open(tmp_path, "unet", entry, None)


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    found = cuda.importlib.util.find_spec
    monkeypatch.setattr(
        cuda.importlib.util, "find_spec", lambda name: None if name == "triton" else found(name)
    )
    available = cuda.availability()
    assert not available.ok
    assert available.reason == "not installed: triton"
    assert "fastdiff[cuda]" in available.fix


def test_cuda_core_is_needed_and_in_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of an opened engine all Triton kernels are launched through it."""
    found = importlib.util.find_spec

    def without(name: str) -> Any:
        if name == "cuda.core":
            raise ModuleNotFoundError("No module named 'cuda'")
        return found(name)

    monkeypatch.setattr(cuda.importlib.util, "find_spec", without)
    assert cuda.availability().reason == "not installed: cuda-core"
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())
    extra = project["project"]["optional-dependencies"]["cuda"]
    assert any(requirement.startswith("cuda-core") for requirement in extra)


@pytest.mark.parametrize(
    ("gpus", "torch_version", "wanted"),
    [
        ((), "2.13.0", "there is no NVIDIA driver"),
        ((Gpu(0, "NVIDIA H200", "9.0"),), "2.13.0+cpu", "PyTorch 2.13.0+cpu is built without CUDA"),
        ((Gpu(0, "Tesla T4", "7.5"),), "2.13.0", "Tesla T4 has compute capability 7.5, wanted 8.0 or newer"),
        ((Gpu(0, "NVIDIA H200", "9.0"),), "2.11.0+cu130", None),
        ((Gpu(0, "NVIDIA B200", "10.0"),), "2.13.0", None),
    ],
)
def test_what_a_machine_has(
    monkeypatch: pytest.MonkeyPatch, gpus: tuple[Gpu, ...], torch_version: str, wanted: str | None
) -> None:
    versions = {"torch": torch_version, "triton": "3.6.0"}
    monkeypatch.setattr(cuda, "find_gpus", lambda: (gpus, "there is no NVIDIA driver"))
    monkeypatch.setattr(cuda.importlib.metadata, "version", versions.__getitem__)
    available = cuda.availability()
    if wanted is None:
        assert available.ok
        assert gpus[0].name in available.reason
    else:
        assert available.reason == wanted
        assert available.fix


def test_an_engine_for_another_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = entry_of("sd15", ("unet.cuda.json",), Precision.FP16)
    built = dataclasses.replace(entry, requires={"compute_capability": "8.0", "gpu": "NVIDIA A100"})
    monkeypatch.setattr(cuda, "find_gpus", lambda: ((Gpu(0, "NVIDIA H200", "9.0"),), ""))
    assert cuda.mismatch(built) == (
        "NVIDIA A100 (compute capability 8.0), this machine has NVIDIA H200 (9.0)"
    )
    assert cuda.mismatch(dataclasses.replace(built, requires={"compute_capability": "9.0"})) is None


gpu = pytest.mark.gpu


@gpu
@pytest.mark.parametrize(
    ("name", "precision", "tuned"),
    [
        ("scenes_unet", Precision.FP16, True),
        ("scenes_vae_decoder", Precision.FP16, True),
        ("scenes_text_encoder", Precision.BF16, True),
        # compiling every candidate takes a minute: once per kind of module is enough
        *(
            (name, precision, False)
            for name in ("sd15", "sdxl", "vae_decoder")
            for precision in cuda.PRECISIONS
        ),
    ],
)
def test_gpu_a_module_is_as_close_as_pytorchs(
    tmp_path: Path, name: str, precision: Precision, tuned: bool
) -> None:
    module = model(name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiler, "lower_module", lambda captured: lowered(name))
        options = CompileOptions(precision, sizes=sizes_of(module, 0) if tuned else {})
        result = compile_module(module, tmp_path, options)
    entry = entry_of(name, result.files, precision)
    with open_session(tmp_path, module.name, entry, torch.device("cuda", 0)) as opened:
        for step in (0, 1, 0):
            arrays = arrays_of(name, step)
            for output, wanted in expected(name, arrays).items():
                found = opened(**arrays)[output]
                limit = {Precision.FP16: 1e-2, Precision.BF16: 8e-2, Precision.FP32: 1e-4}[precision]
                assert_close(found, wanted, rel_l2=limit, label=f"{output} at step {step}")


@gpu
def test_gpu_opening_compiles_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import triton

    module = model("scenes_unet")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiler, "lower_module", lambda captured: lowered("scenes_unet"))
        options = CompileOptions(Precision.FP16, sizes=sizes_of(module, 0))
        result = compile_module(module, tmp_path, options)
    compilations: list[str] = []
    compile_kernel = triton.compile
    monkeypatch.setattr(
        triton, "compile", lambda *a, **k: compilations.append(str(a[0])) or compile_kernel(*a, **k)
    )
    device = torch.device("cuda", 0)
    entry = entry_of("scenes_unet", result.files, Precision.FP16)
    with open_session(tmp_path, module.name, entry, device) as opened:
        for step in (0, 1, 2):
            opened(**arrays_of("scenes_unet", step))
    assert compilations == []


@gpu
def test_gpu_a_loop_without_waiting_equals_one_with(tmp_path: Path) -> None:
    module = model("scenes_unet")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiler, "lower_module", lambda captured: lowered("scenes_unet"))
        options = CompileOptions(Precision.FP16, sizes=sizes_of(module, 0))
        result = compile_module(module, tmp_path, options)
    entry = entry_of("scenes_unet", result.files, Precision.FP16)
    arrays = arrays_of("scenes_unet", 0)
    table = make_table("dpmpp_2m", NoiseSchedule.from_config({"_class_name": "DDIMScheduler"}), 20)
    prompt = {"encoder_hidden_states": arrays["encoder_hidden_states"]}
    with open_session(tmp_path, module.name, entry, torch.device("cuda", 0)) as opened:
        assert isinstance(opened, CudaSession)
        free = opened.sample(table, arrays["sample"], prompt, 1.0, Generator(0), None)
        seen: list[np.ndarray[Any, Any]] = []
        waited = opened.sample(
            table, arrays["sample"], prompt, 1.0, Generator(0), lambda i, n, x: seen.append(x.copy())
        )
        assert np.isfinite(free).all()
        assert_close(free, waited, max_abs=0.0)
        assert len(seen) == 20
        assert_close(seen[-1], waited, max_abs=0.0)
    session._graphs.cache_clear()
