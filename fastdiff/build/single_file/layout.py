"""What a single file holds: its tensors by name, read when they are wanted, and which model they are of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from fastdiff.errors import CheckpointError

__all__ = ["KINDS", "PREFIXES", "SingleFile", "kind_of"]

UNET = "model.diffusion_model."
EMA = "model_ema."

PREFIXES: Mapping[str, tuple[str, ...]] = {
    "text_encoder": (
        "cond_stage_model.transformer.",
        "cond_stage_model.model.",
        "conditioner.embedders.0.transformer.",
    ),
    "text_encoder_2": ("conditioner.embedders.1.model.", "conditioner.embedders.0.model."),
    "unet": (UNET,),
    "vae": ("first_stage_model.", "vae."),
}
"""How the names of each part's tensors may start."""

KINDS = {
    "v1": "sd15",
    "inpainting": "sd15-inpainting",
    "v2": "sd21",
    "xl_base": "sdxl",
    "xl_refiner": "sdxl-refiner",
}
"""Kinds of files, as diffusers calls them, with the configuration in ``fastdiff.published`` of each."""


class SingleFile(Mapping[str, Any]):
    """The tensors of a file by name; each is read from the mapped file when it is asked for.

    With ``ema`` the U-Net's are its moving averages, which the file must have. Raises CheckpointError for a
    file that is damaged or is not safetensors.
    """

    def __init__(self, path: Path, ema: bool = False) -> None:
        from safetensors import SafetensorError, safe_open

        self.path = path
        try:
            opened: Any = safe_open(path, framework="pt")
            self._file = opened
            self._stored = {name: name for name in opened.keys()}  # noqa: SIM118 (there is no other way)
        except (SafetensorError, OSError, ValueError) as error:
            reason = " ".join(str(error).split())[:120]
            raise CheckpointError(
                f"{path} is no readable safetensors file ({path.stat().st_size} bytes; {reason}): download it"
                " again; .ckpt files are pickles, which are not read"
            ) from error
        if not any(name.startswith(UNET) for name in self._stored):
            raise CheckpointError(
                f"{path} holds no U-Net in the layout of the original code (tensors {UNET}...): give a whole"
                " checkpoint, or a diffusers folder"
            )
        averages = {name for name in self._stored if name.startswith(EMA)}
        if ema:
            self._use_averages(averages)
        for name in averages:
            self._stored.pop(name, None)

    def _use_averages(self, averages: set[str]) -> None:
        """Let the U-Net's names stand for the moving averages, whose names have no dots."""
        for name in list(self._stored):
            if name.startswith(UNET):
                average = EMA + "".join(name.split(".")[1:])
                if average not in averages:
                    raise CheckpointError(
                        f"{self.path} has no moving average of {name}: leave --ema out for its plain weights"
                    )
                self._stored[name] = average

    def __getitem__(self, name: str) -> Any:
        return self._file.get_tensor(self._stored[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, which is not read."""
        return tuple(self._file.get_slice(self._stored[name]).get_shape())

    def of(self, part: str) -> str:
        """How the names of a part's tensors start. Raises CheckpointError for a part that is not there."""
        for prefix in PREFIXES[part]:
            if any(name.startswith(prefix) for name in self._stored):
                return prefix
        raise CheckpointError(
            f"{self.path} holds no {part} (tensors {' or '.join(PREFIXES[part])}): give a file with all parts"
        )


class _Shapes(Mapping[str, Any]):
    """A file as what tells kinds apart sees it: names and shapes."""

    def __init__(self, file: SingleFile) -> None:
        self._file = file

    def __getitem__(self, name: str) -> Any:
        return SimpleNamespace(shape=self._file.shape(name))

    def __iter__(self) -> Iterator[str]:
        return iter(self._file)

    def __len__(self) -> int:
        return len(self._file)


def kind_of(file: SingleFile) -> str:
    """Which of KINDS a file is of, as diffusers tells them apart. Raises CheckpointError for others."""
    from diffusers.loaders.single_file_utils import infer_diffusers_model_type

    kind = str(infer_diffusers_model_type(_Shapes(file)))
    if kind not in KINDS:
        raise CheckpointError(
            f"{file.path} holds a model of kind {kind}: known are {', '.join(KINDS)}; give the folder of its"
            " configs as --config"
        )
    return kind
