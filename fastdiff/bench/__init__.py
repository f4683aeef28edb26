"""The benchmark suite: fastdiff beside PyTorch, Inductor, ONNX Runtime and OpenVINO on the same weights.

A picture of one run::

    suite.py ─ models.py: checkpoint, published configuration or engine folder
        │       prepare.py (child processes): weights, inputs, PyTorch's outputs, ONNX file, engines
        ├─ measure.py ─ process.py ═══ pipes ═══ worker.py (one child per contestant): peers.py, pictures.py
        ├─ ceilings.py: large GEMM and copy, measured before and after
        └─ report.py: JSON, merged over machines ─▶ table.py (terminal), html.py (one page with plots)

The measuring process computes nothing itself. Each contestant has a process and thread pool of its own; they
take turns, and whoever is not running is stopped.
"""

from __future__ import annotations

from fastdiff.bench.case import KINDS, Case
from fastdiff.bench.report import Report, load_reports, merge, save_report
from fastdiff.bench.suite import Request, run_suite

__all__ = ["KINDS", "Case", "Report", "Request", "load_reports", "merge", "run_suite", "save_report"]
