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
    from fastdiff.pipeline import Pipeline, Result, Timings, load

__all__ = [
    "CaptureError",
    "CheckpointError",
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
    "Result",
    "TargetError",
    "Timings",
    "VerificationError",
    "__version__",
    "load",
]

_LAZY = ("Pipeline", "Result", "Timings", "load")


def __getattr__(name: str) -> object:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from fastdiff import pipeline

    value: object = getattr(pipeline, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
