"""What a build adds to a checkpoint to control its U-Net."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastdiff.build.control.controlnet import read_controlnet, residuals_of
from fastdiff.build.control.ip_adapter import (
    ImageProjection,
    find_ip_adapter,
    install_ip_adapter,
    load_ip_adapter,
    read_ip_adapter,
)
from fastdiff.build.control.single_file import config_like, is_single_file, load_controlnet_file
from fastdiff.build.control.t2i_adapter import read_t2i_adapter
from fastdiff.build.weights import load_part, weight_files
from fastdiff.control.spec import ControlSpec, numbered
from fastdiff.engine_dir import file_sha256
from fastdiff.errors import CheckpointError

if TYPE_CHECKING:
    from fastdiff.build.checkpoint import Checkpoint

__all__ = ["Additions", "add_control"]

_CLASSES = {
    "controlnet": "ControlNetModel",
    "t2i_adapter": "T2IAdapter",
    "image_encoder": "CLIPVisionModelWithProjection",
}
"""The library's class of each part that is a folder."""

Folder = str | os.PathLike[str]


@dataclass(frozen=True)
class Additions:
    """Folders of ControlNets, T2I-Adapters and an image encoder by part, and the file of an IP-Adapter.

    A ControlNet may be a single file; ``unet`` is the config of the U-Net whose structure that has, for
    latents of ``channels``.
    """

    folders: dict[str, Path]
    ip_adapter: Path | None
    unet: dict[str, Any]
    channels: int

    def load(self, part: str, unet: Any = None) -> Any:
        """A part as a float32 module; for ``unet`` that module, with attention to the IP-Adapter's tokens.

        Raises CheckpointError for weights that are missing, damaged, or do not fit.
        """
        if part in self.folders and is_single_file(self.folders[part]):
            return load_controlnet_file(self.folders[part], config_like(self.unet, self.channels))
        if part in self.folders:
            return load_part(self.folders[part], part, _CLASSES[part.rstrip("_0123456789")])
        assert self.ip_adapter is not None
        if part == "ip_adapter":
            return ImageProjection(load_ip_adapter(self.ip_adapter)["image_proj"])
        return install_ip_adapter(unet, load_ip_adapter(self.ip_adapter)["ip_adapter"], self.ip_adapter)

    def adds_to(self, part: str) -> bool:
        """Whether ``load`` has a word in loading a part."""
        return part in self.folders or (self.ip_adapter is not None and part in ("ip_adapter", "unet"))

    def sha256(self) -> dict[str, str]:
        """Hash over the names and contents of the files of each part."""
        files = {
            part: [path] if is_single_file(path) else [path / "config.json", *weight_files(path, part)]
            for part, path in self.folders.items()
        }
        if self.ip_adapter is not None:
            files["ip_adapter"] = [self.ip_adapter]
        return {part: _hash(paths) for part, paths in files.items()}


def _hash(paths: list[Path]) -> str:
    total = hashlib.sha256()
    for path in paths:
        total.update(f"{path.name} {file_sha256(path)}\n".encode())
    return total.hexdigest()


def add_control(
    checkpoint: Checkpoint,
    *,
    controlnets: Sequence[Folder] = (),
    t2i_adapters: Sequence[Folder] = (),
    ip_adapter: Folder | None = None,
    image_encoder: Folder | None = None,
) -> Checkpoint:
    """The checkpoint with networks that control its U-Net. Raises CheckpointError for what does not fit.

    ``controlnets`` and ``t2i_adapters`` are folders in diffusers' layout, ControlNets also safetensors files
    in the original one, ``ip_adapter`` is a safetensors
    file as it is published or a folder with one, ``image_encoder`` the folder of its image encoder, None: the
    folder ``image_encoder`` beside the file, or none.
    """
    for option, given in (("controlnet", controlnets), ("t2i_adapter", t2i_adapters)):
        if isinstance(given, (str, os.PathLike)):
            raise CheckpointError(f"{option} is one name, {os.fspath(given)}: give a list of folders")
    if image_encoder is not None and ip_adapter is None:
        raise CheckpointError(
            f"image encoder {os.fspath(image_encoder)} without an IP-Adapter: give --ip-adapter as well"
        )
    unet = checkpoint.configs["unet"]
    folders: dict[str, Path] = {}
    for names, given in (
        (numbered("controlnet", len(controlnets)), controlnets),
        (numbered("t2i_adapter", len(t2i_adapters)), t2i_adapters),
    ):
        folders.update({name: Path(folder) for name, folder in zip(names, given, strict=True)})
    factor = checkpoint.spec.vae_scale_factor
    file = None if ip_adapter is None else find_ip_adapter(Path(ip_adapter))
    if file is not None:
        encoder = file.parent / "image_encoder" if image_encoder is None else Path(image_encoder)
        if image_encoder is not None or encoder.is_dir():
            folders["image_encoder"] = encoder
    control = ControlSpec(
        residuals=residuals_of(unet) if controlnets else (),
        controlnets=tuple(
            read_controlnet(folders[name], checkpoint.spec, unet)
            for name in folders
            if name.startswith("controlnet")
        ),
        t2i_adapters=tuple(
            read_t2i_adapter(folders[name], factor, checkpoint.spec.size_multiple, unet)
            for name in folders
            if name.startswith("t2i_adapter")
        ),
        ip_adapter=None
        if file is None
        else read_ip_adapter(file, folders.get("image_encoder"), checkpoint.spec.hidden_size),
    )
    if len({adapter.features for adapter in control.t2i_adapters}) > 1:
        raise CheckpointError("the T2I-Adapters give features of different sizes: build an engine for each")
    for part, path in folders.items():
        if not is_single_file(path):
            weight_files(path, part)
    spec = replace(checkpoint.spec, control=control)
    additions = Additions(folders, file, unet, spec.latent_channels)
    modules = (*checkpoint.modules, *control.modules())
    return replace(checkpoint, spec=spec, modules=modules, additions=additions)
