"""The LoRAs of an open engine: those that were read, and the scale at which each works."""

from __future__ import annotations

import contextlib
import math
import os
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastdiff.errors import InputError
from fastdiff.lora.file import Lora

__all__ = ["LoadedLora", "Loras", "check_scale"]

_LARGEST = 1e6
"""The largest scale. Scales are about 1; far beyond, float32 overflows and no picture comes."""


@dataclass(frozen=True)
class LoadedLora:
    """A LoRA under its name, and its scale; 0: it is loaded and has no effect."""

    name: str
    lora: Lora
    scale: float

    def record(self) -> dict[str, Any]:
        """What a picture's metadata says of it."""
        return {"file": self.lora.path.name, "sha256": self.lora.sha256, "scale": self.scale}

    def request(self) -> dict[str, Any]:
        """What another process needs to load the same, in JSON values."""
        path = str(self.lora.path.resolve())
        return {"name": self.name, "path": path, "sha256": self.lora.sha256, "scale": self.scale}


class Loras:
    """LoRAs by name, in the order of loading. A change is made as a whole, or not at all.

    ``read`` reads a file; ``apply`` puts to work what shall have an effect from then on, all that has a scale
    other than 0. It is a method of the owner, which goes as soon as nobody else refers to it.
    """

    def __init__(
        self,
        read: Callable[[str | os.PathLike[str]], Lora],
        apply: Callable[[Sequence[LoadedLora]], None],
    ) -> None:
        self._read = read
        self._apply = weakref.WeakMethod(apply)
        self._loaded: dict[str, LoadedLora] = {}
        self._held = 0
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Nothing changes inside: a picture is made with one set of LoRAs from its first step to its last."""
        with self._lock:
            self._held += 1
        try:
            yield
        finally:
            with self._lock:
                self._held -= 1

    @property
    def in_use(self) -> bool:
        """Whether a picture is being made with them."""
        return self._held > 0

    @property
    def scales(self) -> dict[str, float]:
        """The scale of each by name."""
        return {name: loaded.scale for name, loaded in self._loaded.items()}

    def records(self) -> list[dict[str, Any]]:
        """What a picture's metadata says of those that have an effect."""
        return [loaded.record() for loaded in self._loaded.values() if loaded.scale != 0]

    def requests(self) -> list[dict[str, Any]]:
        """What another process needs to have the same effect."""
        return [loaded.request() for loaded in self._loaded.values() if loaded.scale != 0]

    def load(self, path: str | os.PathLike[str], scale: float = 1.0, name: str | None = None) -> str:
        """Read a file and put it to work; its name, by default the file's without its ending.

        Raises InputError, also for a name that is taken, and TargetError.
        """
        if not isinstance(path, (str, os.PathLike)):
            raise InputError(f"path of a LoRA is {path!r}: it must be the name of a file")
        if name is None and not Path(path).stem:
            raise InputError(f"path of a LoRA is {os.fspath(path)!r}: it must be the name of a file")
        name = Path(path).stem if name is None else name
        if not isinstance(name, str) or not name:
            raise InputError(f"name of a LoRA is {name!r}: it must be a text")
        if name in self._loaded:
            raise InputError(f"a LoRA called {name!r} is loaded: unload it, or give this one another name")
        scale = check_scale(scale)
        loaded = LoadedLora(name, self._read(path), scale)
        self._change({**self._loaded, name: loaded})
        return name

    def set(self, scales: Mapping[str, float]) -> None:
        """Give those that are named these scales, and all others 0. Raises InputError for an unknown name."""
        if not isinstance(scales, Mapping):
            raise InputError(f"scales is {scales!r}: it must map names of LoRAs to numbers")
        self._check_names(scales)
        checked = {name: check_scale(scale) for name, scale in scales.items()}
        self._change(
            {
                name: LoadedLora(name, loaded.lora, checked.get(name, 0.0))
                for name, loaded in self._loaded.items()
            }
        )

    def unload(self, *names: str) -> None:
        """Forget those that are named, without names all. Raises InputError for an unknown name."""
        self._check_names(names)
        kept = {name: loaded for name, loaded in self._loaded.items() if names and name not in names}
        self._change(kept)

    def match(self, requests: list[dict[str, Any]]) -> None:
        """Load, scale and unload until ``requests`` would be what was given.

        Raises InputError, also for a file that is not the same any more.
        """
        if requests == self.requests():
            return
        wanted: dict[str, LoadedLora] = {}
        for request in requests:
            known = self._loaded.get(request["name"])
            if known is None or known.lora.sha256 != request["sha256"]:
                lora = self._read(request["path"])
                if lora.sha256 != request["sha256"]:
                    raise InputError(f"{lora.path} has changed since it was loaded: load it again")
            else:
                lora = known.lora
            wanted[request["name"]] = LoadedLora(request["name"], lora, request["scale"])
        self._change(wanted)

    def _check_names(self, names: Any) -> None:
        for name in names:
            if name not in self._loaded:
                loaded = ", ".join(self._loaded) or "none"
                raise InputError(f"there is no LoRA called {name!r}: loaded are {loaded}")

    def _change(self, wanted: dict[str, LoadedLora]) -> None:
        if self._held:
            raise InputError("LoRAs are changed while a picture is made: change them between two calls")
        apply = self._apply()
        if apply is None:
            raise ReferenceError("the LoRAs' pipeline is gone")
        apply([loaded for loaded in wanted.values() if loaded.scale != 0])
        self._loaded = wanted


def check_scale(scale: Any) -> float:
    """The scale as a float. Raises InputError for what is no finite number, or one beyond use."""
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not math.isfinite(scale):
        raise InputError(f"scale of a LoRA is {scale!r}: it must be a finite number")
    if abs(scale) > _LARGEST:
        raise InputError(f"scale of a LoRA is {scale:g}: it must be from {-_LARGEST:g} to {_LARGEST:g}")
    return float(scale)
