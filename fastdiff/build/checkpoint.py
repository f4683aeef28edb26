"""Reading a checkpoint in the diffusers folder layout; ``build/families`` says what each family holds.

Only safetensors are read, never pickles, and no code of the checkpoint is run. Every way in which a folder
can be incomplete or damaged ends in a CheckpointError that names the file.
"""

from __future__ import annotations

import importlib
from pathlib import Path

from fastdiff.build.configs import described, read_json, read_source
from fastdiff.build.families.shared import TOKENIZERS
from fastdiff.build.opened import Checkpoint, chosen_variant, modules_of
from fastdiff.build.tokenizers import check_tokenizer
from fastdiff.errors import CheckpointError, InputError

__all__ = ["Checkpoint", "load_checkpoint"]


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
        chosen_variant(path / folders.get(part, part), part, variant) is not None for part in source.classes
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
