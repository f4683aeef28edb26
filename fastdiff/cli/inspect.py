"""``fastdiff inspect``: what an engine holds."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from fastdiff.cli.values import byte_size

if TYPE_CHECKING:
    from fastdiff.config import ModelSpec
    from fastdiff.manifest import Manifest

SUMMARY = "show what an engine holds and check its files"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("engine", metavar="ENGINE", help="engine folder")
    parser.add_argument("--json", action="store_true", help="the manifest as JSON")
    parser.add_argument(
        "--tactics", action="store_true", help="the algorithm of each layer and size, as measured at build"
    )


def run(arguments: argparse.Namespace) -> None:
    """Print the engine's manifest as text or JSON. Raises EngineError."""
    from fastdiff.engine_dir import open_engine

    engine = open_engine(arguments.engine, check_machine=False)
    manifest, model = engine.manifest, engine.manifest.model
    if arguments.json:
        import json

        from fastdiff.manifest import dump_manifest

        document = {"path": str(engine.path), "engine_hash": engine.engine_hash}
        print(json.dumps({**json.loads(dump_manifest(manifest)), **document}, indent=2, sort_keys=True))
        return
    if arguments.tactics:
        _print_tactics(manifest)
        return
    rows = {
        "engine": f"{engine.path}, hash {engine.engine_hash[:16]}, format {manifest.format_version}",
        "model": f"{model.family}, pictures {model.default_width} x {model.default_height}, sides in "
        f"multiples of {model.size_multiple} from {model.least_side} on{_condition(model)}",
        **({"prompts": _prompts(manifest)} if model.takes_prompt else {}),
        "scheduler": f"{manifest.scheduler.get('_class_name', 'unknown')}",
        **{
            key.replace("_", " "): value
            for key, value in manifest.provenance.items()
            if not isinstance(value, dict)
        },
    }
    for key, value in rows.items():
        print(f"{key:<20} {value}")
    for key, value in manifest.provenance.items():
        if isinstance(value, dict):
            print(
                f"{key.replace('_', ' '):<20} {', '.join(f'{name} {item}' for name, item in value.items())}"
            )
    print(f"\n{'module':<22} {'target':<12} {'precision':<9} {'size':>9} {'error':>9} {'seconds':>8}")
    for name, entry in manifest.modules.items():
        error = entry.error.get("relative_l2", float("nan"))
        print(
            f"{name:<22} {entry.target:<12} {entry.precision:<9} {byte_size(entry.bytes):>9} {error:>9.1e} "
            f"{entry.seconds:>8.1f}"
        )


def _condition(model: ModelSpec) -> str:
    """What pictures are made of beside a prompt, each with a comma in front."""
    parts = [] if model.takes_prompt else ["no prompt"]
    if model.num_classes:
        parts.append(f"{model.num_classes} classes")
    if model.guidance_embedding:
        parts.append("guidance as an input")
    if model.condition_channels:
        parts.append(f"{model.condition_channels} channels beside the latents")
    return "".join(f", {part}" for part in parts)


def _prompts(manifest: Manifest) -> str:
    """What can be done with prompts."""
    from fastdiff.prompts.reader import takes_vectors, text_encoders

    encoders = text_encoders(manifest.model)
    window = encoders[0].window
    allowed = manifest.modules["unet"].shapes.get("tokens")
    if allowed is None:
        chunks = "one chunk"
    elif allowed.maximum is None:
        chunks = "chunks"
    else:
        chunks = f"up to {allowed.maximum // window} chunks"
    parts = [f"{chunks} of {window} tokens"]
    if len(encoders) > 1:
        parts.append(f"{len(encoders)} text encoders")
    last = min(encoder.layers for encoder in encoders) - 1
    parts.append(f"clip-skip 0 to {last}" if last > 0 else "no clip-skip")
    takes = all(takes_vectors(each, manifest.modules[each.module].inputs) for each in encoders)
    parts.append("textual inversion" if takes else "no textual inversion")
    if manifest.model.time_ids:
        parts.append("sizes" if manifest.model.time_ids == 6 else "sizes and an aesthetic score")
    return ", ".join(parts)


def _print_tactics(manifest: Manifest) -> None:
    """A line per layer and size, in the order in which the layers run."""
    for name, entry in manifest.modules.items():
        layers: dict[str, dict[str, str]] = entry.tactics.get("layers", {})
        measured: dict[str, dict[str, float]] = entry.tactics.get("measured", {})
        print(f"{name}: target {entry.target}, {len(layers)} layers measured")
        if "memory" in entry.tactics:
            stored, plain = entry.tactics["weight_bytes"], entry.tactics["fp32_bytes"]
            print(
                f"weights {byte_size(stored)}, {stored / max(plain, 1):.2f} times those in fp32,"
                f" {entry.tactics['memory']:g} times allowed"
            )
        rows = [(layer, shape, tactic) for layer, row in layers.items() for shape, tactic in row.items()]
        if not rows:
            continue
        wide = [max(len(row[column]) for row in rows) for column in (0, 1)]
        print(f"{'layer':<{wide[0]}}  {'shape':<{wide[1]}}  {'tactic':<15} {'ms':>9} {'GFLOP/s':>8}")
        for layer, shape, tactic in rows:
            times = measured[shape]
            print(
                f"{layer:<{wide[0]}}  {shape:<{wide[1]}}  {tactic:<15} {times[tactic]:>9.3f}"
                f" {times['gflop'] / max(times[tactic], 1e-6) * 1e3:>8.0f}"
            )
