"""Build an engine: load, capture, rewrite, compile and verify each module, then put the folder in place."""

from __future__ import annotations

import dataclasses
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from fastdiff.build.approximations import with_deep_cache, with_preview_vae, with_token_merging
from fastdiff.build.capture import CapturedModule, capture
from fastdiff.build.checkpoint import Checkpoint, load_checkpoint
from fastdiff.build.control import add_control
from fastdiff.build.memory import release
from fastdiff.build.modules import ModuleSpec, module_spec
from fastdiff.build.passes import run_passes
from fastdiff.build.provenance import provenance
from fastdiff.build.sides import with_any_sides
from fastdiff.build.verify import (
    Expected,
    ModuleError,
    expect,
    measure,
    verification_device,
    verification_sizes,
)
from fastdiff.config import ModelSpec, Precision, parse_precision
from fastdiff.engine_dir import TOKENIZER_FOLDER
from fastdiff.engine_writer import EngineWriter
from fastdiff.errors import InputError
from fastdiff.manifest import FORMAT_VERSION, Manifest, ModuleEntry
from fastdiff.targets import (
    CompileOptions,
    computes_in,
    default_precision,
    get_target,
    require_target,
    resolve_target,
)

__all__ = [
    "BuildSummary",
    "ModuleSummary",
    "Progress",
    "Stage",
    "announce",
    "build_engine",
    "captured_module",
    "copy_tokenizer",
    "expected_of",
    "summarise",
    "verified",
]


@dataclass(frozen=True)
class Stage:
    """What a build is doing: load, capture, compile or verify, as stage ``index`` of ``total``, from 0.

    ``fraction`` is the share of the stage that is done, where its target knows that.
    """

    module: str
    stage: str
    index: int
    total: int
    fraction: float = 0.0


class Progress(Protocol):
    """Called at the start of every stage, and again while its fraction grows."""

    def __call__(self, stage: Stage) -> None:
        """Tell the user what ``stage`` the build is at."""


@dataclass(frozen=True)
class ModuleSummary:
    """One line of the summary: seconds cover all stages of the module, bytes its files."""

    name: str
    target: str
    bytes: int
    relative_l2: float
    max_abs: float
    seconds: float


@dataclass(frozen=True)
class BuildSummary:
    """What a build produced; seconds cover all of it."""

    path: Path
    target: str
    precision: Precision
    engine_hash: str
    modules: tuple[ModuleSummary, ...]
    seconds: float


_STAGES = ("load", "capture", "compile", "verify")


