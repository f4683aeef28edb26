"""Target ``torch``: the library's own module, run by PyTorch. The reference that others are compared with.

The engine holds each part's config and safetensors as the library writes them. VAE encoder and decoder
share one part.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fastdiff.config import Precision
from fastdiff.errors import EngineDamagedError, FastdiffError, TargetError
from fastdiff.manifest import ModuleEntry
from fastdiff.targets import Availability, Compiled, CompileOptions
from fastdiff.targets.session import Array, Session

if TYPE_CHECKING:
    from fastdiff.build.capture import CapturedModule
    from fastdiff.lora.update import LowRank

__all__ = ["ANY_SIDES", "NEEDS_GRAPH", "PRECISIONS", "SELF_CHECKING", "availability", "compile", "open"]

ANY_SIDES = True
NEEDS_GRAPH = False
PRECISIONS = (Precision.FP32,)
SELF_CHECKING: tuple[str, ...] = ()

_PACKAGES = ("torch", "diffusers", "transformers")
_FOLDER = "torch"


def availability() -> Availability:
    """Whether PyTorch, diffusers and transformers are installed."""
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        reason = f"not installed: {', '.join(missing)}"
        return Availability(False, reason, "install them with: pip install 'fastdiff[build]'")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in _PACKAGES)
    return Availability(True, versions)


def compile(captured: CapturedModule, folder: Path, options: CompileOptions) -> Compiled:
    """Store the part that the module is made from, in float32 safetensors."""
    from fastdiff.build.control.ip_adapter import save_attention
    from fastdiff.build.weights import quiet

    part = folder / _FOLDER / captured.spec.part
    if not part.is_dir():
        with quiet():
            # a file is copied before it is written, so large parts are several
            captured.source.save_pretrained(part, safe_serialization=True, max_shard_size="2GB")
            save_attention(captured.source, part)
    files = sorted(path.relative_to(folder).as_posix() for path in part.iterdir() if path.is_file())
    tactics: dict[str, Any] = {"part": captured.spec.part, "class": type(captured.source).__name__}
    if captured.spec.options:
        tactics["options"] = dict(captured.spec.options)
    return Compiled(tuple(files), tactics)


def open(
    folder: Path, name: str, entry: ModuleEntry, threads: int | None, device: int | None = None
) -> Session:
    """Open a module; ``threads`` sets PyTorch's thread count, which is one for the whole process.

    Raises TargetError or EngineDamagedError.
    """
    available = availability()
    if not available.ok:
        raise TargetError(f"target 'torch' cannot run here: {available.reason}; {available.fix}")
    import torch

    from fastdiff.build.control.ip_adapter import ImageProjection, load_attention
    from fastdiff.build.modules import PART_CLASSES, module_wrapper
    from fastdiff.build.modules.control import control_kind
    from fastdiff.build.weights import load_part

    part = str(entry.tactics.get("part"))
    if part not in PART_CLASSES and control_kind(part) is None:
        raise EngineDamagedError(f"{folder}: module {name} has no part for the torch target; build it again")
    files = folder / _FOLDER / part
    try:
        kind = entry.tactics.get("class")
        source = ImageProjection.load(files) if part == "ip_adapter" else load_part(files, part, kind)
        source = load_attention(source, files) if part == "unet" else source
    except FastdiffError as error:
        raise EngineDamagedError(f"{folder}: {error}; build it again") from error
    if threads is not None:
        torch.set_num_threads(threads)
    options = entry.tactics.get("options")
    module = module_wrapper(name, source, entry.inputs, entry.outputs, options)
    return _TorchSession(name, entry, source, module)


class _TorchSession(Session):
    def __init__(self, name: str, entry: ModuleEntry, source: Any, module: Any) -> None:
        super().__init__(name, entry.inputs, entry.outputs, entry.shapes)
        self._source: Any = source
        self._module: Any = module
        self._hooks: list[Any] = []  # one for each layer that has updates

    def _run(self, arrays: dict[str, Array]) -> dict[str, Array]:
        from fastdiff.build.capture import run_eager

        return run_eager(self._module, self.inputs, self.outputs, arrays)

    def adaptable(self) -> Mapping[str, tuple[int, ...]]:
        from fastdiff.build.parameters import adaptable_shapes

        return adaptable_shapes(self.name, self._source)

    def _set_adapters(self, updates: Mapping[str, Sequence[LowRank]]) -> None:
        """Updates are computed beside the layers, whose weights stay as they are."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = [
            self._source.get_submodule(path).register_forward_hook(_adding(parts))
            for path, parts in updates.items()
        ]

    def close(self) -> None:
        self._module = self._source = None
        self._hooks = []


def _adding(parts: Sequence[LowRank]) -> Callable[[Any, tuple[Any, ...], Any], Any]:
    """A forward hook that adds ``scale · up · (down · x)`` to a layer's output, the sum of all parts."""
    import torch
    from torch.nn import functional

    down = torch.from_numpy(np.concatenate([part.down for part in parts]))
    up = torch.from_numpy(np.concatenate([part.up * np.float32(part.scale) for part in parts], axis=1))

    def add(layer: Any, inputs: tuple[Any, ...], output: Any) -> Any:
        (x,) = inputs
        if isinstance(layer, torch.nn.Linear):
            return output + functional.linear(functional.linear(x, down), up)
        narrow = functional.conv2d(x, down, None, layer.stride, layer.padding, layer.dilation)
        return output + functional.conv2d(narrow, up[:, :, None, None])

    return add
