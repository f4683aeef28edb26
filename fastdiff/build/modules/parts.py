"""The classes of a checkpoint's parts."""

from __future__ import annotations

import importlib
import importlib.util
import re
from typing import Any

from fastdiff.build.modules.control import CONTROL_PARTS

__all__ = ["PART_CLASSES", "part_class"]

PART_CLASSES = {
    "text_encoder": ("transformers", "CLIPTextModel"),
    "unet": ("diffusers", "UNet2DConditionModel"),
    "vae": ("diffusers", "AutoencoderKL"),
}
"""Parts of a checkpoint that hold weights, with the library and class that each must have."""


def part_class(part: str) -> Any:
    """The class of a part: its library's, or where diffusers is not installed the one of ``build/plain``."""
    library, name = PART_CLASSES.get(part) or CONTROL_PARTS[re.sub("_[0-9]+$", "", part)]
    if library == "diffusers" and importlib.util.find_spec(library) is None:
        library = "fastdiff.build.plain"
    return getattr(importlib.import_module(library), name)