def build_engine(
    checkpoint: str | Path | Checkpoint,
    output: str | os.PathLike[str],
    *,
    target: str = "auto",
    precision: str | Precision | None = None,
    height: int | None = None,
    width: int | None = None,
    batch: int = 1,
    memory: float = 2.0,
    device: str | None = None,
    force: bool = False,
    progress: Progress | None = None,
    modules: tuple[str, ...] | None = None,
    refit: bool = False,
    controlnets: Sequence[str | os.PathLike[str]] = (),
    t2i_adapters: Sequence[str | os.PathLike[str]] = (),
    ip_adapter: str | os.PathLike[str] | None = None,
    image_encoder: str | os.PathLike[str] | None = None,
    deep_cache: int | None = None,
    token_merging: float = 0.0,
    preview_vae: str | Path | bool = False,
) -> BuildSummary:
    """Build an engine from a diffusers folder or a shipped model into the folder ``output``.

    ``precision`` None is the target's own: fp16 for ``cuda`` and ``tensorrt``, fp32 for the rest.
    ``height`` and ``width`` (picture pixels) and ``batch`` are the defaults that the engine records and is
    verified at; other sizes run as well. The native target is tuned for them, with weights that may take
    ``memory`` times their bytes in float32. ``device`` is for a target that compiles for several, such as
    ``"cuda"`` of ``onnxruntime``; None is its own. ``modules`` None are all of the checkpoint; with some of
    them only, the engine runs these but makes no pictures. With ``refit`` fastdiff.build.refit can replace
    its weights later, on a target that can do so. ``controlnets``, ``t2i_adapters``, ``ip_adapter`` and
    ``image_encoder`` are what fastdiff.build.control.add_control takes: their modules come after the others.
    ``deep_cache`` is a branch of DeepCache, 0 being the
    outermost and fastest: the engine gets a module more and can reuse features from step to step.
    ``token_merging`` is the share of tokens that are merged before the finest self-attentions of the U-Net.
    ``preview_vae`` is the folder of an ``AutoencoderTiny`` for previews, True for the checkpoint's own.
    Errors: InputError, CheckpointError, CaptureError, TargetError, OutputError, VerificationError when a
    module's relative L2 error against PyTorch is over the tolerance of the precision. Whatever happens,
    ``output`` is either a complete engine or as it was before.
    """
    started = time.perf_counter()
    target = resolve_target(target)
    precision = default_precision(target, device) if precision is None else parse_precision(precision)
    if refit and not hasattr(require_target(target, precision, device), "refit"):
        raise InputError(f"target {target!r} cannot replace weights: use --target tensorrt, or no --refit")
    require_target(target, precision, device)
    if not 1 <= memory < math.inf:
        raise InputError(f"memory is {memory}: give 1 or more, a multiple of the weights in float32")
    with EngineWriter(output, force) as writer:
        source = checkpoint if isinstance(checkpoint, Checkpoint) else load_checkpoint(checkpoint)
        if controlnets or t2i_adapters or ip_adapter is not None or image_encoder is not None:
            source = add_control(
                source,
                controlnets=controlnets,
                t2i_adapters=t2i_adapters,
                ip_adapter=ip_adapter,
                image_encoder=image_encoder,
            )
        model, modules = source.spec, _chosen(source, modules)
        any_sides = getattr(get_target(target), "ANY_SIDES", False) and device != "cuda"
        if any_sides and deep_cache is None and not token_merging:
            model = with_any_sides(source, model)
        model = _with_defaults(model, height, width, batch)
        model = with_token_merging(source, model, token_merging)
        if deep_cache is not None:
            model, modules = with_deep_cache(source, model, modules, deep_cache)
        if preview_vae is not False:
            source, modules = with_preview_vae(source, modules, preview_vae)
        builder = _Builder(source, model, target, precision, memory, device, writer, progress, modules, refit)
        entries = {name: builder.build(name) for name in modules}
        manifest = Manifest(
            format_version=FORMAT_VERSION,
            model=model,
            scheduler=source.scheduler,
            modules=entries,
            tokenizer_files=copy_tokenizer(source, writer),
            provenance=provenance(source.name, source.shipped, source.sha256(), _control_hashes(source)),
        )
        writer.finish(manifest)
    return BuildSummary(
        path=Path(output),
        target=target,
        precision=precision,
        engine_hash=manifest.digest,
        modules=tuple(summarise(name, entry) for name, entry in entries.items()),
        seconds=time.perf_counter() - started,
    )


@dataclass
class _Builder:
    checkpoint: Checkpoint
    model: ModelSpec
    target: str
    precision: Precision
    memory: float
    device: str | None
    writer: EngineWriter
    progress: Progress | None
    modules: tuple[str, ...]
    refit: bool

    def build(self, name: str) -> ModuleEntry:
        """Take one module through all stages; what it occupied in memory is free afterwards."""
        started = time.perf_counter()
        target, spec = get_target(self.target), module_spec(name, self.model)
        module = captured_module(
            self.checkpoint, spec, target.NEEDS_GRAPH, lambda stage: self._announce(name, stage)
        )
        self._announce(name, "compile")
        sizes = verification_sizes(spec, self.model)[0]
        options = CompileOptions(
            self.precision,
            sizes,
            self.memory,
            device=self.device or "cpu",
            refit=self.refit,
            progress=lambda fraction: self._announce(name, "compile", fraction),
        )
        compiled = target.compile(module, self.writer.folder, options)
        files, size = self.writer.hash_files(compiled.files)
        entry = ModuleEntry(
            target=self.target,
            precision=self.precision,
            inputs=spec.inputs,
            outputs=spec.outputs,
            shapes=compiled.shapes or spec.shapes,
            files=files,
            bytes=size,
            error={},
            seconds=0.0,
            tactics=compiled.tactics,
            requires=compiled.requires,
        )
        self._announce(name, "verify")
        expected = expected_of(entry, module, self.model, self.checkpoint.vocab_size)
        del module  # a session opens when PyTorch's module is gone: both would be two copies of the weights
        release()
        entry = verified(entry, name, self.writer.folder, expected)
        release()
        return dataclasses.replace(entry, seconds=time.perf_counter() - started)

    def _announce(self, module: str, stage: str, fraction: float = 0.0) -> None:
        announce(self.progress, self.modules, module, stage, fraction)


