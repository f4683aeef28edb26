"""The classes of a checkpoint's parts."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

__all__ = ["PART_CLASSES", "part_class"]

PART_CLASSES = {
    "text_encoder": ("transformers", "CLIPTextModel"),
    "unet": ("diffusers", "UNet2DConditionModel"),
    "vae": ("diffusers", "AutoencoderKL"),
}
"""Parts of a checkpoint that hold weights, with the library and class that each must have."""


def part_class(part: str) -> Any:
    """The class of a part: its library's, or where diffusers is not installed the one of ``build/plain``."""
    library, name = PART_CLASSES[part]
    if library == "diffusers" and importlib.util.find_spec(library) is None:
        library = "fastdiff.build.plain"
    return getattr(importlib.import_module(library), name)
