"""An engine folder per module of a pipeline, found again by the hash of all that it was made from."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastdiff._version import __version__
from fastdiff.build.build import expected_of, verified
from fastdiff.build.capture import CapturedModule, capture
from fastdiff.build.memory import release
from fastdiff.build.passes import run_passes
from fastdiff.build.provenance import provenance
from fastdiff.build.verify import verification_sizes
from fastdiff.compiled.specs import Part
from fastdiff.config import Precision
from fastdiff.engine_dir import open_engine
from fastdiff.engine_writer import EngineWriter
from fastdiff.errors import EngineError
from fastdiff.manifest import FORMAT_VERSION, Manifest, ModuleEntry
from fastdiff.targets import CompileOptions, Session, get_target

__all__ = ["STAGES", "EngineSettings", "open_part", "weights_digest"]

STAGES = ("capture", "compile", "verify")


@dataclass(frozen=True)
class EngineSettings:
    """How engines are made and opened: target, precision, their folder, threads of a session."""

    target: str
    precision: Precision
    folder: Path
    threads: int | None


def weights_digest(component: nn.Module) -> str:
    """SHA-256 over the class, the config and every weight of a component."""
    config: Any = component.config
    entries = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    # where it was loaded from, and by which version, changes nothing
    plain = {key: value for key, value in sorted(entries.items()) if not key.startswith("_")}
    total = hashlib.sha256(f"{type(component).__name__} {json.dumps(plain, default=str)}\n".encode())
    for name, tensor in component.state_dict().items():
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        total.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return total.hexdigest()


def open_part(
    part: Part, weights: str, settings: EngineSettings, announce: Callable[[str, float], None]
) -> tuple[Session, Path]:
    """A module's session, and the engine that it is of, which is built unless the folder has it.

    ``weights`` is the ``weights_digest`` of the component. ``announce(stage, fraction)`` is told of STAGES.
    Raises CaptureError, TargetError, OutputError and VerificationError.
    """
    sizes = (part.model.default_height, part.model.default_width, part.model.default_batch)
    made_from = (
        weights,
        part.spec.inputs,
        part.spec.outputs,
        settings.target,
        settings.precision.value,
        sizes,
    )
    key = hashlib.sha256(repr((__version__, FORMAT_VERSION, *made_from)).encode()).hexdigest()
    path = settings.folder / f"{part.spec.name}-{key[:24]}.fd"
    try:
        engine = open_engine(path)
    except EngineError:  # none, damaged, or of another machine: built anew
        _build(part, weights, settings, path, announce)
        engine = open_engine(path)
    return engine.open_module(part.spec.name, settings.threads), path


def _build(
    part: Part, weights: str, settings: EngineSettings, path: Path, announce: Callable[[str, float], None]
) -> None:
    started = time.perf_counter()
    target, spec = get_target(settings.target), part.spec
    announce("capture", 0.0)
    module = capture(CapturedModule(spec, part.eager, part.source))
    assert module.program is not None
    module = module.with_program(run_passes(module.program))
    with EngineWriter(path, force=True) as writer:
        announce("compile", 0.0)
        options = CompileOptions(
            settings.precision,
            verification_sizes(spec, part.model)[0],
            threads=settings.threads,
            progress=lambda fraction: announce("compile", fraction),
        )
        compiled = target.compile(module, writer.folder, options)
        files, size = writer.hash_files(compiled.files)
        entry = ModuleEntry(
            target=settings.target,
            precision=settings.precision,
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
        announce("verify", 0.0)
        expected = expected_of(entry, module, part.model, part.vocabulary)
        del module
        release()
        entry = verified(entry, spec.name, writer.folder, expected)
        entry = dataclasses.replace(entry, seconds=time.perf_counter() - started)
        manifest = Manifest(
            format_version=FORMAT_VERSION,
            model=part.model,
            scheduler={},
            modules={spec.name: entry},
            tokenizer_files={},
            provenance=provenance(spec.part, False, weights),
        )
        writer.finish(manifest)
