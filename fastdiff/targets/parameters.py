"""``<module>.parameters.json``: where a compiled module has its layers' weights.

For each layer, by its path in the checkpoint's module: the shape of its weight, and the places that hold it,
in a form of the target's own. LoRAs need it; an engine without this file runs as well.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastdiff.errors import EngineDamagedError, OutputError, TargetError
from fastdiff.manifest import ModuleEntry

__all__ = ["Layer", "read", "write"]

FORMAT_VERSION = 1
_SUFFIX = ".parameters.json"


@dataclass(frozen=True)
class Layer:
    """Shape of a layer's weight, and its places as the target wrote them, each of one form."""

    shape: tuple[int, ...]
    places: tuple[tuple[Any, ...], ...]


def write(folder: Path, module: str, layers: Mapping[str, Layer]) -> tuple[str, ...]:
    """Write the file of a module into ``folder``; its name, none without layers. Raises OutputError."""
    if not layers:
        return ()
    name = f"{module}{_SUFFIX}"
    document = {
        "format_version": FORMAT_VERSION,
        "layers": {path: [list(layer.shape), list(layer.places)] for path, layer in layers.items()},
    }
    try:
        (folder / name).write_text(json.dumps(document, separators=(",", ":")) + "\n", encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{folder / name} cannot be written: {error.strerror}") from error
    return (name,)


def read(folder: Path, module: str, entry: ModuleEntry, form: tuple[type, ...]) -> dict[str, Layer]:
    """The layers of a module by path, their places being of ``form``.

    Raises TargetError for an engine that was built without it, and EngineDamagedError.
    """
    name = f"{module}{_SUFFIX}"
    if name not in entry.files:
        raise TargetError(
            f"{folder}: {module} was built without the places of its weights, which a LoRA needs:"
            " build it again"
        )
    try:
        document = json.loads((folder / name).read_text(encoding="utf-8"))
        if document["format_version"] != FORMAT_VERSION:
            raise ValueError(f"format version {document['format_version']}, wanted {FORMAT_VERSION}")
        return {path: _layer(item, form) for path, item in document["layers"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise EngineDamagedError(f"{folder}: {name} cannot be read ({reason}); build it again") from error


def _layer(item: Any, form: tuple[type, ...]) -> Layer:
    shape, places = item
    layer = Layer(tuple(shape), tuple(tuple(place) for place in places))
    if not all(type(size) is int and size > 0 for size in layer.shape):
        raise ValueError(f"shape {shape}, wanted positive sizes")
    for place in layer.places:
        if tuple(map(type, place)) != form:
            raise ValueError(f"place {list(place)}, wanted [{', '.join(kind.__name__ for kind in form)}]")
    return layer
