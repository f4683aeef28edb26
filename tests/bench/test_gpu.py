"""GPU contestants. What needs no GPU runs on the CPU through the same code, in half precision too."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastdiff.bench import gpu
from fastdiff.bench.agreement import Agreement, compare, half_limit
from fastdiff.bench.case import Case, Job
from fastdiff.bench.measure import Pace
from fastdiff.bench.models import find_models
from fastdiff.bench.suite import Request, check_request, run_suite
from fastdiff.build.checkpoint import load_checkpoint
from fastdiff.build.modules import module_spec, random_inputs
from fastdiff.errors import InputError, TargetError
from fastdiff.samplers import sample as run_loop

CASE = Case("tiny", "run", "unet", 2, 32, 48, "cuda", "fp32")


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "DEVICE", "cpu")


def job_of(checkpoint: Path, contestant: str, **changes: Any) -> Job:
    model = load_checkpoint(checkpoint).spec
    case = replace(CASE, **{key: value for key, value in changes.items() if key != "engine"})
    return Job(contestant, case, model, str(checkpoint), "", "", 2, engine=str(changes.get("engine", "")))


def outputs(job: Job) -> dict[str, Any]:
    contestant = gpu.open_gpu_contestant(job)
    contestant.load()
    spec = module_spec("unet", job.model)
    arrays = random_inputs(spec, job.case.sizes(job.model), 0)
    placed = contestant.place(arrays)
    first = contestant.fetch(contestant.run(placed))
    contestant.wait()
    second = contestant.fetch(contestant.run(placed))
    assert compare(first, second).value == 0.0, "placed inputs are not changed"
    return second


@pytest.mark.parametrize("kind", ["run", "step"])
def test_contestants_agree(on_cpu: None, tiny_checkpoint: Path, tiny_engine: Path, kind: str) -> None:
    wanted = outputs(job_of(tiny_checkpoint, "torch", kind=kind))
    eager = compare(outputs(job_of(tiny_checkpoint, "torch", kind=kind, precision="fp16")), wanted)
    limit = half_limit(eager)
    assert 1e-5 < eager.value < 3e-2, "half precision shows, and little"
    last = job_of(tiny_checkpoint, "torch-channels-last", kind=kind, precision="fp16")
    assert compare(outputs(last), wanted, limit).ok
    engine = job_of(tiny_checkpoint, "fastdiff:onnxruntime", kind=kind, engine=tiny_engine)
    assert compare(outputs(engine), wanted, 1e-4).ok


@pytest.mark.parametrize("guidance", [1.0, gpu.GUIDANCE])
def test_guided_steps_are_the_samplers(guidance: float) -> None:
    """A made-up model, cond = sin(x) + t/1000, uncond = 0: against the loop of fastdiff.samplers."""
    start = np.random.default_rng(0).standard_normal((2, 3, 4, 5)).astype(np.float32)
    table = gpu.step_table(7)

    def cond(x: Any, timestep: float) -> Any:
        return np.sin(x) + np.float32(timestep / 1000)

    found = gpu.guided_steps(
        lambda x, t: np.concatenate([np.zeros_like(x), cond(x, t)]), start, table, guidance
    )
    wanted = run_loop(table, lambda x, t, guided: (cond(x, t), np.zeros_like(x)), start, guidance=guidance)
    assert compare({"x": found}, {"x": wanted}, 1e-5).ok


def test_limits_follow_pytorchs_own_error() -> None:
    assert half_limit(Agreement("relative_l2", 1e-3)) == 2e-3
    assert half_limit(Agreement("psnr", 46.0)) == pytest.approx(39.98, abs=0.01)
    assert half_limit(Agreement("psnr", 90.0)) == 45.0
    with pytest.raises(ValueError, match="inf"):
        half_limit(Agreement("relative_l2", float("inf")))
    assert Agreement("relative_l2", 1.9e-3, 2e-3).ok
    assert not Agreement("relative_l2", 2.1e-3, 2e-3).ok
    assert "allowed 2.0e-03" in str(Agreement("relative_l2", 1.9e-3, 2e-3))


def test_cases_on_a_gpu(tmp_path: Path) -> None:
    request = Request(("sdxl-unet",), devices=("cuda",), kinds=("run", "step"))
    (model,) = find_models(request, tmp_path)
    assert [case.label for case in model.cases(request)] == [
        "sdxl-unet 1024x1024 batch 2 cuda fp16",
        "sdxl-unet step 1024x1024 batch 2 cuda fp16",
    ]
    spec = module_spec("unet", model.checkpoint.spec)
    arrays = random_inputs(spec, model.cases(request)[0].sizes(model.checkpoint.spec), 0)
    assert arrays["text_embeds"].shape == (2, 1280)
    assert arrays["time_ids"].tolist() == [[1024, 1024, 0, 0, 1024, 1024]] * 2


def test_without_a_gpu_it_says_so(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from fastdiff.bench import suite

    monkeypatch.setattr(suite, "find_gpus", lambda: ((), ""))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(TargetError, match="no NVIDIA GPU; give cpu"):
        check_request(Request(("scenes",), devices=("cuda",)))
    with pytest.raises(TargetError, match="sees no NVIDIA GPU"):
        gpu.open_gpu_contestant(job_of(tiny_checkpoint, "torch"))
    request = Request((str(tiny_checkpoint),), modules=("vae_decoder",), kinds=("step",), devices=("cuda",))
    (model,) = find_models(request, tmp_path)
    with pytest.raises(InputError, match="measured of its unet"):
        model.cases(request)


@pytest.mark.gpu
def test_scenes_on_the_gpu(tmp_path: Path) -> None:
    """PyTorch's contestants agree with each other and have times; the ceiling is no CPU's."""
    request = Request(
        ("scenes",),
        targets=("none",),
        against=("torch", "torch-channels-last", "inductor"),
        devices=("cuda",),
        modules=("unet",),
        kinds=("run", "step"),
        pace=Pace(rounds=2),
    )
    report = run_suite([request], keep=tmp_path)
    (run,) = report.runs
    assert run.machine["gpu"]["name"]
    assert run.ceilings.gemm > 1e13
    for result in run.results:
        assert [found.status for found in result.measurements] == ["ok"] * 3, result
        assert all(found.spread is not None for found in result.measurements)
