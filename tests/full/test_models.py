"""Models of the published size, with random weights: memory, modules and pictures against PyTorch.

Run by ``make test-full``; every step is a process of its own, so that the machine's memory is enough for
either implementation, not for both.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.full.conftest import Built, Written
from tests.full.report import Report
from tests.steps import run

pytestmark = pytest.mark.full

TOLERANCE = 1e-4
MIN_PSNR = 45.0


def test_a_build_s_memory(built: Built, report: Report) -> None:
    """The peak of the whole process, libraries included, over the bytes of all weights in float32."""
    stages = built.found["stages"]
    stage = max(stages, key=lambda name: stages[name]["resident"])
    peak = stages[stage]["resident"] / built.weights
    anonymous = max(peak["anonymous"] for peak in stages.values()) / built.weights
    report.add(built.name, "weights in fp32", built.weights / 1e9, "GB")
    report.add(
        built.name, f"build, peak of memory ({stage})", peak, "× the weights", f"≤ {built.full.peak:g}"
    )
    report.add(built.name, "build, peak of anonymous memory", anonymous, "× the weights")
    report.add(built.name, "build", built.found["seconds"], "s")
    assert peak <= built.full.peak, stages


def test_modules_at_their_build_s_sizes(built: Built, report: Report) -> None:
    assert set(built.full.modules) <= set(built.found["errors"])
    for name, error in built.found["errors"].items():
        report.add(built.name, f"{name}, relative L2 error", error, "", f"≤ {TOLERANCE:g}")
        assert 0 < error <= TOLERANCE


@pytest.mark.parametrize("module", ["unet", "vae_decoder"])
def test_one_engine_serves_all_sizes(built: Built, report: Report, module: str) -> None:
    """The same file at other sizes and batches; guidance doubles the batch of the U-Net."""
    if not built.full.sizes:
        pytest.skip(f"{built.name} has the structure of a model that is run at all sizes")
    sizes = [_symbols(module, *size) for size in built.full.sizes]
    file = built.folder / f"{module}.npz"
    run("expected", checkpoint=str(built.checkpoint), module=module, sizes=sizes, file=str(file))
    found = run("errors", engine=str(built.engine), module=module, count=len(sizes), file=str(file))
    file.unlink()
    for (batch, height, width), error in zip(built.full.sizes, found["errors"], strict=True):
        what = f"{module} at {width}×{height}, batch {batch}, relative L2 error"
        report.add(built.name, what, error, "", f"≤ {TOLERANCE:g}")
        assert error <= TOLERANCE, what


def _symbols(module: str, batch: int, height: int, width: int) -> dict[str, int]:
    sizes = {"batch": batch, "height": height // 8, "width": width // 8}
    return {**sizes, "batch": 2 * batch, "tokens": 77} if module == "unet" else sizes


def test_pictures_and_sessions(built: Built, report: Report) -> None:
    """Pictures of diffusers' own pipeline; then two more pipelines, for which no weight is copied."""
    file = built.folder / "pictures.npz"
    sampler, scheduler = built.full.sampler
    calls = [
        {"height": height, "width": width, "seed": seed, "steps": built.full.steps, "sampler": sampler}
        | {"guidance": built.full.guidance}
        for seed, (height, width) in enumerate(built.full.pictures)
    ]
    both: dict[str, Any] = {"task": built.full.task, "calls": calls, "file": str(file)}
    run("draw", checkpoint=str(built.checkpoint), scheduler=scheduler, **both)
    found = run("compare", engine=str(built.engine), **both)
    file.unlink()
    for (height, width), row in zip(built.full.pictures, found["pictures"], strict=True):
        what = f"{built.full.task}, picture of {width}×{height}, {built.full.steps} steps"
        report.add(built.name, what, row["psnr"], "dB", f"≥ {MIN_PSNR:g}")
        assert row["spread"] > 4, "a flat picture compares nothing"
        assert row["inside"] > 0.5, "a saturated picture compares little"
        assert row["psnr"] >= MIN_PSNR, what
    more = (found["three"]["anonymous"] - found["one"]["anonymous"]) / 2 / built.weights
    bar = f"< {built.full.more:g}"
    report.add(built.name, "one more pipeline, anonymous memory", more, "× the weights", bar)
    report.add(built.name, "three pipelines, resident", found["three"]["resident"] / built.weights, "× …")
    assert more < built.full.more
    assert found["three"]["resident"] < 1.3 * found["one"]["resident"]


def test_one_file_has_the_folder_s_weights(written: Written, report: Report) -> None:
    """In the layout of the model's own code and in halves, as such files are published: bit for bit."""
    if not written.full.file:
        pytest.skip(f"{written.name} is known by its configs alone")
    checkpoint = str(written.checkpoint)
    file = written.checkpoint / "original.safetensors"
    try:
        run("write_original", checkpoint=checkpoint, file=str(file))
        report.add(written.name, "one file in halves", file.stat().st_size / 1e9, "GB")
        for part in sorted({shard.parent.name for shard in written.checkpoint.glob("*/*.safetensors")}):
            found = run("compare_original", checkpoint=checkpoint, file=str(file), part=part)
            assert found["tensors"] > 100, part
            assert found["different"] == [], part
            size = found["peak"]["anonymous"] / found["bytes"]
            report.add(written.name, f"one file, reading {part}: anonymous memory", size, "× its weights")
            assert size < 1.5
    finally:
        file.unlink(missing_ok=True)
