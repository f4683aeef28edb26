"""Reading a checkpoint's JSON documents, and checking them against what its family must have."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fastdiff.build.families import FAMILIES, Family, Source
from fastdiff.build.families.classes import CONFIGS, refused_option
from fastdiff.build.families.scheduler import corrected_scheduler
from fastdiff.build.families.shared import TOKENIZERS
from fastdiff.config import ModelSpec
from fastdiff.errors import CheckpointError, InputError
from fastdiff.samplers import NoiseSchedule

__all__ = ["config_name", "described", "read_json", "read_source"]

_SCHEDULER_KEYS = ("_class_name", "num_train_timesteps")
_WITHOUT_BETAS = ("CMStochasticIterativeScheduler",)
"""Schedulers that have noise levels of their own in place of betas."""


def read_source(
    path: Path, read: Callable[[str], dict[str, Any]], window: Callable[[Path, str], int]
) -> tuple[Source, Family, tuple[str, ...]]:
    """The checked configs that ``read`` gives by name, the family, and the folders of the tokenizers."""
    index = read("model_index.json")
    found = index.get("_class_name")
    family = FAMILIES.get(found) if isinstance(found, str) else None
    if family is None:
        raise CheckpointError(
            f"{path} holds a {found}: only StableDiffusionPipeline checkpoints and those of"
            f" {', '.join(name for name in FAMILIES if name != 'StableDiffusionPipeline')} can be built"
        )
    classes = _classes(path, index, family)
    configs = {part: read(config_name(part, family.folders)) for part in (*classes, *family.schedulers)}
    for part, document in configs.items():
        _check_config(path / config_name(part, family.folders), part, document, classes)
    configs["scheduler"] = corrected_scheduler(str(found), configs["scheduler"])
    tokenizers = tuple(TOKENIZERS[part] for part in classes if part in TOKENIZERS)
    windows = {folder: window(path, folder) for folder in tokenizers}
    return Source(path, str(found), index, configs, classes, windows), family, tokenizers


def described(source: Source, family: Family) -> ModelSpec:
    """The ModelSpec of a source. Raises CheckpointError."""
    try:
        return family.describe(source)
    except (TypeError, ValueError, IndexError, KeyError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{source.path}: a config value has the wrong type ({error})") from error


def _classes(path: Path, index: dict[str, Any], family: Family) -> dict[str, str]:
    """The library's class of each part that the checkpoint has. Raises CheckpointError."""
    classes = {}
    for part, allowed in family.parts.items():
        folder = family.folders.get(part, part)
        entry = index.get(folder)
        named = entry[1] if isinstance(entry, list) and len(entry) == 2 else entry
        if named is None and part in family.optional:
            continue
        if named not in allowed:
            raise CheckpointError(
                f"{path}: model_index.json gives {named} as {folder}: only"
                f" {' or '.join(allowed)} is supported"
            )
        classes[part] = str(named)
    return classes


def _is_scheduler(part: str) -> bool:
    return part.endswith("scheduler")


def config_name(part: str, folders: Mapping[str, str]) -> str:
    """The name of a part's config, or of the scheduler's, in a checkpoint's folder."""
    return f"{folders.get(part, part)}/{'scheduler_config' if _is_scheduler(part) else 'config'}.json"


def read_json(path: Path, name: str) -> dict[str, Any]:
    """The document ``name`` of the folder ``path``. Raises CheckpointError."""
    file = path / name
    if not file.is_file():
        pickles = sorted(p.name for p in path.iterdir() if p.suffix in (".ckpt", ".bin", ".pt"))
        hint = f" (it holds {pickles[0]}, a pickle, which is not read)" if pickles else ""
        raise CheckpointError(f"{path}: {name} is missing{hint}: give a complete diffusers folder")
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{file} is not readable JSON ({error}): download the checkpoint again"
        ) from error
    if not isinstance(document, dict):
        raise CheckpointError(f"{file} holds no JSON object: download the checkpoint again")
    return document


def _check_config(file: Path, part: str, config: dict[str, Any], classes: Mapping[str, str]) -> None:
    """Raises CheckpointError for a missing key, an option that cannot be built, or no noise schedule."""
    required = list(_SCHEDULER_KEYS if _is_scheduler(part) else CONFIGS[classes[part]].required)
    own_levels = config.get("_class_name") in _WITHOUT_BETAS or config.get("trained_betas") is not None
    if _is_scheduler(part) and not own_levels:
        required += ["beta_start", "beta_end", "beta_schedule"]
    if missing := [key for key in required if key not in config]:
        raise CheckpointError(f"{file} lacks {', '.join(missing)}: download the checkpoint again")
    if _is_scheduler(part):
        try:
            NoiseSchedule.from_config(config)
        except InputError as error:
            raise CheckpointError(f"{file}: {error}") from error
    elif key := refused_option(classes[part], config):
        raise CheckpointError(f"{file} sets {key} to {config[key]!r}: such models cannot be built yet")
