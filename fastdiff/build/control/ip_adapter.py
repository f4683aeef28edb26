"""Reading IP-Adapters: one safetensors file with ``image_proj.`` and ``ip_adapter.`` tensors, and the folder
of an image encoder.

Known are the plain adapter (a projection of the embedding of a picture), "plus" (a resampler of hidden
states) and "full" (all hidden states). Those for faces take embeddings of another network.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastdiff.build.control.config import read_config
from fastdiff.build.modules.ip_adapter import ImageAttention
from fastdiff.control.spec import IpAdapterSpec
from fastdiff.errors import CheckpointError

__all__ = [
    "ImageProjection",
    "find_ip_adapter",
    "install_ip_adapter",
    "load_attention",
    "load_ip_adapter",
    "read_ip_adapter",
    "save_attention",
]

_TOKENS = 4
"""Of a plain adapter, for one picture."""
_HIDDEN_TOKENS = 257
"""Of an image encoder that sees 16 × 16 patches, the first token among them."""


def find_ip_adapter(path: Path) -> Path:
    """The file of an IP-Adapter, itself or the one in a folder. Raises CheckpointError."""
    if not path.is_dir():
        if not path.is_file():
            raise CheckpointError(f"{path} does not exist: give the .safetensors file of an IP-Adapter")
        if path.suffix != ".safetensors":
            raise CheckpointError(
                f"{path} is no .safetensors file: give that version of the IP-Adapter; pickles are not read"
            )
        return path
    files = sorted(path.glob("*.safetensors"))
    if len(files) != 1:
        names = ", ".join(file.name for file in files[:8]) or "no .safetensors file"
        raise CheckpointError(f"{path} holds {names}: give the file of one IP-Adapter")
    return files[0]


def load_ip_adapter(file: Path) -> dict[str, dict[str, Tensor]]:
    """The file's tensors in float32, under ``image_proj`` and ``ip_adapter``. Raises CheckpointError."""
    from safetensors import SafetensorError, safe_open

    found: dict[str, dict[str, Tensor]] = {"image_proj": {}, "ip_adapter": {}}
    try:
        with safe_open(file, framework="pt") as stream:
            for key in stream.keys():  # noqa: SIM118 (it is no dict)
                group, _, name = key.partition(".")
                if group not in found or not name:
                    raise CheckpointError(
                        f"{file} has the tensor {key}: an IP-Adapter has image_proj and ip_adapter alone"
                    )
                found[group][name] = stream.get_tensor(key).float()
    except (SafetensorError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{file} is truncated or corrupted ({reason}): download it again") from error
    for group, tensors in found.items():
        if not tensors:
            raise CheckpointError(f"{file} has no tensors of {group}: give the file of an IP-Adapter")
        for name, tensor in tensors.items():
            if not bool(torch.isfinite(tensor).all()):
                raise CheckpointError(f"{file}: {group}.{name} holds values that are not finite: damaged")
    return found


class ImageProjection(nn.Module):
    """The projection of an image encoder's features to tokens, and the tensors that it was made from."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        super().__init__()
        from diffusers import UNet2DConditionModel

        self.tensors = tensors
        # The converter is a method without use for its U-Net; it changes the names of what it is given.
        convert = UNet2DConditionModel._convert_ip_adapter_image_proj_to_diffusers
        self.projection = convert(None, dict(tensors), low_cpu_mem_usage=False)
        self.eval().requires_grad_(False)

    def save_pretrained(self, folder: Path, **library: Any) -> None:
        """Write the tensors as they came; ``library`` says how diffusers and transformers write theirs."""
        _save(folder / "image_proj.safetensors", self.tensors)

    @staticmethod
    def load(folder: Path) -> ImageProjection:
        """What ``save_pretrained`` wrote."""
        return ImageProjection(_load(folder / "image_proj.safetensors"))


def read_ip_adapter(file: Path, encoder: Path | None, hidden_size: int) -> IpAdapterSpec:
    """The IP-Adapter of a file with its image encoder's folder. Raises CheckpointError."""
    tensors = load_ip_adapter(file)["image_proj"]
    if "perceiver_resampler.proj_in.weight" in tensors or (
        "proj.0.weight" in tensors and "proj.3.weight" not in tensors
    ):
        raise CheckpointError(
            f"{file} is an IP-Adapter for faces (FaceID), which needs another network's embeddings: give a"
            " plain, plus or full one"
        )
    try:
        projection = ImageProjection(tensors)
    except Exception as error:  # of a file of another kind, the library raises many types
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{file} holds no projection that diffusers knows ({reason})") from error
    plain = "proj.weight" in tensors
    width = _input_width(tensors)
    image_size, hidden_tokens = 0, _HIDDEN_TOKENS
    if encoder is not None:
        config = read_config(encoder, "CLIPVisionModelWithProjection", "an image encoder")
        image_size = int(config.get("image_size", 224))
        hidden_tokens = (image_size // int(config.get("patch_size", 32))) ** 2 + 1
        key, default = ("projection_dim", 512) if plain else ("hidden_size", 768)
        if config.get(key, default) != width:
            raise CheckpointError(
                f"{file} takes features of width {width}, {key} of {encoder} is {config.get(key, default)}:"
                " give the image encoder that the adapter was trained with"
            )
    features = (width,) if plain else (hidden_tokens, width)
    with torch.no_grad():
        tokens = projection.projection(torch.zeros(1, *features))
    if tokens.shape[-1] != hidden_size:
        raise CheckpointError(
            f"{file} makes tokens of width {tokens.shape[-1]}, cross_attention_dim of the checkpoint's U-Net"
            f" is {hidden_size}: give an adapter that was trained for this kind of checkpoint"
        )
    return IpAdapterSpec(file.name, features, int(tokens.shape[1]), image_size)


def _input_width(tensors: dict[str, Tensor]) -> int:
    for name in ("proj.weight", "proj.0.weight", "proj_in.weight"):
        if name in tensors:
            return int(tensors[name].shape[-1])
    raise AssertionError("the projection was converted, so one of these is there")


def install_ip_adapter(unet: Any, tensors: dict[str, Tensor], file: Path) -> Any:
    """Let every cross-attention of a U-Net attend to a picture's tokens; returns it.

    Tensors are numbered as the attentions are, 1, 3, 5 …. Raises CheckpointError for those that do not fit.
    """
    crosses = [name for name in unet.attn_processors if name.endswith("attn2.processor")]
    keys = [f"{2 * index + 1}.to_{kind}_ip.weight" for index in range(len(crosses)) for kind in "kv"]
    missing, unknown = sorted(set(keys) - set(tensors)), sorted(set(tensors) - set(keys))
    if missing or unknown:
        problem = f"lacks {missing[0]}" if missing else f"has the unknown {unknown[0]}"
        raise CheckpointError(
            f"{file} {problem}: it is for {len(tensors) // 2} attentions, the U-Net has {len(crosses)}"
        )
    shapes = []
    for key, name in zip(keys[::2], crosses, strict=True):
        wanted = tuple(unet.get_submodule(name.removesuffix(".processor")).to_k.weight.shape)
        if tuple(tensors[key].shape) != wanted:
            raise CheckpointError(
                f"{file}: {key} has shape {list(tensors[key].shape)}, that of the U-Net's {name} is"
                f" {list(wanted)}: give an adapter that was trained for this kind of checkpoint"
            )
        shapes.append(wanted)
    attention = ImageAttention(shapes)
    for index, (key, value) in enumerate(zip(keys[::2], keys[1::2], strict=True)):
        attention.keys[index].weight = nn.Parameter(tensors[key], requires_grad=False)
        attention.values[index].weight = nn.Parameter(tensors[value], requires_grad=False)
    processors = dict(unet.attn_processors)
    for index, name in enumerate(crosses):
        processors[name] = attention.processor(index)
    unet.set_attn_processor(processors)
    # Beside the U-Net, whose own weights stay those that its class saves and loads.
    object.__setattr__(unet, "image_attention", attention)
    object.__setattr__(unet, "image_tensors", tensors)
    return unet


def save_attention(unet: Any, folder: Path) -> None:
    """Write the attention that a U-Net was given beside its weights, if it was."""
    tensors = getattr(unet, "image_tensors", None)
    if tensors is not None:
        _save(folder / _ATTENTION, tensors)


def load_attention(unet: Any, folder: Path) -> Any:
    """Give a U-Net what ``save_attention`` wrote, if it did; returns it."""
    file = folder / _ATTENTION
    return install_ip_adapter(unet, _load(file), file) if file.is_file() else unet


_ATTENTION = "ip_adapter.safetensors"


def _save(file: Path, tensors: dict[str, Tensor]) -> None:
    from safetensors.torch import save_file

    file.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file)


def _load(file: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    found: dict[str, Tensor] = load_file(file)
    return found
