"""Checkpoints of published structure with random weights, written tensor by tensor.

Nothing is held in memory but one tensor, so that a model of any size can be written on any machine. The
weights are such that a comparison means something: norms and biases are off 1 and 0, and ``condition`` scales
the last convolutions so that predictions and pictures have the spread of real ones.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from fastdiff.build.weights import quiet
from tests.checkpoints import MAX_TOKENS, write_json, write_tokenizer

__all__ = ["condition", "fp32_bytes", "write_checkpoint"]

_DTYPES = {torch.float32: "F32", torch.float16: "F16"}
_SHARD = 4 << 30
"""Bytes from which a part's weights are spread over several files."""


def write_checkpoint(
    folder: Path,
    files: Mapping[str, Mapping[str, Any]],
    dtype: torch.dtype = torch.float32,
    shard: int = _SHARD,
    seed: int = 0,
) -> Path:
    """Write a diffusers folder of ``files``, JSON documents by path, with random weights; its path.

    Every document ``<part>/config.json`` gets weights of type ``dtype``, every tokenizer of the model index
    the tests' small vocabulary.
    """
    generator = torch.Generator().manual_seed(seed)
    for path, document in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        write_json(folder / path, document)
        if path.endswith("/config.json"):
            _write_part(folder / path.removesuffix("/config.json"), document, dtype, shard, generator)
    for name in files["model_index.json"]:
        if name.startswith("tokenizer"):
            write_tokenizer(folder / name, MAX_TOKENS)
    return folder


def fp32_bytes(folder: Path) -> int:
    """Bytes of all weights of a checkpoint in float32."""
    return 4 * sum(
        math.prod(entry["shape"])
        for file in folder.rglob("*.safetensors")
        for entry in _header(file)[0].values()
    )


def meta_part(config: Mapping[str, Any]) -> Any:
    """The module of a part's config, without memory for its weights."""
    import diffusers
    import transformers

    with quiet(), torch.device("meta"):
        if "_class_name" in config:
            return getattr(diffusers, config["_class_name"]).from_config(dict(config))
        kind = getattr(transformers, config["architectures"][0])
        return kind(kind.config_class.from_dict(dict(config)))


def _write_part(
    folder: Path, config: Mapping[str, Any], dtype: torch.dtype, shard: int, generator: torch.Generator
) -> None:
    part = meta_part(config)
    shapes = {name: tuple(tensor.shape) for name, tensor in part.named_parameters()}
    norms = {
        f"{name}.weight"
        for name, module in part.named_modules()
        if isinstance(module, (torch.nn.GroupNorm, torch.nn.LayerNorm))
    }
    stem = "diffusion_pytorch_model" if "_class_name" in config else "model"
    groups = list(_shards(shapes, dtype.itemsize, shard))
    names = [
        f"{stem}.safetensors" if len(groups) == 1 else f"{stem}-{number:05}-of-{len(groups):05}.safetensors"
        for number in range(1, len(groups) + 1)
    ]
    for name, group in zip(names, groups, strict=True):
        with (folder / name).open("wb") as file:
            _write_header(file, group, dtype)
            for key, shape in group.items():
                tensor = _random(shape, key in norms, generator).to(dtype)
                file.write(tensor.numpy().reshape(-1).view("u1").data)
    if len(groups) > 1:
        total = dtype.itemsize * sum(math.prod(shape) for shape in shapes.values())
        weight_map = {key: name for name, group in zip(names, groups, strict=True) for key in group}
        write_json(
            folder / f"{stem}.safetensors.index.json",
            {"metadata": {"total_size": total}, "weight_map": weight_map},
        )


def _shards(
    shapes: dict[str, tuple[int, ...]], width: int, limit: int
) -> Iterator[dict[str, tuple[int, ...]]]:
    group: dict[str, tuple[int, ...]] = {}
    size = 0
    for name, shape in shapes.items():
        bytes_ = width * math.prod(shape)
        if group and size + bytes_ > limit:
            yield group
            group, size = {}, 0
        group[name] = shape
        size += bytes_
    yield group


