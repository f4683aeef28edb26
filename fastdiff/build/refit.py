"""New weights for an engine: those of another checkpoint of the same architecture, without compiling again.

For an engine that was built with ``refit=True`` on a target that can do it, ``tensorrt``: fine-tuned weights
are in place in the time that writing the graph and checking the result take.
"""

from __future__ import annotations

import dataclasses
import os
import time
from pathlib import Path
from typing import Any

from fastdiff.build.build import (
    BuildSummary,
    Progress,
    announce,
    captured_module,
    copy_tokenizer,
    expected_of,
    summarise,
    verified,
)
from fastdiff.build.checkpoint import Checkpoint, load_checkpoint
from fastdiff.build.memory import release
from fastdiff.build.modules import module_spec
from fastdiff.build.provenance import provenance
from fastdiff.config import ModelSpec
from fastdiff.engine_dir import Engine, open_engine
from fastdiff.engine_writer import EngineWriter
from fastdiff.errors import EngineMismatchError, InputError
from fastdiff.manifest import ModuleEntry
from fastdiff.targets import get_target

__all__ = ["refit_engine"]

_ARCHITECTURE = (
    "family",
    "latent_channels",
    "vae_scale_factor",
    "size_multiple",
    "max_tokens",
    "hidden_size",
    "pooled_size",
    "time_ids",
    "guidance_embedding",
    "condition_channels",
    "num_classes",
    "picture_channels",
    "text_encoders",
)


def refit_engine(
    checkpoint: str | Path | Checkpoint,
    output: str | os.PathLike[str],
    *,
    target: str | None = None,
    precision: str | None = None,
    progress: Progress | None = None,
) -> BuildSummary:
    """Replace the weights of the engine ``output`` by those of ``checkpoint``, and its tokenizer and
    scheduler.

    Sizes, target, precision and tactics stay; ``target`` and ``precision``, where given, are what they must
    be. Every module is verified against PyTorch again. Raises InputError for an engine that was not built
    for it, EngineMismatchError for a checkpoint of another architecture, and what ``build_engine`` raises.
    Whatever happens, ``output`` is either the new engine or the old one.
    """
    started = time.perf_counter()
    engine = open_engine(output)
    if added := engine.manifest.model.control.modules():
        raise InputError(
            f"{engine.path} has {added[0]}, which --refit does not replace: build it again with --force"
        )
    for name, entry in engine.manifest.modules.items():
        if not hasattr(get_target(entry.target), "refit") or not entry.tactics.get("refittable"):
            raise InputError(
                f"{engine.path}: {name} was not built to be refitted: build it again with --refit --force"
            )
        for what, wanted in (("target", target), ("precision", precision)):
            if wanted is not None and wanted != getattr(entry, what):
                raise InputError(
                    f"{engine.path}: {what} of {name} is {getattr(entry, what)}, not {wanted}: leave --{what}"
                    " out, or build it again with --force"
                )
    source = checkpoint if isinstance(checkpoint, Checkpoint) else load_checkpoint(checkpoint)
    model = _same_architecture(engine, source)
    with EngineWriter(output, force=True) as writer:
        entries = {
            name: _refit(engine, name, source, model, writer, progress) for name in engine.manifest.modules
        }
        manifest = dataclasses.replace(
            engine.manifest,
            model=model,
            scheduler=source.scheduler,
            modules=entries,
            tokenizer_files=copy_tokenizer(source, writer),
            provenance=provenance(source.name, source.shipped, source.sha256()),
        )
        writer.finish(manifest)
    first = next(iter(entries.values()))
    return BuildSummary(
        path=Path(output),
        target=first.target,
        precision=first.precision,
        engine_hash=manifest.digest,
        modules=tuple(summarise(name, entry) for name, entry in entries.items()),
        seconds=time.perf_counter() - started,
    )


def _same_architecture(engine: Engine, source: Checkpoint) -> ModelSpec:
    """The checkpoint's model with the engine's default sizes. Raises EngineMismatchError."""
    old, new = engine.manifest.model, source.spec
    for field in _ARCHITECTURE:
        if getattr(old, field) != getattr(new, field):
            raise EngineMismatchError(
                f"{engine.path} was built for a {field} of {getattr(old, field)}, {source.name} has"
                f" {getattr(new, field)}: build an engine of its own"
            )
    sizes = {name: getattr(old, name) for name in ("default_height", "default_width", "default_batch")}
    return dataclasses.replace(new, **sizes)


def _refit(
    engine: Engine,
    name: str,
    source: Checkpoint,
    model: ModelSpec,
    writer: EngineWriter,
    progress: Progress | None,
) -> ModuleEntry:
    started = time.perf_counter()
    modules = tuple(engine.manifest.modules)
    entry = engine.entry(name)
    target: Any = get_target(entry.target)
    module = captured_module(
        source,
        module_spec(name, model),
        target.NEEDS_GRAPH,
        lambda stage: announce(progress, modules, name, stage),
    )
    announce(progress, modules, name, "compile")
    files, size = writer.hash_files(target.refit(module, engine.path, writer.folder, entry))
    entry = dataclasses.replace(entry, files=files, bytes=size)
    announce(progress, modules, name, "verify")
    expected = expected_of(entry, module, model, source.vocab_size)
    del module
    release()
    entry = verified(entry, name, writer.folder, expected)
    release()
    return dataclasses.replace(entry, seconds=time.perf_counter() - started)
