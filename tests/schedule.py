"""Which tests run in the same worker when several processes share them (``pytest -n 2``).

Tests that share what is slow to make, or a folder, stay together: captured models and built engines are made
once, and one process compiles in ``build/``. All others are shared out file by file.
"""

from __future__ import annotations

import os
from typing import Any

import pytest

__all__ = ["group_of", "share_cores"]

_TOGETHER = {
    "tests/build/": "models",
    "tests/targets/native/": "models",
    "tests/targets/onnxruntime/": "models",
    "tests/targets/tensorrt/": "models",
    "tests/targets/test_targets.py": "models",
    "tests/compiled/": "compiled",
    "tests/control/": "control",
    "tests/csrc/": "csrc",
}
"""Beginnings of paths whose tests share models and engines, and those that share a folder."""


def group_of(nodeid: str) -> str:
    """The group of a test: its entry in _TOGETHER, else its file."""
    file = nodeid.partition("::")[0]
    return next((group for start, group in _TOGETHER.items() if file.startswith(start)), file)


def share_cores() -> None:
    """Give PyTorch a worker's share of the cores, before it is imported.

    Its threads spin while they wait, which would stop the other workers'. Sessions of fastdiff keep every
    core: they sleep, and tests count their threads.
    """
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    if workers > 1:
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // workers)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """A scheduler of whole groups in the order of collection, where "models", the longest, is early."""
    from xdist.scheduler import LoadScopeScheduling

    class Groups(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group_of(nodeid)

    config.option.loadscopereorder = False
    return Groups(config, log)
