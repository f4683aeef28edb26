"""Options of ONNX Runtime's sessions, and sessions on the CPU."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

__all__ = ["cpu_options", "open_on_cpu", "session_options"]


def session_options(threads: int | None, level: str) -> Any:
    """Session options: ``threads`` None means every core that the process may use.

    Threads sleep while they wait. Spinning gains little on an idle machine and doubles the time of a step
    on one where other processes want the cores too.
    """
    import onnxruntime  # type: ignore[import-untyped, unused-ignore]

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or len(os.sched_getaffinity(0))
    options.inter_op_num_threads = 1
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    options.log_severity_level = 4
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def cpu_options(threads: int | None, level: str, mapped: bool) -> Any:
    """Session options for a graph on the CPU, whose weights may be ``mapped`` from a file of their own.

    They are used where they are then. Packing them for matrix products copies them, at 1 to 1.5 GB/s, and a
    U-Net of 3.4 GB is no faster for it (one of 60 MB is, by 5 %).

    Which results have their memory in common is left to the arena and to the pattern that it takes from the
    first call. Planned when the graph opens, it takes time with the square of its nodes, most of it for
    SDXL's U-Net, no step is faster for it, and results take more memory. Those that an operator computes in
    the place of its input stay there in any case.
    """
    options = session_options(threads, level)
    options.enable_mem_reuse = False
    if mapped:
        options.add_session_config_entry("session.disable_prepacking", "1")
    return options


def open_on_cpu(path: Path, options: Any) -> Any:
    """A session of a file. Raises what ONNX Runtime does, one class per status code."""
    import onnxruntime  # type: ignore[import-untyped, unused-ignore]

    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
