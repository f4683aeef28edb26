"""A machine with a GPU that is its CPU: the whole path from a checkpoint to pictures, without CUDA."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from fastdiff.manifest import ModuleEntry
from fastdiff.targets import Availability, cuda
from fastdiff.targets.cuda import compiler, session
from fastdiff.targets.cuda.compiler import Machine
from fastdiff.targets.gpu import Gpu

__all__ = ["pretended_gpu"]


def _once(function: Any) -> float:
    """A clock for which everything takes as long."""
    function()
    return 1.0


@contextmanager
def pretended_gpu() -> Iterator[None]:
    """Within the block the cuda target compiles for and runs on the CPU, by PyTorch's implementations."""
    cpu = torch.device("cpu")
    open_session = session.open_session

    def on_cpu(folder: Path, name: str, entry: ModuleEntry, device: torch.device) -> Any:
        assert device == torch.device("cuda", 0)
        return open_session(folder, name, entry, cpu)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuda, "availability", lambda: Availability(True, "a pretended GPU"))
        patch.setattr(cuda, "find_gpus", lambda: ((Gpu(0, "a pretended GPU", "9.0"),), ""))
        patch.setattr(compiler.Machine, "here", staticmethod(lambda: Machine(cpu, 0, _once)))
        patch.setattr(session, "open_session", on_cpu)
        yield
