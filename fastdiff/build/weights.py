"""Loading one part of a checkpoint (text encoder, U-Net, VAE) from safetensors into its library class."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fastdiff.errors import CheckpointError

__all__ = ["load_part", "quiet", "weight_files"]

_LIBRARY_STEM, _TEXT_STEM = "diffusion_pytorch_model", "model"
"""Names of weight files, without their endings, as diffusers and transformers write them."""
_IGNORED_KEYS = re.compile(r"(^|\.)position_ids$")
"""Buffers that old versions of the libraries saved and new ones compute."""


def weight_files(folder: Path, part: str) -> list[Path]:
    """The safetensors files of a part, an index of shards first. Raises CheckpointError.

    Full-precision files are preferred to those of the ``fp16`` variant.
    """
    return _find_weights(folder, part)[0]


def _find_weights(folder: Path, part: str) -> tuple[list[Path], str | None]:
    """The files and the variant that they belong to."""
    transformers = part.startswith("text_encoder") or part == "image_encoder"
    stem = _TEXT_STEM if transformers else _LIBRARY_STEM
    for variant in (None, "fp16"):
        infix = f".{variant}" if variant else ""
        single = folder / f"{stem}{infix}.safetensors"
        if single.is_file():
            return [single], variant
        index = folder / f"{stem}.safetensors.index{infix}.json"
        if index.is_file():
            return [index, *_shards(index)], variant
    pickles = sorted(
        path.name for path in folder.glob("*") if path.suffix in (".bin", ".ckpt", ".pt", ".pth")
    )
    if pickles:
        raise CheckpointError(
            f"{folder} has only pickled weights ({pickles[0]}), which can run code when they are loaded: if"
            " you trust them, convert with diffusers' StableDiffusionPipeline.from_pretrained(FOLDER,"
            " use_safetensors=False).save_pretrained(NEW_FOLDER)"
        )
    raise CheckpointError(f"{folder / (stem + '.safetensors')} is missing: give a complete diffusers folder")


def _shards(index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{index} is no index of shards: download the checkpoint again") from error
    for name in names:
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
            raise CheckpointError(f"{index} names {name!r}, which is no safetensors file of that folder")
        if not (index.parent / name).is_file():
            raise CheckpointError(f"{index.parent / name} is missing: download the checkpoint again")
    return [index.parent / name for name in names]


def load_part(folder: Path, part: str, class_name: str | None = None) -> Any:
    """A part as a float32 module in evaluation mode, from local safetensors only, in the library's class
    ``class_name``, None being the part's usual one.

    Raises CheckpointError for files that are missing, truncated or corrupted, for tensors that are missing,
    unknown, of another shape or not finite, and for configs that the library refuses.
    """
    import torch

    from fastdiff.build.modules import part_class

    files, variant = _find_weights(folder, part)
    for file in files:
        if file.suffix == ".safetensors":
            _check_readable(file)
    with quiet():
        kind = part_class(part, class_name)
        try:
            model, info = kind.from_pretrained(
                folder,
                variant=variant,
                torch_dtype=torch.float32,
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
            )
        except Exception as error:  # whatever the library raises about a file, the file is at fault
            raise CheckpointError(f"{folder}: {kind.__name__} refuses it: {_brief(error)}") from error
    for key, problem in (
        ("missing_keys", "lack"),
        ("unexpected_keys", "have the unknown"),
        ("mismatched_keys", "misfit"),
    ):
        tensors = sorted(str(item) for item in info.get(key) or () if not _IGNORED_KEYS.search(str(item)))
        if tensors:
            more = f" and {len(tensors) - 1} more" if len(tensors) > 1 else ""
            raise CheckpointError(
                f"{files[0]}: the weights {problem} {tensors[0]}{more}: they are not of this config"
            )
    for tensor_name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(
                f"{files[0]}: {tensor_name} holds values that are not finite: the file is damaged"
            )
    return model.float().eval().requires_grad_(False)


def _check_readable(file: Path) -> None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="np") as stream:
            if not stream.keys():
                raise CheckpointError(f"{file} holds no tensors: download the checkpoint again")
    except (SafetensorError, OSError, ValueError) as error:
        size = file.stat().st_size
        raise CheckpointError(
            f"{file} is truncated or corrupted ({size} bytes; {_brief(error)}): download the checkpoint again"
        ) from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep warnings, log lines and progress bars of the libraries off the terminal."""
    import warnings

    libraries: list[Any] = [
        importlib.import_module(f"{name}.utils.logging")
        for name in ("diffusers", "transformers")
        if importlib.util.find_spec(name) is not None
    ]
    levels = [library.get_verbosity() for library in libraries]
    bars = [library.is_progress_bar_enabled() for library in libraries]
    torch_logger = logging.getLogger("torch")
    torch_level = torch_logger.level
    try:
        torch_logger.setLevel(logging.ERROR)
        for library in libraries:
            library.set_verbosity(logging.CRITICAL)
            library.disable_progress_bar()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch_logger.setLevel(torch_level)
        for library, level, bar in zip(libraries, levels, bars, strict=True):
            library.set_verbosity(level)
            if bar:
                library.enable_progress_bar()


def _brief(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:197] + "..."
