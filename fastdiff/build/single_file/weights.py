"""One part of a single file as the library's module, its weights renamed by diffusers' converters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastdiff.build.single_file.layout import SingleFile
from fastdiff.build.weights import quiet
from fastdiff.errors import CheckpointError

__all__ = ["load_converted"]

_POSITIONS = "position_ids"


def load_converted(file: SingleFile, part: str, class_name: str, config: Mapping[str, Any]) -> Any:
    """A part as a float32 module in evaluation mode. Tensors of the part alone are read.

    Raises CheckpointError for tensors that are missing, unknown, of another shape or not finite, and for a
    config that the library refuses.
    """
    import torch

    from fastdiff.build.modules import part_class

    prefix = file.of(part)
    kind = part_class(part, class_name)
    with quiet():
        try:
            with torch.device("meta"):
                model: Any = _empty(kind, config)
            tensors = _converted(file, part, prefix, model, config)
        except CheckpointError:
            raise
        except Exception as error:  # whatever the library raises about a file or config, these are at fault
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise CheckpointError(f"{file.path}: {part} cannot be converted: {reason}") from error
    wanted = model.state_dict()
    weights = {name: tensor for name, tensor in tensors.items() if not name.endswith(_POSITIONS)}
    for name in (*wanted, *weights):
        if name not in weights:
            raise CheckpointError(f"{file.path}: {part} lacks {name}: the file is not of this config")
        if name not in wanted:
            raise CheckpointError(f"{file.path}: {part} has the unknown {name}: it is not of this config")
        if weights[name].shape != wanted[name].shape:
            raise CheckpointError(
                f"{file.path}: {name} of {part} has shape {list(weights[name].shape)}, its config wants"
                f" {list(wanted[name].shape)}: give the folder of its configs as --config"
            )
        if weights[name].is_floating_point() and not bool(torch.isfinite(weights[name]).all()):
            raise CheckpointError(f"{file.path}: {name} of {part} holds values that are not finite")
    model.load_state_dict({name: tensor.float() for name, tensor in weights.items()}, assign=True)
    _fill_positions(model)
    return model.eval().requires_grad_(False)


def _empty(kind: Any, config: Mapping[str, Any]) -> Any:
    """A module of the library's class for a config."""
    if hasattr(kind, "config_class") and kind.config_class is not None:
        return kind(kind.config_class.from_dict(dict(config)))
    return kind.from_config(dict(config))


def _converted(
    file: SingleFile, part: str, prefix: str, model: Any, config: Mapping[str, Any]
) -> dict[str, Any]:
    """The tensors of a part by the library's names."""
    from diffusers.loaders import single_file_utils as convert

    tensors = {name: file[name] for name in file if name.startswith(prefix)}
    if part == "unet":
        return dict(convert.convert_ldm_unet_checkpoint(tensors, dict(config)))
    if part == "vae":
        return dict(convert.convert_ldm_vae_checkpoint(tensors, dict(config)))
    if prefix.endswith("transformer."):
        renamed = convert.convert_ldm_clip_checkpoint(tensors)
    else:
        renamed = convert.convert_open_clip_checkpoint(model, tensors, prefix=prefix)
    if not hasattr(model, "text_model"):  # newer versions of the library have no such level
        renamed = {name.removeprefix("text_model."): tensor for name, tensor in renamed.items()}
    return dict(renamed)


def _fill_positions(model: Any) -> None:
    """Numbers of positions, which text encoders compute when they are made and do not save."""
    import torch

    for name, buffer in model.named_buffers():
        if buffer.is_meta:
            owner = model.get_submodule(name.rpartition(".")[0])
            numbers = torch.arange(buffer.shape[-1], device="cpu").expand(buffer.shape)
            owner.register_buffer(name.rpartition(".")[2], numbers, persistent=False)
