"""Every error that fastdiff raises on purpose.

    FastdiffError
    ├── InputError          an argument of the caller: size, steps, sampler name, prompt (also a ValueError)
    ├── CheckpointError     a checkpoint folder that is missing, incomplete, damaged or of an unknown kind
    ├── CaptureError        a module that could not be captured or lowered to a graph
    ├── TargetError         a target that cannot run here; names what is missing and how to install it
    ├── VerificationError   a compiled module whose error against PyTorch is over its tolerance
    ├── EngineError         an engine folder that cannot be used
    │   ├── EngineDamagedError    a file is missing, truncated or its hash differs
    │   ├── EngineVersionError    written in a format that this version does not read
    │   └── EngineMismatchError   built for something that this machine is not
    ├── NumericError        NaN or infinity came out of the computation in place of a picture
    └── OutputError         the result could not be written: folder exists, disk full, no permission

What goes on all the same is a ``FastdiffWarning``: a prompt that was cut, an argument that has no effect.
Each message is one line: the value found, the value wanted, the way out. The command line prints it
without a traceback and exits with status 2.
"""

from __future__ import annotations

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
    "TargetError",
    "VerificationError",
]


class FastdiffError(Exception):
    """Base of all errors that fastdiff raises on purpose."""


class FastdiffWarning(UserWarning):
    """Something that the caller should know and that does not stop the call."""


class InputError(FastdiffError, ValueError):
    """An argument has a value that cannot be used."""


class CheckpointError(FastdiffError):
    """A checkpoint folder is missing, incomplete, damaged or of a kind that is not read."""


class CaptureError(FastdiffError):
    """A module could not be captured by ``torch.export`` or lowered to a target's form."""


class TargetError(FastdiffError):
    """A target cannot run on this machine."""


class VerificationError(FastdiffError):
    """A compiled module differs from PyTorch by more than its precision's tolerance."""


class EngineError(FastdiffError):
    """An engine folder cannot be used."""


class EngineDamagedError(EngineError):
    """A file of the engine is missing, truncated, or its SHA-256 differs from the manifest."""


class EngineVersionError(EngineError):
    """The engine is written in a format that this version of fastdiff does not read."""


class EngineMismatchError(EngineError):
    """The engine was built for something that this machine is not."""


class NumericError(FastdiffError):
    """The computation gave NaN or infinity where a picture should be."""


class OutputError(FastdiffError):
    """A result could not be written."""
