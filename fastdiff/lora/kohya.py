"""Keys of kohya's scripts: ``lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight``.

A prefix for the module, and the layer's path with underscores for dots. Of SDXL the U-Net's layers have the
names of the original code instead (``original_blocks.py``).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from fastdiff.lora.original_blocks import original_paths

__all__ = ["kohya_names"]

_PREFIXES = {
    "unet": ("lora_unet_",),
    "text_encoder": ("lora_te_", "lora_te1_"),
    "text_encoder_2": ("lora_te2_",),
}


def kohya_names(module: str, paths: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Each name that a module's layers may have in such a file, and the layer's path."""
    known = list(paths)
    prefixes = _PREFIXES.get(module, ())
    for path in known:
        for spelled in _spellings(module, path):
            yield from ((prefix + spelled.replace(".", "_"), path) for prefix in prefixes)
    if module == "unet":
        for original, path in original_paths(known).items():
            yield from ((prefix + original.replace(".", "_"), path) for prefix in prefixes)


def _spellings(module: str, path: str) -> tuple[str, ...]:
    """Transformers has dropped the ``text_model`` of a text encoder's paths; files have it."""
    if not module.startswith("text_encoder") or path.startswith(("text_model.", "text_projection")):
        return (path,)
    return (path, f"text_model.{path}")