def _write_header(file: BinaryIO, group: dict[str, tuple[int, ...]], dtype: torch.dtype) -> None:
    """The safetensors header: a count of bytes and JSON, padded so that the data is aligned."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape in group.items():
        end = offset + dtype.itemsize * math.prod(shape)
        entries[name] = {"dtype": _DTYPES[dtype], "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(entries).encode()
    text += b" " * (-(len(text) + 8) % 64)  # with the count, a multiple of 64
    file.write(struct.pack("<Q", len(text)) + text)


def _header(file: Path) -> tuple[dict[str, Any], int]:
    """The entries of a safetensors file, and where their data begins."""
    with file.open("rb") as stream:
        (size,) = struct.unpack("<Q", stream.read(8))
        entries = json.loads(stream.read(size))
    entries.pop("__metadata__", None)
    return entries, 8 + size


def _random(shape: tuple[int, ...], norm: bool, generator: torch.Generator) -> Tensor:
    """Normal deviates that keep the variance of what a layer is given about a third, as PyTorch's do."""
    values = torch.empty(shape).normal_(generator=generator)
    if len(shape) == 1:
        return values.mul_(0.1).add_(1.0 if norm else 0.0)
    return values.mul_((3 * math.prod(shape[1:])) ** -0.5)


def condition(folder: Path) -> None:
    """Scale the last convolutions so that the U-Net predicts unit variance and pictures are neither flat nor
    saturated: random weights would give some other variance, and steps multiply it. Their files are changed.
    """
    _normalise(folder / "unet", _predict, "conv_out", 1.0)
    for vae in (folder / "vae", folder / "vqvae"):
        if vae.is_dir():
            _normalise(vae, _decode, "decoder.conv_out", 0.3)


def _predict(unet: Any, generator: torch.Generator) -> Tensor:
    config = unet.config
    size = 4 * 2 ** len(config.block_out_channels)
    sample = torch.randn(2, config.in_channels, size, size, generator=generator)
    labels = torch.tensor([3, 7]) if config.num_class_embeds else None
    if "cross_attention_dim" not in config:  # UNet2DModel
        found: Tensor = unet(sample, torch.tensor([100, 700]), class_labels=labels).sample
        return found
    prompt = torch.randn(2, MAX_TOKENS, config.cross_attention_dim, generator=generator)
    options: dict[str, Any] = {"class_labels": labels}
    if config.addition_embed_type == "text_time":
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        options["added_cond_kwargs"] = {
            "text_embeds": torch.randn(2, pooled, generator=generator),
            "time_ids": torch.tensor([[1024.0, 1024, 0, 0, 1024, 1024]] * 2),
        }
    if config.time_cond_proj_dim is not None:
        options["timestep_cond"] = torch.randn(2, config.time_cond_proj_dim, generator=generator)
    result: Tensor = unet(sample, torch.tensor([100, 700]), prompt, **options).sample
    return result


def _decode(vae: Any, generator: torch.Generator) -> Tensor:
    latents = torch.randn(1, vae.config.latent_channels, 24, 24, generator=generator)
    result: Tensor = vae.decode(latents).sample
    return result


def _normalise(folder: Path, run: Any, layer: str, spread: float) -> None:
    """Let what ``run`` gives have mean 0 and standard deviation ``spread``."""
    part = _mapped(folder)
    with torch.no_grad():
        result = run(part, torch.Generator().manual_seed(1))
        scale = spread / float(result.std())
        _replace(folder, f"{layer}.weight", lambda weight: weight * scale)
        _replace(folder, f"{layer}.bias", lambda bias: (bias - result.mean()) * scale)


def _mapped(folder: Path) -> Any:
    """A part in float32; weights that are float32 in their files stay there."""
    from safetensors.torch import load_file

    part = meta_part(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    for file in sorted(folder.glob("*.safetensors")):
        part.load_state_dict(
            {name: tensor.float() for name, tensor in load_file(file).items()}, assign=True, strict=False
        )
    return part.eval()


def _replace(folder: Path, name: str, change: Callable[[Tensor], Tensor]) -> None:
    """Change a tensor in its file."""
    for file in folder.glob("*.safetensors"):
        entries, data = _header(file)
        if name not in entries:
            continue
        start, end = entries[name]["data_offsets"]
        with file.open("r+b") as stream:
            stream.seek(data + start)
            dtype = next(kind for kind, code in _DTYPES.items() if code == entries[name]["dtype"])
            tensor = torch.frombuffer(bytearray(stream.read(end - start)), dtype=dtype)
            stream.seek(data + start)
            stream.write(change(tensor.float()).to(dtype).numpy().tobytes())
        return
    raise KeyError(name)
