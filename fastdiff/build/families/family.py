"""What a family of checkpoints is, and what it is read from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastdiff.config import ModelSpec

__all__ = ["Family", "Source"]


@dataclass(frozen=True)
class Source:
    """A checkpoint's configs, read and checked for their keys.

    path      the checkpoint, for messages
    pipeline  the class of ``diffusers`` that ``model_index.json`` names
    index     ``model_index.json``
    configs   config.json by part, those of schedulers among them
    classes   the library's class by part
    windows   tokens that each tokenizer says it takes, by folder; those that say nothing are left out
    """

    path: Path
    pipeline: str
    index: Mapping[str, Any]
    configs: Mapping[str, Mapping[str, Any]]
    classes: Mapping[str, str]
    windows: Mapping[str, int]


@dataclass(frozen=True)
class Family:
    """Checkpoints that are read in one way.

    name       as ``ModelSpec.family`` has it
    pipelines  classes of ``diffusers`` that ``model_index.json`` may name
    parts      parts with weights, with the classes of ``build/modules/parts.py`` that each may have
    optional   parts that may be missing
    schedulers folders of schedulers' configs
    folders    folders of parts that are not called as the part is
    describe   makes the ModelSpec of a source. Raises CheckpointError for parts that do not fit each other;
               TypeError, ValueError and IndexError for values of the wrong type are the caller's
    """

    name: str
    pipelines: tuple[str, ...]
    parts: Mapping[str, tuple[str, ...]]
    describe: Callable[[Source], ModelSpec]
    optional: tuple[str, ...] = ()
    schedulers: tuple[str, ...] = ("scheduler",)
    folders: Mapping[str, str] = field(default_factory=dict)
