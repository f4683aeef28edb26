"""The stages of gpu_suite.py: ``python benchmarks/gpu_stages.py STAGE --keep DIR`` with RESULT in the
environment. Results are written after every step, so that a time-out keeps what was there.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
_BEGIN = time.perf_counter()
_FILE_SHARE = 0.75
"""Of the stage's time, for the tests of one file."""
_LEAST_SECONDS = 8.0
"""In less a file is not begun: to import PyTorch takes most of it."""


def save(document: Any) -> None:
    """The stage's result so far."""
    path = Path(os.environ["RESULT"])
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(json.dumps(document), encoding="utf-8")
    partial.replace(path)


def left() -> float:
    """Seconds until the stage is stopped."""
    return float(os.environ.get("SECONDS", "600")) - (time.perf_counter() - _BEGIN)


def end_with_parent() -> None:
    """End this process and all of its group soon after the suite, however that ended: a stage that goes on
    would take the GPU from whatever runs next.
    """
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os.killpg(0, signal.SIGKILL)

    if os.getpgid(0) == os.getpid():  # a group of its own, as the suite starts stages
        threading.Thread(target=watch, daemon=True).start()


def build(keep: Path, quick: bool) -> None:
    """Compile ``csrc/`` with the CUDA kernels, or where that fails without: other stages need the rest."""
    command = [sys.executable, "setup.py", "build_ext", "--inplace", "--parallel", str(os.cpu_count() or 1)]
    for cuda in ("on", "off"):
        environment = {**os.environ, "FASTDIFF_CUDA": cuda}
        code = subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode
        save({"cuda": cuda, "status": code})
        if code == 0:
            break
    if cuda == "off":
        raise SystemExit("the CUDA kernels were not compiled" if code == 0 else "csrc/ was not compiled")


def gpu_test_files() -> list[Path]:
    """Test files that have tests marked ``gpu``."""
    return [path for path in sorted((ROOT / "tests").rglob("test_*.py")) if _has_gpu_tests(path)]


def _has_gpu_tests(path: Path) -> bool:
    """Whether a file has the mark, or uses the fixture ``device`` of a folder whose conftest has it."""
    text, conftest = path.read_text(encoding="utf-8"), path.with_name("conftest.py")
    if "mark.gpu" in text:
        return True
    shared = conftest.is_file() and "mark.gpu" in conftest.read_text(encoding="utf-8")
    return shared and re.search(r"\bdevice: str\b", text) is not None


_FIRST = ("tests/kernels/", "tests/targets/cuda/")


_SHARDS = {
    "tests/kernels/triton/test_attention.py": 4,
    "tests/kernels/triton/test_conv2d.py": 4,
    "tests/kernels/triton/test_epilogue.py": 4,
    "tests/kernels/triton/test_group_norm_silu.py": 4,
    "tests/kernels/triton/test_linear.py": 4,
    "tests/targets/cuda/test_target.py": 3,
}
"""Processes that share a file whose tests compile dozens of kernels."""


def _rank(path: Path) -> tuple[int, int]:
    """What other files build on comes first, large files before small ones: they take longest."""
    name = path.relative_to(ROOT).as_posix()
    rank = next((index for index, folder in enumerate(_FIRST) if name.startswith(folder)), len(_FIRST))
    return rank, -path.stat().st_size


