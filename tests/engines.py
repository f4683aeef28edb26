"""Engines without models: real manifests around a few bytes, to damage and to open."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from fastdiff.config import ModelSpec, Precision, SizeRange, TensorSpec
from fastdiff.engine_dir import TOKENIZER_FOLDER
from fastdiff.engine_writer import EngineWriter
from fastdiff.manifest import FORMAT_VERSION, Manifest, ModuleEntry, dump_manifest, parse_manifest

MODEL = ModelSpec(
    family="stable_diffusion",
    latent_channels=4,
    vae_scale_factor=4,
    scaling_factor=0.18215,
    shift_factor=0.0,
    default_height=32,
    default_width=32,
    default_batch=1,
    size_multiple=8,
    max_tokens=77,
    hidden_size=32,
)

TEXT_ENCODER = ModuleEntry(
    target="onnxruntime",
    precision=Precision.FP32,
    inputs=(TensorSpec("input_ids", "int64", ("batch", "tokens")),),
    outputs=(TensorSpec("last_hidden_state", "float32", ("batch", "tokens", 32)),),
    shapes={"batch": SizeRange(), "tokens": SizeRange(1, 77)},
    files={},
    bytes=0,
    error={"relative_l2": 3.5e-7, "max_abs": 1e-6},
    seconds=1.25,
    tactics={"format": "onnx"},
)

MANIFEST = Manifest(
    format_version=FORMAT_VERSION,
    model=MODEL,
    scheduler={"_class_name": "PNDMScheduler", "num_train_timesteps": 1000, "trained_betas": None},
    modules={},
    tokenizer_files={},
    provenance={"checkpoint": {"name": "tiny", "shipped": False, "sha256": "0" * 64}},
)


def fill(writer: EngineWriter, **changes: Any) -> Manifest:
    """Write two files into a new engine; its manifest, with the given fields of the module entry changed."""
    (writer.folder / "text_encoder.onnx").write_bytes(b"not really a model " * 40)
    (writer.folder / TOKENIZER_FOLDER / "vocab.json").write_text('{"a": 0}', encoding="utf-8")
    files, size = writer.hash_files(["text_encoder.onnx"])
    tokenizer, _ = writer.hash_files([f"{TOKENIZER_FOLDER}/vocab.json"])
    entry = replace(TEXT_ENCODER, **{"files": files, "bytes": size, **changes})
    return replace(MANIFEST, modules={"text_encoder": entry}, tokenizer_files=tokenizer)


def write_engine(path: Path, force: bool = False, **changes: Any) -> Path:
    """A complete engine at ``path``."""
    with EngineWriter(path, force) as writer:
        writer.finish(fill(writer, **changes))
    return path


def without_module(name: str, engine: Path, copy: Path) -> Path:
    """A copy of an engine as if it had been built without one of its modules."""
    shutil.copytree(engine, copy)
    path = copy / "engine.json"
    manifest = parse_manifest(path.read_bytes())
    modules = dict(manifest.modules)
    for file in modules.pop(name).files:
        (copy / file).unlink()
    path.write_text(dump_manifest(replace(manifest, modules=modules)), encoding="utf-8")
    return copy
