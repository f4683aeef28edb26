"""What diffusers' classes offer around a model: made from a config, saved to and loaded from safetensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, Self

from torch import nn

__all__ = ["PlainModel"]

_NAME = "diffusion_pytorch_model"


class PlainModel(nn.Module):
    """A module with a ``config``: ``DEFAULTS`` overridden by what the file says.

    ``FIXED`` holds options that have one value here. Raises ValueError for another one.
    """

    DEFAULTS: ClassVar[Mapping[str, Any]] = {}
    FIXED: ClassVar[Mapping[str, tuple[Any, ...]]] = {}

    def __init__(self, **options: Any) -> None:
        super().__init__()
        for key, values in self.FIXED.items():
            if key in options and options[key] not in values:
                raise ValueError(f"{key} is {options[key]!r}, wanted {values[0]!r}: install diffusers for it")
        self.config = SimpleNamespace(**{**self.DEFAULTS, **options})

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """A model with PyTorch's initial weights."""
        return cls(**{key: value for key, value in config.items() if not key.startswith("_")})

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        variant: str | None = None,
        torch_dtype: Any = None,
        output_loading_info: bool = False,
        **library: Any,
    ) -> Any:
        """The model of a folder, its weights as ``torch_dtype``; with ``output_loading_info`` a pair with the
        names that are missing, unknown or of another shape. Safetensors only; options of the library that say
        so are taken and need nothing.
        """
        from safetensors.torch import load_file

        config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
        model = cls.from_config(config)
        tensors: dict[str, Any] = {}
        for file in _files(Path(folder), variant):
            tensors.update(load_file(file))
        wanted = model.state_dict()
        misfits = [name for name in wanted if name in tensors and tensors[name].shape != wanted[name].shape]
        fitting = {name: tensor for name, tensor in tensors.items() if name not in misfits}
        model.load_state_dict(fitting, strict=False)
        if torch_dtype is not None:
            model = model.to(torch_dtype)
        info = {
            "missing_keys": [name for name in wanted if name not in tensors],
            "unexpected_keys": [name for name in tensors if name not in wanted],
            "mismatched_keys": misfits,
        }
        return (model.eval(), info) if output_loading_info else model.eval()

    def save_pretrained(self, folder: str | Path, **library: Any) -> None:
        """Config and weights, in one file."""
        from safetensors.torch import save_file

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        config = {"_class_name": type(self).__name__, **vars(self.config)}
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        weights = {name: tensor.contiguous() for name, tensor in self.state_dict().items()}
        save_file(weights, folder / f"{_NAME}.safetensors", metadata={"format": "pt"})


def _files(folder: Path, variant: str | None) -> list[Path]:
    infix = f".{variant}" if variant else ""
    index = folder / f"{_NAME}.safetensors.index{infix}.json"
    single = folder / f"{_NAME}{infix}.safetensors"
    if single.is_file() or not index.is_file():
        return [single]
    names = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
    return [folder / name for name in sorted(set(names))]
