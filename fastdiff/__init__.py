"""fastdiff: an inference runtime for diffusion models.

::

    pipe = fastdiff.load("scenes.fd")
    result = pipe("a red circle left of a blue square", steps=20, sampler="dpmpp_2m", guidance=5.0, seed=0)
    result.save("out.png")

Importing the package costs next to nothing: what a name needs is imported when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastdiff._version import __version__
from fastdiff.errors import (
    CaptureError,
    CheckpointError,
    EngineDamagedError,
    EngineError,
    EngineMismatchError,
    EngineVersionError,
    FastdiffError,
    FastdiffWarning,
    InputError,
    NumericError,
    OutputError,
    TargetError,
    VerificationError,
)

if TYPE_CHECKING:
    from fastdiff.compiled.pipeline import CompileReport, compile
    from fastdiff.pipeline import Pipeline, Result, Timings, load
    from fastdiff.workers.pool import PipelinePool, load_many

__all__ = [
    "CaptureError",
    "CheckpointError",
    "CompileReport",
    "EngineDamagedError",
    "EngineError",
    "EngineMismatchError",
    "EngineVersionError",
    "FastdiffError",
    "FastdiffWarning",
    "InputError",
    "NumericError",
    "OutputError",
    "Pipeline",
    "PipelinePool",
    "Result",
    "TargetError",
    "Timings",
    "VerificationError",
    "__version__",
    "compile",
    "load",
    "load_many",
]

_LAZY = {
    **dict.fromkeys(("CompileReport", "compile"), "fastdiff.compiled.pipeline"),
    **dict.fromkeys(("Pipeline", "Result", "Timings", "load"), "fastdiff.pipeline"),
    **dict.fromkeys(("PipelinePool", "load_many"), "fastdiff.workers.pool"),
}


def __getattr__(name: str) -> object:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value: object = getattr(import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
