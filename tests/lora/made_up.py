"""LoRAs of random numbers: as files in each layout, and added to PyTorch's own weights."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastdiff.lora import LowRank

__all__ = ["LAYOUTS", "Modules", "add_to", "layers_of", "random_updates", "write_lora"]

Layers = dict[str, LowRank]
Modules = dict[str, Layers]
"""Updates by module and path; their ``scale`` is α/rank."""


def layers_of(module: Any) -> dict[str, tuple[int, ...]]:
    """Shapes of the weights of a module's linear layers and convolutions."""
    import torch

    return {
        path: tuple(layer.weight.shape)
        for path, layer in module.named_modules()
        if isinstance(layer, torch.nn.Linear | torch.nn.Conv2d)
    }


def random_updates(
    shapes: Mapping[str, tuple[int, ...]], rank: int, seed: int, size: float = 0.5, alpha: float = 1.0
) -> Layers:
    """An update of each layer whose effect on its output is about ``size`` times its input."""
    rng = np.random.default_rng(seed)
    updates = {}
    for path, shape in shapes.items():
        down = rng.standard_normal((rank, *shape[1:])) / math.sqrt(math.prod(shape[1:]))
        up = rng.standard_normal((shape[0], rank)) * size * math.sqrt(rank) / alpha
        updates[path] = LowRank(down.astype(np.float32), up.astype(np.float32), alpha / rank)
    return updates


def add_to(module: Any, updates: Mapping[str, LowRank], scale: float = 1.0) -> None:
    """Add updates to the weights of a PyTorch module, in double precision."""
    import torch

    for path, update in updates.items():
        weight = module.get_submodule(path).weight
        down = torch.from_numpy(update.down).double().flatten(1)
        change = scale * update.scale * (torch.from_numpy(update.up).double() @ down)
        with torch.no_grad():
            weight.copy_((weight.double() + change.reshape(weight.shape)).float())


_KOHYA = {"unet": "lora_unet", "text_encoder": "lora_te"}
_OLD_TEXT = {"q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "out_proj": "to_out"}
_PROCESSORS = ("to_q", "to_k", "to_v", "to_out.0")


def _with_text_model(module: str, path: str) -> str:
    return f"text_model.{path}" if module.startswith("text") and not path.startswith("text_") else path


def _kohya(module: str, path: str, update: LowRank) -> dict[str, NDArray[np.float32]]:
    stem = f"{_KOHYA[module]}_{_with_text_model(module, path)}".replace(".", "_")
    kernel = (1,) * (update.down.ndim - 2)
    return {
        f"{stem}.lora_down.weight": update.down,
        f"{stem}.lora_up.weight": update.up.reshape(*update.up.shape, *kernel),
        f"{stem}.alpha": np.float32(update.scale * update.rank),
    }


def _peft(module: str, path: str, update: LowRank) -> dict[str, NDArray[np.float32]]:
    stem = f"{module}.{_with_text_model(module, path)}"
    kernel = (1,) * (update.down.ndim - 2)
    up = update.up.reshape(*update.up.shape, *kernel)
    return {f"{stem}.lora_A.weight": update.down, f"{stem}.lora_B.weight": up}


def _scaled(update: LowRank) -> LowRank:
    """The same update for a layout without alphas."""
    return LowRank(update.down, update.up * np.float32(update.scale), 1.0)


def _diffusers(module: str, path: str, update: LowRank) -> dict[str, NDArray[np.float32]]:
    stem, middle = f"{module}.{_with_text_model(module, path)}", "lora"
    if module.startswith("text"):
        middle = "lora_linear_layer"
    scaled = _scaled(update)
    return {f"{stem}.{middle}.down.weight": scaled.down, f"{stem}.{middle}.up.weight": scaled.up}


def _processors(module: str, path: str, update: LowRank) -> dict[str, NDArray[np.float32]]:
    """diffusers' first layout: attention alone has names of its own, other layers those of ``_diffusers``."""
    scaled = _scaled(update)
    parent, _, last = path.rpartition(".")
    if module == "unet" and path.endswith(_PROCESSORS):
        attention = path.removesuffix(".to_out.0") if path.endswith(".to_out.0") else parent
        stem = f"unet.{attention}.processor.{'to_out' if last == '0' else last}_lora"
    elif module.startswith("text") and last in _OLD_TEXT:
        stem = f"{module}.{_with_text_model(module, parent)}.{_OLD_TEXT[last]}_lora"
    else:
        return _diffusers(module, path, update)
    return {f"{stem}.down.weight": scaled.down, f"{stem}.up.weight": scaled.up}


LAYOUTS: dict[str, Callable[[str, str, LowRank], dict[str, NDArray[np.float32]]]] = {
    "kohya": _kohya,
    "peft": _peft,
    "diffusers": _diffusers,
    "processors": _processors,
}


def write_lora(
    path: Path, modules: Mapping[str, Mapping[str, LowRank]], layout: str = "kohya", dtype: Any = np.float32
) -> Path:
    """Write updates in a layout; alphas of ``peft`` go into the metadata."""
    from safetensors.numpy import save_file

    tensors = {
        key: np.asarray(value, dtype if np.ndim(value) else np.float32)
        for module, layers in modules.items()
        for place, update in layers.items()
        for key, value in LAYOUTS[layout](module, place, update).items()
    }
    metadata = {"format": "pt"}
    if layout == "peft":
        metadata["lora_adapter_metadata"] = json.dumps(dict(_options(modules)))
    save_file({key: np.ascontiguousarray(value) for key, value in tensors.items()}, str(path), metadata)
    return path


def _options(modules: Mapping[str, Mapping[str, LowRank]]) -> Iterable[tuple[str, Any]]:
    """As diffusers writes the LoraConfig of each module: the first layer's alpha, and patterns for others."""
    for module, layers in modules.items():
        alphas = {
            _with_text_model(module, path): update.scale * update.rank for path, update in layers.items()
        }
        common = next(iter(alphas.values()))
        yield f"{module}.r", next(iter(layers.values())).rank
        yield f"{module}.lora_alpha", common
        others = {path: alpha for path, alpha in alphas.items() if not math.isclose(alpha, common)}
        yield f"{module}.alpha_pattern", others
