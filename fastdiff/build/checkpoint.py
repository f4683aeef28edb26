"""Reading a checkpoint in the diffusers folder layout; ``build/families`` says what each family holds.

Only safetensors are read, never pickles, and no code of the checkpoint is run. Every way in which a folder
can be incomplete or damaged ends in a CheckpointError that names the file.
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastdiff.build.configs import config_name, described, read_json, read_source
from fastdiff.build.families.shared import TOKENIZERS
from fastdiff.build.tokenizers import check_tokenizer, read_tokenizer
from fastdiff.build.weights import load_part, weight_files
from fastdiff.config import MODULES, ModelSpec
from fastdiff.engine_dir import file_sha256
from fastdiff.errors import CheckpointError, InputError

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


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose configs have been read and checked; weights are loaded part by part.

    ``configs`` are by part, ``scheduler`` among them; ``classes`` are the library's by part. ``modules`` are
    those that an engine of it has, in the order in which they are built, ``tokenizers`` the folders of its
    tokenizers. ``folders`` are those of parts that are not called as the part is, or come from elsewhere,
    ``variant`` the one of its weights that was asked for. ``additions`` are networks that control the U-Net.
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
    variant: str | None = None
    additions: Additions | None = None

    @property
    def scheduler(self) -> dict[str, Any]:
        """``scheduler_config.json``, with what diffusers' pipeline corrects in it."""
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
        added = self.additions if self.additions is not None and self.additions.adds_to(part) else None
        own = added is None or part == "unet"
        loaded = self.load_own(part) if own else None
        return loaded if added is None else added.load(part, loaded)

    def load_own(self, part: str) -> Any:
        """A part as it is without additions."""
        folder = self.path / self.folders.get(part, part)
        variant = _chosen_variant(folder, part, self.variant)
        return load_part(folder, part, self.classes.get(part), variant)

    def tokenizer_files(self, folder: str = "tokenizer") -> dict[str, bytes]:
        """The contents of a tokenizer's files by name. Raises CheckpointError."""
        return read_tokenizer(self.path / folder)

    def sha256(self) -> str:
        """Hash over the names and contents of all files that a build reads."""
        files = [self.path / "model_index.json"]
        files += [self.path / config_name(part, self.folders) for part in self.configs]
        for part in self.classes:
            folder = self.path / self.folders.get(part, part)
            files += weight_files(folder, part, _chosen_variant(folder, part, self.variant))
        for name in self.tokenizers:
            files += sorted(path for path in (self.path / name).iterdir() if path.is_file())
        total = hashlib.sha256()
        for path in files:
            total.update(f"{path.relative_to(self.path).as_posix()} {file_sha256(path)}\n".encode())
        return total.hexdigest()


def load_checkpoint(
    path_or_name: str | Path,
    *,
    config: str | Path | None = None,
    tokenizer: str | Path | None = None,
    variant: str | None = None,
    ema: bool = False,
) -> Checkpoint:
    """Read and check a checkpoint: a diffusers folder, a file in an original layout, or a shipped name.

    ``config`` is a diffusers folder whose configs a file goes by, None: those published for its kind of
    model; ``tokenizer`` the folder of its tokenizer, None: see ``build/single_file/vocabulary.py``.
    ``variant`` chooses among the weights of a folder, such as ``fp16`` or ``non_ema``. With ``ema`` the U-Net
    is the moving average of its weights: ``model_ema`` in a file, the part ``unet_ema`` in a folder.
    Raises CheckpointError naming what is missing, damaged or not supported, and the way out; InputError for
    an option that this checkpoint cannot have.
    """
    path, shipped = _find(path_or_name)
    if path.is_file():
        if variant is not None:
            raise InputError(f"variant is {variant!r}: {path} is a single file, which has no variants")
        from fastdiff.build.single_file import load_file

        return load_file(path, config, tokenizer, ema)
    for name, value in (("config", config), ("tokenizer", tokenizer)):
        if value is not None:
            raise InputError(
                f"{name} is {str(value)!r}: it is for single files; {path} is a folder, with its own"
            )
    source, family, tokenizers = read_source(path, lambda name: read_json(path, name), _window)
    folders = dict(family.folders)
    if ema:
        folders["unet"] = "unet_ema"
        if not (path / folders["unet"]).is_dir():
            raise CheckpointError(
                f"{path} has no folder unet_ema with moving averages: leave --ema out, or choose among the"
                " weights with --variant"
            )
    variants = [
        _chosen_variant(path / folders.get(part, part), part, variant) is not None for part in source.classes
    ]
    if variant is not None and not any(variants):
        raise CheckpointError(f"{path} has no weights of variant {variant!r}: leave --variant out")
    spec = described(source, family)
    checkpoint = Checkpoint(
        path,
        str(path_or_name) if shipped else path.resolve().name,
        shipped,
        {part: dict(document) for part, document in source.configs.items()},
        spec,
        source.classes,
        modules_of(source.classes),
        tokenizers,
        folders,
        variant,
    )
    for part in source.classes:
        if part in TOKENIZERS:
            files = checkpoint.tokenizer_files(TOKENIZERS[part])
            vocabulary = int(source.configs[part]["vocab_size"])
            check_tokenizer(path / TOKENIZERS[part], files, vocabulary, spec.max_tokens)
    return checkpoint


def _chosen_variant(folder: Path, part: str, variant: str | None) -> str | None:
    """``variant`` where a part has it, None where it has plain weights. Raises CheckpointError."""
    if variant is not None:
        try:
            weight_files(folder, part, variant)
        except CheckpointError:
            weight_files(folder, part)
            return None
        return variant
    weight_files(folder, part)
    return None


def modules_of(classes: Mapping[str, str]) -> tuple[str, ...]:
    """The modules of an engine made from parts of these classes, in the order in which they are built."""
    names = [name for part, names in _MODULES.items() if part in classes for name in names]
    return (*names, "vae_quantizer") if classes.get("vae") == "VQModel" else tuple(names)


def _find(path_or_name: str | Path) -> tuple[Path, bool]:
    path = Path(path_or_name)
    if path.is_dir():
        if not any(path.iterdir()):
            raise CheckpointError(f"checkpoint folder {path} is empty: give a diffusers folder")
        return path, False
    if path.is_file():
        return path, False
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


def _window(path: Path, folder: str) -> int:
    """Tokens that a tokenizer says it takes; 0 where it says nothing."""
    name = f"{folder}/tokenizer_config.json"
    limit = read_json(path, name).get("model_max_length") if (path / name).is_file() else None
    return limit if isinstance(limit, int) else 0
