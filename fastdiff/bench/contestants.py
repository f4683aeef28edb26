"""The contestant of any job: of modules, whole pictures, or on a GPU."""

from __future__ import annotations

from fastdiff.bench.case import Job
from fastdiff.bench.gpu import open_gpu_contestant
from fastdiff.bench.peers import Contestant, open_module_contestant
from fastdiff.bench.pictures import open_picture_contestant
from fastdiff.errors import InputError

__all__ = ["open_contestant"]


def open_contestant(job: Job) -> Contestant:
    """The contestant that a job names, with its libraries imported but nothing loaded.

    Raises TargetError when its packages are missing and InputError for an unknown name.
    """
    if job.case.kind in ("picture", "cold"):
        return open_picture_contestant(job)
    if job.case.device == "cuda":
        return open_gpu_contestant(job)
    if job.case.kind == "step":
        raise InputError(f"{job.case.label}: steps are measured on cuda alone, on the CPU measure picture")
    return open_module_contestant(job)
