"""Parts of a checkpoint without copies: on the meta device to count, mapped from their file to run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

__all__ = ["mapped_part", "meta_part"]


def meta_part(folder: Path, part: str) -> Any:
    """The part's library module on the meta device: shapes, no memory."""
    import torch

    from fastdiff.build.modules import part_class
    from fastdiff.build.weights import quiet

    config = json.loads((folder / part / "config.json").read_text(encoding="utf-8"))
    with quiet(), torch.device("meta"):
        kind: Any = part_class(part)
        if hasattr(kind, "from_config"):
            return kind.from_config(config)
        return kind(kind.config_class.from_dict(config))


def mapped_part(folder: Path, part: str) -> Any:
    """The part as a float32 module in evaluation mode whose weights are pages of its file, where they can be.

    Several contestants that map one file share its pages. Weights in shards or of another type are loaded
    (``load_part``). Raises CheckpointError.
    """
    import torch
    from safetensors.torch import load_file

    from fastdiff.build.weights import load_part, weight_files

    files = weight_files(folder / part, part)
    if len(files) == 1:
        module, tensors = meta_part(folder, part), load_file(files[0])
        wanted = module.state_dict()
        same = wanted.keys() == tensors.keys() and all(
            tensors[name].shape == wanted[name].shape and tensors[name].dtype == torch.float32
            for name in wanted
        )
        if same:
            module.load_state_dict(tensors, assign=True)
            # a buffer that is not saved stays behind on the meta device
            if not any(tensor.is_meta for tensor in (*module.parameters(), *module.buffers())):
                return module.eval().requires_grad_(False)
    return load_part(folder / part, part)
