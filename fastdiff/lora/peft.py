"""Keys of PEFT and diffusers: a layer's path with dots, behind the module's name or without one.

::

    unet.down_blocks.0.attentions.0.proj_in.lora_A.weight                       PEFT, as diffusers saves it
    base_model.model.down_blocks.0.attentions.0.proj_in.lora_A.weight           PEFT alone: the U-Net
    unet.down_blocks.0.…attn1.to_out.0.lora.down.weight                         diffusers
    down_blocks.0.…attn1.processor.to_out_lora.down.weight                      diffusers' older processors
    text_encoder.text_model.encoder.layers.0.self_attn.to_q_lora.down.weight    and its older text encoders
    text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_linear_layer.down.weight

``keys.py`` has taken the endings off. Files of PEFT have no alphas among their tensors: diffusers writes the
options of each module into the file's metadata, under ``lora_adapter_metadata``.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from fastdiff.errors import InputError

__all__ = ["METADATA", "Options", "peft_names", "plain_stem", "read_options"]

METADATA = "lora_adapter_metadata"
_OLD_TEXT = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}


def plain_stem(stem: str) -> str:
    """A layer's name without what says nothing of the layer."""
    return stem.removeprefix("base_model.model.").replace(".processor.", ".")


def peft_names(module: str, paths: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Each name that a module's layers may have in such a file, and the layer's path."""
    text = module.startswith("text_encoder")
    for path in paths:
        spelled = {path}
        if text and not path.startswith(("text_model.", "text_projection")):
            spelled.add(f"text_model.{path}")
        for name in list(spelled):
            parent, _, last = name.rpartition(".")
            spelled |= {f"{parent}.{old}" for old, new in _OLD_TEXT.items() if text and new == last}
            if name.endswith(".to_out.0"):
                spelled.add(name.removesuffix(".0"))
        for name in sorted(spelled):
            yield f"{module}.{name}", path
            if module == "unet":
                yield name, path


class Options:
    """The options that a file's metadata gives for one module: PEFT's LoraConfig as JSON."""

    def __init__(self, module: str, config: Mapping[str, Any]) -> None:
        self._module = module
        if config.get("use_dora"):
            raise InputError(f"{METADATA} says that {module} has DoRA, which is not supported")
        if config.get("lora_bias"):
            raise InputError(f"{METADATA} says that {module} has biases, which are not supported")
        self._alpha = _number(module, "lora_alpha", config.get("lora_alpha", 8))
        pattern = config.get("alpha_pattern") or {}
        if not isinstance(pattern, dict):
            raise InputError(f"{METADATA}: alpha_pattern of {module} is {pattern!r}, wanted an object")
        self._patterns = {key: _number(module, "alpha_pattern", alpha) for key, alpha in pattern.items()}
        self._root = bool(config.get("use_rslora"))

    def scale(self, path: str, rank: int) -> float:
        """The factor of a layer's update: α/rank, with rsLoRA α/√rank."""
        alpha = self._alpha
        for pattern, value in self._patterns.items():
            try:
                found = re.fullmatch(rf"(.*\.)?({pattern})", path) is not None
            except re.error as error:
                raise InputError(
                    f"{METADATA}: alpha_pattern of {self._module} has {pattern!r}, wanted the path of a layer"
                ) from error
            if found:
                alpha = value
                break
        return alpha / (math.sqrt(rank) if self._root else rank)


def read_options(metadata: Mapping[str, str]) -> dict[str, Options]:
    """The options by module; none for a file without them. Raises InputError for some that are no options."""
    text = metadata.get(METADATA)
    if text is None:
        return {}
    try:
        document = json.loads(text)
    except ValueError as error:
        raise InputError(f"{METADATA} is not valid JSON") from error
    if not isinstance(document, dict):
        raise InputError(f"{METADATA} is {type(document).__name__}, wanted an object")
    configs: dict[str, dict[str, Any]] = {}
    for key, value in document.items():
        module, _, option = key.partition(".")
        configs.setdefault(module, {})[option] = value
    return {module: Options(module, config) for module, config in configs.items()}


def _number(module: str, name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InputError(f"{METADATA}: {name} of {module} is {value!r}, wanted a finite number")
    return float(value)
