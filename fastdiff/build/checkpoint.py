"""Reading a Stable-Diffusion-shaped checkpoint in the diffusers folder layout.

Only safetensors are read, never pickles, and no code of the checkpoint is run. Every way in which a folder
can be incomplete or damaged ends in a CheckpointError that names the file.
"""

from __future__ import annotations

import hashlib
import importlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastdiff.build.weights import load_part, weight_files
from fastdiff.config import ModelSpec
from fastdiff.engine_dir import file_sha256
from fastdiff.errors import CheckpointError, EngineDamagedError
from fastdiff.tokenizer import ClipTokenizer

if TYPE_CHECKING:
    from fastdiff.build.control import Additions

__all__ = ["TOKENIZER_FILES", "Checkpoint", "load_checkpoint"]

TOKENIZER_FILES = (
    "vocab.json",
    "merges.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
    # words that were added after training, by textual inversion
    "added_tokens.json",
    "tokenizer.json",
)

_CONFIG_NAMES = {
    "text_encoder": "text_encoder/config.json",
    "unet": "unet/config.json",
    "vae": "vae/config.json",
    "scheduler": "scheduler/scheduler_config.json",
}
_REQUIRED_KEYS = {
    "text_encoder": (
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "max_position_embeddings",
    ),
    "unet": (
        "in_channels",
        "out_channels",
        "block_out_channels",
        "down_block_types",
        "up_block_types",
        "layers_per_block",
        "cross_attention_dim",
        "attention_head_dim",
    ),
    "vae": (
        "latent_channels",
        "block_out_channels",
        "down_block_types",
        "up_block_types",
        "layers_per_block",
    ),
    "scheduler": ("_class_name", "num_train_timesteps"),
}
_UNSUPPORTED = {
    "text_encoder": ("use_attention_mask",),
    "unet": (
        "addition_embed_type",
        "class_embed_type",
        "encoder_hid_dim",
        "encoder_hid_dim_type",
        "num_class_embeds",
        "time_cond_proj_dim",
    ),
}
"""Options that add inputs which the modules do not have."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint folder whose configs have been read and checked; weights are loaded part by part."""

    path: Path
    name: str
    shipped: bool
    configs: dict[str, dict[str, Any]]
    spec: ModelSpec
    additions: Additions | None = None

    @property
    def scheduler(self) -> dict[str, Any]:
        """``scheduler_config.json``, verbatim."""
        return self.configs["scheduler"]

    @property
    def vocab_size(self) -> int:
        """Number of token embeddings of the text encoder."""
        return int(self.configs["text_encoder"]["vocab_size"])

    def load(self, part: str) -> Any:
        """The part (``text_encoder``, ``unet``, ``vae``) as a float32 torch module in evaluation mode.

        Raises CheckpointError for weights that are missing, damaged, or do not fit the config.
        """
        added = self.additions if self.additions is not None and self.additions.adds_to(part) else None
        loaded = load_part(self.path / part, part) if added is None or part == "unet" else None
        return loaded if added is None else added.load(part, loaded)

    def tokenizer_files(self) -> dict[str, bytes]:
        """The contents of the tokenizer's files by name. Raises CheckpointError."""
        folder = self.path / "tokenizer"
        contents = {
            name: (folder / name).read_bytes() for name in TOKENIZER_FILES if (folder / name).is_file()
        }
        if "vocab.json" not in contents or "merges.txt" not in contents:
            contents.update(_from_tokenizer_json(folder))
        return contents

    def sha256(self) -> str:
        """Hash over the names and contents of all files that a build reads."""
        files = [self.path / "model_index.json", *(self.path / name for name in _CONFIG_NAMES.values())]
        for part in ("text_encoder", "unet", "vae"):
            files += weight_files(self.path / part, part)
        files += sorted(path for path in (self.path / "tokenizer").iterdir() if path.is_file())
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
    if found != "StableDiffusionPipeline":
        raise CheckpointError(
            f"{path} holds a {found}: only StableDiffusionPipeline checkpoints can be built"
        )
    configs = {part: _read_json(path, name) for part, name in _CONFIG_NAMES.items()}
    for part, config in configs.items():
        _check_config(path, part, config, index)
    for part in ("text_encoder", "unet", "vae"):
        weight_files(path / part, part)
    name = str(path_or_name) if shipped else path.resolve().name
    checkpoint = Checkpoint(path, name, shipped, configs, _model_spec(path, configs))
    tokenizer = checkpoint.tokenizer_files()
    _check_vocabulary(path, tokenizer["vocab.json"], checkpoint.vocab_size)
    try:
        ClipTokenizer(path / "tokenizer", checkpoint.spec.max_tokens)
    except EngineDamagedError as error:
        reason = str(error).partition(": rebuild the engine")[0]
        raise CheckpointError(f"{reason}: download the checkpoint again") from error
    return checkpoint


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


