"""An opened checkpoint: its configs, what becomes of its parts, and the parts one by one."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastdiff.build.configs import config_name
from fastdiff.build.tokenizers import read_tokenizer
from fastdiff.build.weights import load_part, weight_files
from fastdiff.config import MODULES, ModelSpec
from fastdiff.engine_dir import file_sha256
from fastdiff.errors import CheckpointError

if TYPE_CHECKING:
    from fastdiff.build.control import Additions

__all__ = ["Checkpoint", "chosen_variant", "modules_of"]

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
        variant = chosen_variant(folder, part, self.variant)
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
            files += weight_files(folder, part, chosen_variant(folder, part, self.variant))
        for name in self.tokenizers:
            files += sorted(path for path in (self.path / name).iterdir() if path.is_file())
        total = hashlib.sha256()
        for path in files:
            total.update(f"{path.relative_to(self.path).as_posix()} {file_sha256(path)}\n".encode())
        return total.hexdigest()


def chosen_variant(folder: Path, part: str, variant: str | None) -> str | None:
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