def tests(keep: Path, quick: bool) -> None:
    """Every test marked ``gpu``: a process per file, so that a crash or a hang takes only its file along."""
    results: dict[str, Any] = {}
    # each process compiles kernels on a core or two and seldom keeps the GPU busy
    with ThreadPoolExecutor(max(4, (os.cpu_count() or 1) // 2)) as pool:
        shares = [
            (path, place, count)
            for path in sorted(gpu_test_files(), key=_rank)
            for count in (_SHARDS.get(path.relative_to(ROOT).as_posix(), 1),)
            for place in range(count)
        ]
        running = {pool.submit(_test_file, *share): share for share in shares}
        for done in as_completed(running):
            results.update(done.result())
            save({"tests": results})
            path, place, count = running[done]
            name = path.relative_to(ROOT).as_posix() + (f" {place + 1}/{count}" if count > 1 else "")
            print(
                f"{name}: {', '.join(sorted({t['outcome'] for t in done.result().values()})) or 'no tests'}"
            )
    save({"tests": results})
    bad = [name for name, test in results.items() if test["outcome"] not in ("passed", "skipped")]
    if bad:
        raise SystemExit(f"{len(bad)} of {len(results)} tests failed: {', '.join(bad[:5])}")


def _test_file(path: Path, place: int = 0, count: int = 1) -> dict[str, Any]:
    """The outcomes of a file's tests by name, or of every ``count``-th from number ``place`` on."""
    name = path.relative_to(ROOT).as_posix()
    if left() < _LEAST_SECONDS:
        share = f"{name} ({place + 1} of {count})" if count > 1 else name
        return {share: {"outcome": "not run", "text": "no time was left"}}
    with tempfile.TemporaryDirectory(prefix="fastdiff-gpu-tests-") as folder:
        lines = Path(folder) / "report.jsonl"
        environment = {
            **os.environ,
            "GPU_REPORT": str(lines),
            "GPU_SHARD": f"{place}/{count}",
            "PYTHONPATH": os.pathsep.join(
                filter(None, (str(ROOT), str(ROOT / "benchmarks"), os.environ.get("PYTHONPATH")))
            ),
        }
        # warnings of other versions of the libraries are no failures here
        options = ["-p", "gpu_report", "-p", "no:cacheprovider", "-W", "default", "--tb=long", "-q"]
        command = [sys.executable, "-m", "pytest", name, "-m", "gpu", *options]
        try:
            run = subprocess.run(
                command,
                cwd=ROOT,
                env=environment,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=max(1.0, min(_FILE_SHARE * float(os.environ.get("SECONDS", "600")), left() - 3)),
                check=False,
            )
            output, ended = run.stdout + run.stderr, f"status {run.returncode}"
        except subprocess.TimeoutExpired as error:
            output = b"".join(part for part in (error.stdout, error.stderr) if part).decode(errors="replace")
            ended = "stopped when its time was over"
            run = None
        found: dict[str, Any] = {}
        if lines.exists():
            for line in lines.read_text(encoding="utf-8").splitlines():
                test = json.loads(line)
                found[test.pop("test")] = test
        for test in found.values():
            if test["outcome"] == "hung":
                test["text"] = f"{ended}\n{output[-20_000:]}"
        # 5: no test was selected
        if not found and (run is None or run.returncode not in (0, 5)):
            found[name] = {"outcome": "failed", "text": f"{ended}\n{output[-20_000:]}"}
        return found


def ceilings(keep: Path, quick: bool) -> None:
    """The large product and the copy."""
    from fastdiff.bench.ceilings import measure_ceilings

    found = measure_ceilings(os.cpu_count() or 1, device="cuda")
    save(asdict(found))
    print(f"fp16 product {found.gemm / 1e12:.0f} TFLOP/s, copy {found.copy / 1e9:.0f} GB/s")


_EAGER = ("torch", "torch-channels-last")


def scenes(keep: Path, quick: bool) -> None:
    """All of the shipped model, with pictures."""
    modules = ("unet", "vae_decoder", "text_encoder")
    _measure(keep, _request("scenes", ("run",), modules=modules), _request("scenes", ("step", "picture")))


def sd15(keep: Path, quick: bool) -> None:
    """U-Net, and unless quick the VAE decoder, at 512²."""
    more = () if quick else (_request("sd15-vae-decoder", ("run",)),)
    _measure(keep, _request("sd15-unet", ("run", "step")), *more)


def sdxl(keep: Path, quick: bool) -> None:
    """VAE decoder and U-Net at 1024²."""
    _measure(keep, _request("sdxl-vae-decoder", ("run",)), _request("sdxl-unet", ("run", "step")))


def compile_(keep: Path, quick: bool) -> None:
    """torch.compile beside the engines of the stages before, in the same turns: last, as it takes minutes."""
    requests = []
    for name in ("scenes", "sd15-unet", "sdxl-vae-decoder", "sdxl-unet"):
        folder, module = (keep / "model-0", "unet") if name == "scenes" else (keep / name, "")
        built = any(folder.glob(f"engine-*-{module}*.fd/engine.json"))
        targets = () if built else ("none",)  # what could not be built is not tried again
        modules = ("unet",) if name == "scenes" else None
        requests.append(_request(name, ("run",), modules=modules, against=("inductor",), targets=targets))
    _measure(keep, *requests)


def _request(name: str, kinds: tuple[str, ...], against: tuple[str, ...] = _EAGER, **more: Any) -> Any:
    from fastdiff.bench import Request
    from fastdiff.bench.measure import Pace

    pace = Pace(seconds=1.5, least=3)
    return Request((name,), against=against, devices=("cuda",), kinds=kinds, pace=pace, **more)


def _measure(keep: Path, *requests: Any) -> None:
    """Run requests one after another; what one raises does not keep the others from running."""
    import traceback
    from importlib.util import find_spec

    from fastdiff.bench import run_suite

    reports: list[Any] = []
    problems: list[str] = []
    for name in ("diffusers", "onnx", "onnxruntime", "tensorrt"):
        if find_spec(name) is None:
            print(f"{name} is not installed: what needs it is skipped")
    for request in requests:
        try:
            report = run_suite(
                [request],
                lambda what, done, total: print(what),
                keep=keep,
                each=lambda part: save({"reports": [*reports, asdict(part)], "problems": problems}),
            )
            reports.append(asdict(report))
        except Exception:  # noqa: BLE001 (whatever it is, the next request is measured)
            traceback.print_exc()
            problems.append(f"{request.models[0]} {','.join(request.kinds)}")
        save({"reports": reports, "problems": problems})
    failed = [
        f"{result['case']['model']}: {found['name']} {found['status']}: {found['reason']}"
        for report in reports
        for run in report["runs"]
        for result in run["results"]
        for found in result["measurements"]
        if found["status"] in ("failed", "refused")
    ]
    if problems or failed:
        raise SystemExit("; ".join([*problems, *failed])[:2000])


STAGES = {
    "build": build,
    "tests": tests,
    "ceilings": ceilings,
    "scenes": scenes,
    "sd15": sd15,
    "sdxl": sdxl,
    "compile": compile_,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--keep", type=Path, required=True, help="folder for weights and engines")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    end_with_parent()
    STAGES[options.stage](options.keep, options.quick)


if __name__ == "__main__":
    main()
