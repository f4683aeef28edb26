"""Reading a checkpoint in the diffusers folder layout; ``build/families`` says what each family holds.

Only safetensors are read, never pickles, and no code of the checkpoint is run. Every way in which a folder
can be incomplete or damaged ends in a CheckpointError that names the file.
"""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastdiff.build.families import FAMILIES, Family, Source
from fastdiff.build.families.classes import CONFIGS, refused_option
from fastdiff.build.families.shared import TOKENIZERS
from fastdiff.build.tokenizers import check_tokenizer, read_tokenizer
from fastdiff.build.weights import load_part, weight_files
from fastdiff.config import MODULES, ModelSpec
from fastdiff.engine_dir import file_sha256
from fastdiff.errors import CheckpointError

if TYPE_CHECKING:
    from fastdiff.build.control import Additions

__all__ = ["Checkpoint", "load_checkpoint", "modules_of"]

_MODULES = {
    "text_encoder": ("text_encoder",),
    "text_encoder_2": ("text_encoder_2",),
    "unet": ("unet",),
    "vae": ("vae_decoder", "vae_encoder"),
}
"""The modules that each part becomes, in the order in which they are built."""

_SCHEDULER_KEYS = ("_class_name", "num_train_timesteps")
_WITHOUT_BETAS = ("CMStochasticIterativeScheduler",)
"""Schedulers that have noise levels of their own in place of betas."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose configs have been read and checked; weights are loaded part by part.

    ``configs`` are by part, ``scheduler`` among them; ``classes`` are the library's by part. ``modules`` are
    those that an engine of it has, in the order in which they are built, ``tokenizers`` the folders of its
    tokenizers. ``folders`` are those of parts that are not called as the part is. ``additions`` are networks
    that control the U-Net.
    """

    path: Path
    name: str
    shipped: bool
    configs: dict[str, dict[str, Any]]
    spec: ModelSpec
    classes: Mapping[str, str] = field(default_factory=dict)
    modules: tuple[str, ...] = MODULES
    tokenizers: tuple[str, ...] = ()
    folders: Mapping[str, str] = field(default_factory=dict)
    additions: Additions | None = None

    @property
    def scheduler(self) -> dict[str, Any]:
        """``scheduler_config.json``, verbatim."""
        return self.configs["scheduler"]

    @property
    def vocab_size(self) -> int:
        """Number of token embeddings of the text encoders, the least where there are several; 1 for none."""
        sizes = [int(config["vocab_size"]) for config in self.configs.values() if "vocab_size" in config]
        return min(sizes, default=1)

    def load(self, part: str) -> Any:
        """A part, such as ``unet``, as a float32 torch module in evaluation mode.

        Raises CheckpointError for weights that are missing, damaged, or do not fit the config.
        """
        folder = self.path / self.folders.get(part, part)
        added = self.additions if self.additions is not None and self.additions.adds_to(part) else None
        own = added is None or part == "unet"
        loaded = load_part(folder, part, self.classes.get(part)) if own else None
        return loaded if added is None else added.load(part, loaded)

    def tokenizer_files(self, folder: str = "tokenizer") -> dict[str, bytes]:
        """The contents of a tokenizer's files by name. Raises CheckpointError."""
        return read_tokenizer(self.path / folder)

    def sha256(self) -> str:
        """Hash over the names and contents of all files that a build reads."""
        files = [self.path / "model_index.json"]
        files += [self.path / _config_name(part, self.folders) for part in self.configs]
        for part in self.classes:
            files += weight_files(self.path / self.folders.get(part, part), part)
        for folder in self.tokenizers:
            files += sorted(path for path in (self.path / folder).iterdir() if path.is_file())
        total = hashlib.sha256()
        for path in files:
            total.update(f"{path.relative_to(self.path).as_posix()} {file_sha256(path)}\n".encode())
        return total.hexdigest()