def announce(
    progress: Progress | None, modules: tuple[str, ...], module: str, stage: str, fraction: float = 0.0
) -> None:
    """Tell ``progress`` that one of ``modules`` is at a stage."""
    if progress is not None:
        index = modules.index(module) * len(_STAGES) + _STAGES.index(stage)
        progress(Stage(module, stage, index, len(modules) * len(_STAGES), fraction))


def expected_of(entry: ModuleEntry, module: CapturedModule, model: ModelSpec, vocab_size: int) -> Expected:
    """What PyTorch computes of a compiled module that has this entry."""
    spec = dataclasses.replace(module.spec, shapes=entry.shapes)
    module = dataclasses.replace(module, spec=spec, program=None)
    computes = computes_in(entry.target, entry.precision)
    return expect(module, model, vocab_size, entry.precision, computes, verification_device(entry))


def verified(entry: ModuleEntry, name: str, folder: Path, expected: Expected) -> ModuleEntry:
    """The entry with the error of its compiled module in ``folder``. Raises VerificationError."""
    with get_target(entry.target).open(folder, name, entry, None) as session:
        error = measure(session, expected)
    error.check(name, entry.precision)
    return dataclasses.replace(entry, error=_error_entry(error))


def captured_module(
    checkpoint: Checkpoint, spec: ModuleSpec, graph: bool, announce: Callable[[str], None]
) -> CapturedModule:
    """A module of a checkpoint, with its graph, normalised, if that is wanted."""
    announce("load")
    part = checkpoint.load(spec.part)
    module = CapturedModule(spec, spec.wrap(part), part)
    announce("capture")
    if graph:
        module = capture(module)
        assert module.program is not None
        module = module.with_program(run_passes(module.program))
    return module


def _error_entry(error: ModuleError) -> dict[str, float]:
    return {"relative_l2": error.relative_l2, "max_abs": error.max_abs}


def summarise(name: str, entry: ModuleEntry) -> ModuleSummary:
    """An entry as a line of the summary."""
    return ModuleSummary(
        name=name,
        target=entry.target,
        bytes=entry.bytes,
        relative_l2=entry.error["relative_l2"],
        max_abs=entry.error["max_abs"],
        seconds=entry.seconds,
    )


def _control_hashes(checkpoint: Checkpoint) -> dict[str, str]:
    """The hash of each network that controls the U-Net, by its part."""
    return checkpoint.additions.sha256() if checkpoint.additions is not None else {}


def _with_defaults(model: ModelSpec, height: int | None, width: int | None, batch: int) -> ModelSpec:
    """The model with the requested default sizes. Raises InputError for sizes that it cannot have."""
    least = model.least_side
    chosen: dict[str, Any] = {}
    for name, value in (("height", height), ("width", width)):
        if value is None:
            value = max(least, getattr(model, f"default_{name}"))
        if value < least or value % model.size_multiple:
            below = max(least, value // model.size_multiple * model.size_multiple)
            raise InputError(
                f"{name} is {value}: it must be a multiple of {model.size_multiple}"
                f" and at least {least}; try {below}"
            )
        chosen[f"default_{name}"] = value
    if batch < 1:
        raise InputError(f"batch is {batch}: give 1 or more")
    return dataclasses.replace(model, default_batch=batch, **chosen)


def _chosen(checkpoint: Checkpoint, modules: tuple[str, ...] | None) -> tuple[str, ...]:
    """The modules to build. Raises InputError for one that the checkpoint does not have."""
    for name in modules or ():
        if name not in checkpoint.modules:
            raise InputError(
                f"{checkpoint.name} has no module {name!r}: it has {', '.join(checkpoint.modules)}"
            )
    return checkpoint.modules if modules is None else modules


def copy_tokenizer(checkpoint: Checkpoint, writer: EngineWriter) -> dict[str, str]:
    """Write the files of the tokenizers into the engine; their SHA-256 sums by name."""
    names = []
    for folder in checkpoint.tokenizers:
        (writer.folder / folder).mkdir(exist_ok=True)
        for name, contents in checkpoint.tokenizer_files(folder).items():
            names.append(f"{folder}/{name}")
            (writer.folder / folder / name).write_bytes(contents)
    if TOKENIZER_FOLDER not in checkpoint.tokenizers:
        (writer.folder / TOKENIZER_FOLDER).rmdir()
    return writer.hash_files(names)[0]