def _check_config(path: Path, part: str, config: dict[str, Any], index: dict[str, Any]) -> None:
    """Raises CheckpointError for a missing key, another class, or an option that adds inputs."""
    from fastdiff.build.modules import PART_CLASSES

    file = path / _CONFIG_NAMES[part]
    required = list(_REQUIRED_KEYS[part])
    if part == "scheduler" and config.get("trained_betas") is None:
        required += ["beta_start", "beta_end", "beta_schedule"]
    if missing := [key for key in required if key not in config]:
        raise CheckpointError(f"{file} lacks {', '.join(missing)}: download the checkpoint again")
    if part in PART_CLASSES:
        expected = PART_CLASSES[part][1]
        entry = index.get(part)
        named = entry[1] if isinstance(entry, list) and len(entry) == 2 else entry
        if named != expected:
            raise CheckpointError(
                f"{path}: model_index.json gives {named} as {part}: only {expected} is supported"
            )
    for key in _UNSUPPORTED.get(part, ()):
        if config.get(key) not in (None, False):
            raise CheckpointError(f"{file} sets {key} to {config[key]!r}: such models cannot be built yet")


def _model_spec(path: Path, configs: dict[str, dict[str, Any]]) -> ModelSpec:
    unet, vae, text = configs["unet"], configs["vae"], configs["text_encoder"]
    try:
        factor = 2 ** (len(vae["block_out_channels"]) - 1)
        multiple = factor * 2 ** (len(unet["block_out_channels"]) - 1)
        size = unet.get("sample_size") or 64
        height, width = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
        scaling = vae.get("scaling_factor")
        spec = ModelSpec(
            family="stable_diffusion",
            latent_channels=int(vae["latent_channels"]),
            vae_scale_factor=factor,
            scaling_factor=0.18215 if scaling is None else float(scaling),
            shift_factor=float(vae.get("shift_factor") or 0.0),
            default_height=max(multiple, height * factor // multiple * multiple),
            default_width=max(multiple, width * factor // multiple * multiple),
            default_batch=1,
            size_multiple=multiple,
            max_tokens=_window(path, int(text["max_position_embeddings"])),
            hidden_size=int(text["hidden_size"]),
        )
    except (TypeError, ValueError, IndexError) as error:
        raise CheckpointError(f"{path}: a config value has the wrong type ({error})") from error
    if not unet["in_channels"] == unet["out_channels"] == spec.latent_channels:
        raise CheckpointError(
            f"{path}: the U-Net takes {unet['in_channels']} and gives {unet['out_channels']} channels, the"
            f" VAE has {spec.latent_channels}: only plain text-to-image U-Nets can be built"
        )
    if unet["cross_attention_dim"] != spec.hidden_size:
        raise CheckpointError(
            f"{path}: cross_attention_dim of the U-Net is {unet['cross_attention_dim']}, hidden_size of the"
            f" text encoder is {spec.hidden_size}: they must be equal"
        )
    return spec


def _window(path: Path, positions: int) -> int:
    """Tokens per prompt: the tokenizer's limit, and at most what the text encoder has positions for."""
    config = path / "tokenizer" / "tokenizer_config.json"
    limit = (
        _read_json(path, "tokenizer/tokenizer_config.json").get("model_max_length")
        if config.is_file()
        else None
    )
    return min(positions, limit) if isinstance(limit, int) and limit > 2 else positions


def _from_tokenizer_json(folder: Path) -> dict[str, bytes]:
    """Vocabulary and merges out of ``tokenizer.json``, which newer libraries write instead of two files."""
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise CheckpointError(
            f"{folder}: vocab.json and merges.txt are missing: give a complete diffusers folder"
        )
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
        model = document["model"]
        pairs = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
        added = {token["content"]: token["id"] for token in document.get("added_tokens") or ()}
        vocabulary = json.dumps({**model["vocab"], **added}, ensure_ascii=False)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{file} holds no readable BPE model: download the checkpoint again") from error
    merges = "\n".join(["#version: 0.2", *pairs]) + "\n"
    return {"vocab.json": vocabulary.encode("utf-8"), "merges.txt": merges.encode("utf-8")}


def _check_vocabulary(path: Path, raw: bytes, vocab_size: int) -> None:
    try:
        vocabulary = json.loads(raw.decode("utf-8"))
        largest = max(vocabulary.values())
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise CheckpointError(
            f"{path}/tokenizer/vocab.json is no vocabulary: download the checkpoint again"
        ) from error
    if largest >= vocab_size:
        raise CheckpointError(
            f"{path}: the tokenizer has token {largest}, the text encoder only {vocab_size} embeddings"
        )
