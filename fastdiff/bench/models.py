"""The models of a request: what each can be measured for, and the files that its contestants need."""

from __future__ import annotations

import importlib.metadata
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastdiff.bench.case import KINDS, Case
from fastdiff.bench.configs import PUBLISHED
from fastdiff.engine_dir import MANIFEST_NAME, open_engine
from fastdiff.errors import EngineMismatchError, InputError

if TYPE_CHECKING:
    from fastdiff.bench.suite import Request
    from fastdiff.build.checkpoint import Checkpoint

__all__ = ["GPU_TARGETS", "Model", "find_models", "missing_target"]

Task = Callable[..., Any]
"""Runs a function of ``fastdiff.bench.prepare`` by name in a process of its own."""

GPU_TARGETS = ("cuda", "onnxruntime", "tensorrt")
"""Fastdiff's targets that run on a GPU."""

_DEFAULT_MODULES = ("unet", "vae_decoder", "text_encoder")
_GUIDED = ("text_encoder", "unet")
"""Modules whose batch guidance doubles."""


@dataclass
class Model:
    """One checkpoint of a request and the engines that were given with it.

    ``name`` is what was given, ``folder`` where files for its contestants go.
    """

    name: str
    checkpoint: Checkpoint
    folder: Path
    engines: list[tuple[str, Path]] = field(default_factory=list)
    _files: dict[tuple[str, ...], Path] = field(default_factory=dict)

    @property
    def published(self) -> bool:
        """Whether it is a configuration with random weights, and so a single module."""
        return self.name in PUBLISHED

    @property
    def label(self) -> str:
        """How the results call it: without the folders of this machine."""
        return self.checkpoint.name

    def cases(self, request: Request) -> list[Case]:
        """What the request measures of this model. Raises InputError for what it cannot have."""
        spec = self.checkpoint.spec
        kinds = request.kinds or (("run",) if self.published else ("run", "picture", "cold"))
        modules = request.modules or ((PUBLISHED[self.name].module,) if self.published else _DEFAULT_MODULES)
        device = request.devices[0]
        precision = "fp32" if device == "cpu" else "fp16"
        for kind in kinds:
            if kind not in KINDS:
                raise InputError(f"unknown measurement {kind!r}: known are {', '.join(KINDS)}")
        for module in modules:
            if module not in self.checkpoint.modules:
                known = ", ".join(self.checkpoint.modules)
                raise InputError(f"unknown module {module!r}: known are {known}")
        if "step" in kinds and (device == "cpu" or "unet" not in modules):
            raise InputError(f"steps of {self.name}: they are measured of its unet, on cuda")
        if self.published:
            only = PUBLISHED[self.name].module
            if set(modules) != {only}:
                raise InputError(f"{self.name} is {only} alone: measure it without --modules")
            if {"picture", "cold"} & set(kinds):
                raise InputError(f"{self.name} is {only} alone and makes no pictures: measure run or open")
        cases = []
        for height, width in request.sizes or ((spec.default_height, spec.default_width),):
            for side, value in (("height", height), ("width", width)):
                least = 2 * spec.size_multiple
                if value < least or value % spec.size_multiple:
                    raise InputError(
                        f"{side} {value} of {self.name}: it must be a multiple of {spec.size_multiple} and "
                        f"at least {least}"
                    )
            for kind in kinds:
                if kind in ("picture", "cold"):
                    cases.append(Case(self.label, kind, "", 1, height, width, device, precision))
                    continue
                for module in ("unet",) if kind == "step" else modules:
                    batch = request.batch or (2 if module in _GUIDED else 1)
                    cases.append(Case(self.label, kind, module, batch, height, width, device, precision))
        return cases

    def targets(self, request: Request) -> tuple[str, ...]:
        """Fastdiff's targets to build for: those asked for, else, when no engine was given, ``auto`` or on a
        GPU all that run there.
        """
        from fastdiff.targets import resolve_target

        if request.targets == ("none",):
            return ()
        if not request.targets and not self.engines and request.devices[0] == "cuda":
            return tuple(name for name in GPU_TARGETS if not missing_target(name))
        if request.targets:
            return tuple(dict.fromkeys(resolve_target(target) for target in request.targets))
        return () if self.engines else (resolve_target("auto"),)

    def write(self, task: Task) -> None:
        """Make the weights of a published configuration, once."""
        if self.published and not any((self.folder / PUBLISHED[self.name].part).glob("*.safetensors")):
            task("write_weights", name=self.name, folder=str(self.folder.parent))

    def onnx(self, module: str, task: Task) -> Path:
        """The module's ONNX file, exported once for all peers and sizes."""
        key = ("onnx", module)
        if key not in self._files:
            folder = self.folder / f"onnx-{module}"
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / "model.onnx"
            self._files[key] = Path(task("export", **self._source(), module=module, path=str(path)))
        return self._files[key]

    def engine(self, target: str, case: Case, task: Task) -> Path:
        """An engine with the case's module, or with all for pictures, built once per size and target."""
        modules = [case.module] if case.module else list(self.checkpoint.modules)
        key = ("engine", target, case.module, f"{case.height}x{case.width}")
        if key not in self._files:
            self.folder.mkdir(parents=True, exist_ok=True)
            output = self.folder / f"{'-'.join(part for part in key if part)}.fd"
            if (output / MANIFEST_NAME).is_file():  # of an earlier run that kept its files
                self._files[key] = output
                return output
            arguments = {"modules": modules, "target": target, "output": str(output)}
            sizes = {"height": case.height, "width": case.width, "precision": case.precision}
            self._files[key] = Path(task("build", **self._source(), **arguments, **sizes))
        return self._files[key]

    def clean(self) -> None:
        """Remove what was written for this model."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self._files.clear()

    def _source(self) -> dict[str, str]:
        return {"name": self.name, "folder": str(self.folder.parent)}


def missing_target(name: str) -> str:
    """Why one of GPU_TARGETS cannot be measured on a GPU here; empty when it can."""
    from fastdiff.targets import TARGETS, get_target

    if name not in TARGETS:
        return "not part of this version of fastdiff"
    if name == "onnxruntime" and not _distributed("onnxruntime-gpu"):
        return "onnxruntime-gpu is not installed"
    available = get_target(name).availability()
    return "" if available.ok else f"{available.reason}; {available.fix}"


def _distributed(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def find_models(request: Request, folder: Path) -> list[Model]:
    """The request's models, each with the engines that were built from it.

    An engine of a shipped model brings its model along. Raises InputError for no model at all,
    EngineMismatchError for an engine whose checkpoint was not given, CheckpointError and EngineError.
    """
    from fastdiff.bench.prepare import find_checkpoint

    if not request.models:
        raise InputError(f"nothing to measure: give an engine, scenes, or one of {', '.join(PUBLISHED)}")
    models: dict[str, Model] = {}

    def add(name: str) -> Model:
        if name not in models:
            checkpoint = find_checkpoint(name, folder)
            own = folder / name if name in PUBLISHED else folder / f"model-{len(models)}"
            models[name] = Model(name, checkpoint, own)
        return models[name]

    engines = [name for name in request.models if (Path(name) / MANIFEST_NAME).is_file()]
    for name in request.models:
        if name not in engines:
            add(name)
    hashes = {
        model.checkpoint.sha256(): model for model in models.values() if engines and not model.published
    }
    for name in engines:
        engine = open_engine(name)
        recorded = engine.manifest.provenance.get("checkpoint", {})
        owner = hashes.get(recorded.get("sha256"))
        if owner is None and recorded.get("shipped"):
            owner = add(str(recorded.get("name")))
            if owner.checkpoint.sha256() != recorded.get("sha256"):
                raise EngineMismatchError(
                    f"{name} was built from another {recorded.get('name')} than is shipped: build it again"
                )
        if owner is None:
            raise EngineMismatchError(
                f"{name} was built from the checkpoint {recorded.get('name')!r}: give its folder as well"
            )
        label = f"engine:{Path(name).resolve().name}"
        owner.engines.append((label, Path(name).resolve()))
    return list(models.values())