def load_checkpoint(path_or_name: str | Path) -> Checkpoint:
    """Read and check a checkpoint: a diffusers folder or the name of a shipped model.

    Raises CheckpointError naming what is missing, damaged or not supported, and the way out.
    """
    path, shipped = _find(path_or_name)
    index = _read_json(path, "model_index.json")
    found = index.get("_class_name")
    family = FAMILIES.get(found) if isinstance(found, str) else None
    if family is None:
        raise CheckpointError(
            f"{path} holds a {found}: only StableDiffusionPipeline checkpoints and those of"
            f" {', '.join(name for name in FAMILIES if name != 'StableDiffusionPipeline')} can be built"
        )
    classes = _classes(path, index, family)
    configs = {part: _read_json(path, _config_name(part, family.folders)) for part in (*classes, "scheduler")}
    for part, config in configs.items():
        _check_config(path / _config_name(part, family.folders), part, config, classes)
    for part in classes:
        weight_files(path / family.folders.get(part, part), part)
    tokenizers = tuple(TOKENIZERS[part] for part in classes if part in TOKENIZERS)
    windows = {folder: _window(path, folder) for folder in tokenizers}
    source = Source(path, str(found), index, configs, classes, windows)
    try:
        spec = family.describe(source)
    except (TypeError, ValueError, IndexError, KeyError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path}: a config value has the wrong type ({error})") from error
    name = str(path_or_name) if shipped else path.resolve().name
    checkpoint = Checkpoint(
        path, name, shipped, configs, spec, classes, modules_of(classes), tokenizers, family.folders
    )
    for part in classes:
        if part in TOKENIZERS:
            vocabulary = int(configs[part]["vocab_size"])
            files = checkpoint.tokenizer_files(TOKENIZERS[part])
            check_tokenizer(path / TOKENIZERS[part], files, vocabulary, spec.max_tokens)
    return checkpoint


def modules_of(classes: Mapping[str, str]) -> tuple[str, ...]:
    """The modules of an engine made from parts of these classes, in the order in which they are built."""
    names = [name for part, names in _MODULES.items() if part in classes for name in names]
    return (*names, "vae_quantizer") if classes.get("vae") == "VQModel" else tuple(names)


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


def _config_name(part: str, folders: Mapping[str, str]) -> str:
    return f"{folders.get(part, part)}/{'scheduler_config' if part == 'scheduler' else 'config'}.json"


def _find(path_or_name: str | Path) -> tuple[Path, bool]:
    path = Path(path_or_name)
    if path.is_dir():
        if not any(path.iterdir()):
            raise CheckpointError(f"checkpoint folder {path} is empty: give a diffusers folder")
        return path, False
    if path.is_file():
        loader = "diffusers' StableDiffusionPipeline.from_single_file(...).save_pretrained(FOLDER)"
        raise CheckpointError(f"{path} is a single file: convert it to a folder with {loader}")
    text = str(path_or_name)
    if not text or path.name != text:
        raise CheckpointError(
            f"checkpoint folder {text!r} does not exist: give a diffusers folder or a shipped name"
        )
    try:
        zoo = importlib.import_module("fastdiff.zoo")
    except ImportError:
        raise CheckpointError(
            f"checkpoint folder {text!r} does not exist, and no models are shipped"
        ) from None
    return Path(zoo.resolve(text)), True


def _read_json(path: Path, name: str) -> dict[str, Any]:
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
    """Raises CheckpointError for a missing key, or an option that cannot be built."""
    required = list(_SCHEDULER_KEYS if part == "scheduler" else CONFIGS[classes[part]].required)
    own_levels = config.get("_class_name") in _WITHOUT_BETAS or config.get("trained_betas") is not None
    if part == "scheduler" and not own_levels:
        required += ["beta_start", "beta_end", "beta_schedule"]
    if missing := [key for key in required if key not in config]:
        raise CheckpointError(f"{file} lacks {', '.join(missing)}: download the checkpoint again")
    if part != "scheduler" and (key := refused_option(classes[part], config)):
        raise CheckpointError(f"{file} sets {key} to {config[key]!r}: such models cannot be built yet")


def _window(path: Path, folder: str) -> int:
    """Tokens that a tokenizer says it takes; 0 where it says nothing."""
    name = f"{folder}/tokenizer_config.json"
    limit = _read_json(path, name).get("model_max_length") if (path / name).is_file() else None
    return limit if isinstance(limit, int) else 0
