"""TensorRT's timing cache, kept in a folder beside the engine.

A build measures thousands of kernels; a second one of a similar network on the same GPU and version takes
those times from here. One file per GPU and version in ``tensorrt-timing-cache/``, which all engines beside it
share. It is replaced atomically, and under a lock, so that builds at the same time do not lose each other's
entries. Nothing depends on it: it may be deleted, and what cannot be read or written is told in a warning.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import warnings
from collections.abc import Iterator
from pathlib import Path

from fastdiff.errors import FastdiffWarning
from fastdiff.targets.gpu import Gpu
from fastdiff.targets.tensorrt.interface import Api, TensorRtError

__all__ = ["FOLDER", "TimingCache"]

FOLDER = "tensorrt-timing-cache"


class TimingCache:
    """The cache for one GPU and version of TensorRT in ``folder``, which holds the engine."""

    def __init__(self, folder: Path, gpu: Gpu, version: str) -> None:
        key = f"{gpu.name} sm{gpu.compute_capability} tensorrt{version}"
        self.path = folder / FOLDER / (re.sub(r"[^A-Za-z0-9.]+", "-", key) + ".cache")

    def read(self) -> bytes:
        """What is stored; nothing at first."""
        try:
            return self.path.read_bytes()
        except FileNotFoundError:
            return b""
        except OSError as error:
            self._warn("read", error)
            return b""

    def update(self, data: bytes, before: bytes, api: Api) -> None:
        """Store ``data``, which a build made of ``before``, with what others have stored since."""
        if data == before:
            return
        try:
            self.path.parent.mkdir(exist_ok=True)
            with self._locked():
                found = self.read()
                if found not in (before, b""):
                    data = api.merge_timing_caches(found, data)
                partial = self.path.with_suffix(f".{os.getpid()}.partial")
                partial.write_bytes(data)
                partial.replace(self.path)
        except (OSError, TensorRtError) as error:
            self._warn("written", error)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with self.path.with_suffix(".lock").open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _warn(self, what: str, error: Exception) -> None:
        reason = getattr(error, "strerror", None) or error
        warnings.warn(
            f"{self.path}: the timing cache cannot be {what} ({reason}); builds take longer without it",
            FastdiffWarning,
            stacklevel=3,
        )
