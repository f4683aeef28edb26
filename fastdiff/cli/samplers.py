"""``fastdiff samplers``: what there is, and the options of each."""

from __future__ import annotations

import argparse
import json
import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastdiff.samplers import Sampler

SUMMARY = "list the samplers, or the options of one"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("name", metavar="NAME", nargs="?", help="a sampler, to show it with its options")
    parser.add_argument("--json", action="store_true", help="as JSON")


def run(arguments: argparse.Namespace) -> None:
    """Print a table of all samplers, or one with its options. Raises InputError for an unknown name."""
    from fastdiff.samplers import SAMPLERS, find_sampler

    if arguments.name is not None:
        sampler = find_sampler(arguments.name)
        shown = {**describe(sampler), "options": _options(sampler)}
        if arguments.json:
            print(json.dumps(shown, indent=2))
            return
        for key, value in shown.items():
            if key != "options":
                print(f"{key.replace('_', ' '):<22} {_text(value)}")
        if shown["options"]:
            print("\noption, for --sampler-option OPTION=VALUE     default")
        for key, default in shown["options"].items():
            print(f"  {key:<42} {json.dumps(default)}")
        return
    rows = [describe(sampler) for sampler in SAMPLERS.values()]
    if arguments.json:
        print(json.dumps(rows, indent=2))
        return
    width = max(len(row["name"]) for row in rows)
    print(f"{'name':<{width}}  order  evaluations  noise  paper")
    for row in rows:
        noise = "yes" if row["stochastic"] else "no"
        count = row["evaluations_per_step"]
        print(f"{row['name']:<{width}}  {row['order']:>5}  {count:>11}  {noise:<5}  {row['paper']}")


def describe(sampler: Sampler) -> dict[str, Any]:
    """What the registry knows of a sampler, in JSON values."""
    return {
        "name": sampler.name,
        "order": sampler.order,
        "evaluations_per_step": sampler.evaluations,
        "stochastic": sampler.stochastic,
        "paper": sampler.paper,
        "diffusers_classes": list(sampler.classes),
    }


def _options(sampler: Sampler) -> dict[str, Any]:
    """The options with their defaults in JSON values; infinities, which JSON lacks, as text."""
    from fastdiff.samplers import options_of

    return {
        key: str(default) if isinstance(default, float) and math.isinf(default) else default
        for key, default in options_of(sampler).items()
    }


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return (", ".join(map(str, value)) or "none") if isinstance(value, list) else str(value)
