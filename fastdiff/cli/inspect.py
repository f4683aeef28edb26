"""``fastdiff inspect``: what an engine holds."""

from __future__ import annotations

import argparse

from fastdiff.cli.values import byte_size

SUMMARY = "show what an engine holds and check its files"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("engine", metavar="ENGINE", help="engine folder")
    parser.add_argument("--json", action="store_true", help="the manifest as JSON")


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
    rows = {
        "engine": f"{engine.path}, hash {engine.engine_hash[:16]}, format {manifest.format_version}",
        "model": f"{model.family}, pictures {model.default_width} x {model.default_height}, sides in "
        f"multiples of {model.size_multiple}, prompts up to {model.max_tokens} tokens",
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
    print(f"\n{'module':<14} {'target':<12} {'precision':<9} {'size':>9} {'error':>9} {'seconds':>8}")
    for name, entry in manifest.modules.items():
        error = entry.error.get("relative_l2", float("nan"))
        print(
            f"{name:<14} {entry.target:<12} {entry.precision:<9} {byte_size(entry.bytes):>9} {error:>9.1e} "
            f"{entry.seconds:>8.1f}"
        )
