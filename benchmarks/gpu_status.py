"""docs/gpu-status.md: every GPU feature with its last successful check.

``python benchmarks/gpu_status.py [RESULT.json …]`` takes results of gpu_suite.py into
``results/gpu-status.json`` and rewrites the table; without results it rewrites the table alone.
"""

from __future__ import annotations

import fnmatch
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
STATUS = ROOT / "benchmarks" / "results" / "gpu-status.json"
PAGE = ROOT / "docs" / "gpu-status.md"

FEATURES: Mapping[str, tuple[str, ...]] = {
    "Triton `attention`": ("tests/kernels/triton/test_attention*.py",),
    "Triton `layer_norm`": ("tests/kernels/triton/test_layer_norm*.py",),
    "Triton `geglu`": ("tests/kernels/triton/test_geglu*.py",),
    "Triton `group_norm_silu`": ("tests/kernels/triton/test_group_norm_silu*.py",),
    "Triton `scheduler_step`, `table_step`": (
        "tests/kernels/triton/test_scheduler_step*.py",
        "tests/kernels/triton/test_table_step*.py",
    ),
    "Triton `epilogue`": ("tests/kernels/triton/test_epilogue*.py",),
    "Triton `linear`": ("tests/kernels/triton/test_linear*.py",),
    "Triton `conv2d`": ("tests/kernels/triton/test_conv2d*.py",),
    "Triton, launching and compiled kernels": (
        "tests/kernels/triton/test_launch*.py",
        "tests/kernels/triton/test_binaries*.py",
        "tests/kernels/triton/test_pool*.py",
    ),
    "`torch.ops.fastdiff` on CUDA tensors": ("tests/kernels/test_library.py",),
    "CUDA C++ `group_norm_silu`": ("tests/kernels/cuda/test_group_norm_silu*.py",),
    "CUDA C++ `scheduler_step` and Philox noise": (
        "tests/kernels/cuda/test_scheduler_step*.py",
        "tests/kernels/cuda/test_philox*.py",
    ),
    "CUDA C++ `attention`": ("tests/kernels/cuda/test_attention*.py",),
    "CUDA C++, fat binaries and NVRTC": (
        "tests/kernels/cuda/test_loader*.py",
        "tests/kernels/cuda/test_nvrtc*.py",
        "tests/csrc/test_cuda*.py",
    ),
    "target `cuda`": (
        "tests/targets/cuda/test_target*.py",
        "tests/targets/cuda/test_engine*.py",
        "tests/targets/cuda/test_choices*.py",
        "tests/targets/cuda/test_plan*.py",
    ),
    "CUDA graphs and the loop": (
        "tests/targets/cuda/test_graphs*.py",
        "tests/targets/cuda/test_loop*.py",
        "tests/targets/cuda/test_tables*.py",
        "tests/targets/cuda/test_backend*.py",
        "tests/targets/cuda/test_call*.py",
    ),
    "LoRA on the target `cuda`": ("tests/targets/cuda/test_adapters*.py",),
    "LoRA on the target `onnxruntime`, CUDA": ("tests/targets/onnxruntime/test_adapters*.py",),
    "fp16-safe VAE": ("tests/targets/cuda/test_ranges*.py",),
    "target `onnxruntime` on CUDA": (
        "tests/targets/onnxruntime/test_cuda*.py",
        "tests/targets/test_onnxruntime*.py",
    ),
    "target `tensorrt`": (
        "tests/targets/tensorrt/test_gpu*.py",
        "tests/targets/tensorrt/test_device*.py",
    ),
    "LoRA on the target `tensorrt`": ("tests/targets/tensorrt/test_lora*.py",),
    "several GPUs": ("tests/*/test_devices*.py", "tests/test_devices*.py", "tests/devices/test_*.py"),
    "training of `scenes`, `--device cuda`": ("tests/zoo/test_training_gpu.py",),
    "`fastdiff bench --devices cuda`": ("tests/bench/test_gpu.py",),
    "`benchmarks/gpu_suite.py`": ("tests/benchmarks/test_gpu_suite.py",),
}
"""Features and the files of their tests marked ``gpu``."""


def marked_files() -> list[str]:
    """Test files that hold tests marked ``gpu``."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    from gpu_stages import gpu_test_files

    return [path.relative_to(ROOT).as_posix() for path in gpu_test_files()]


def features_of(file: str) -> list[str]:
    """The features that a test file checks."""
    return [
        name
        for name, patterns in FEATURES.items()
        if any(fnmatch.fnmatchcase(file, pattern) for pattern in patterns)
    ]


def checked(document: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The features all of whose tests passed in a result of the suite: at least one ran, none failed."""
    tests = ((document["stages"].get("tests") or {}).get("result") or {}).get("tests") or {}
    outcomes: dict[str, list[str]] = {}
    for test, result in tests.items():
        for feature in features_of(test.partition("::")[0].partition(" ")[0]):
            outcomes.setdefault(feature, []).append(result["outcome"])
    return {
        feature: {
            "tests": found.count("passed"),
            "commit": document["commit"],
            "gpu": document["gpu"].get("name", ""),
            "date": document["date"][:10],
        }
        for feature, found in outcomes.items()
        if "passed" in found and set(found) <= {"passed", "skipped"}
    }


def table(status: Mapping[str, Mapping[str, Any]], files: list[str]) -> str:
    """The page. A feature without a test marked ``gpu`` has no line."""
    lines = [
        "# What has run on a GPU",
        "",
        "Written by `python benchmarks/gpu_status.py`; each line is the last time that all tests of a",
        "feature passed in `benchmarks/gpu_suite.py`.",
        "",
        "| feature | commit | GPU | date | tests |",
        "|---|---|---|---|---|",
    ]
    for name, patterns in FEATURES.items():
        if not any(fnmatch.fnmatchcase(file, pattern) for file in files for pattern in patterns):
            continue
        if found := status.get(name):
            cells = (str(found["commit"])[:12], found["gpu"], found["date"], found["tests"])
        else:
            cells = ("never run", "", "", "")
        lines.append(" ".join(f"| {cell}".rstrip() for cell in (name, *cells)) + " |")
    return "\n".join(lines) + "\n"


def load_status() -> dict[str, dict[str, Any]]:
    """What earlier results said."""
    if not STATUS.is_file():
        return {}
    status: dict[str, dict[str, Any]] = json.loads(STATUS.read_text(encoding="utf-8"))
    return status


def main() -> None:
    status = load_status()
    for path in sys.argv[1:]:
        status.update(checked(json.loads(Path(path).read_text(encoding="utf-8"))))
    if sys.argv[1:]:
        STATUS.write_text(json.dumps(status, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    PAGE.write_text(table(status, marked_files()), encoding="utf-8")


if __name__ == "__main__":
    main()
