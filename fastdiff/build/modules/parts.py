"""The library classes of a checkpoint's parts."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

__all__ = ["LIBRARIES", "PART_CLASSES", "part_class"]

LIBRARIES = {
    "AutoencoderKL": "diffusers",
    "AutoencoderTiny": "diffusers",
    "CLIPTextModel": "transformers",
    "CLIPTextModelWithProjection": "transformers",
    "CLIPVisionModelWithProjection": "transformers",
    "ControlNetModel": "diffusers",
    "T2IAdapter": "diffusers",
    "UNet2DConditionModel": "diffusers",
    "UNet2DModel": "diffusers",
    "VQModel": "diffusers",
}
"""Classes that parts may have, with the library of each."""

PART_CLASSES = {
    "text_encoder": ("transformers", "CLIPTextModel"),
    "text_encoder_2": ("transformers", "CLIPTextModelWithProjection"),
    "unet": ("diffusers", "UNet2DConditionModel"),
    "vae": ("diffusers", "AutoencoderKL"),
}
"""Parts of a checkpoint that hold weights, with the library and class that each has if nothing is said."""

_PLAIN = ("AutoencoderKL", "UNet2DConditionModel")
"""Classes of ``build/plain``."""


def part_class(part: str, name: str | None = None) -> Any:
    """The class ``name`` of a part, None being its usual one: its library's, or where diffusers is not
    installed the one of ``build/plain``. Raises ValueError for an unknown name.
    """
    name = PART_CLASSES[part][1] if name is None else name
    if name not in LIBRARIES:
        raise ValueError(f"unknown class {name!r}")
    library = LIBRARIES[name]
    if library == "diffusers" and name in _PLAIN and importlib.util.find_spec(library) is None:
        library = "fastdiff.build.plain"
    return getattr(importlib.import_module(library), name)
