"""What a key of a LoRA file says: of which layer it is, and what of it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from fastdiff.errors import InputError

__all__ = ["Key", "parse_key"]

_ROLES = {
    "down": ("lora_down.weight", "lora.down.weight", "lora_linear_layer.down.weight"),
    "up": ("lora_up.weight", "lora.up.weight", "lora_linear_layer.up.weight"),
    "alpha": ("alpha",),
}
_PEFT = re.compile(r"(?P<stem>.+)\.lora_(?P<matrix>[AB])(\.(?P<adapter>[^.]+))?\.weight")
_OLD = re.compile(r"(?P<stem>.+)_lora\.(?P<role>down|up)\.weight")

_UNSUPPORTED = {
    r"dora_scale|lora_magnitude_vector(\..+)?": "DoRA",
    r"lora_mid\.weight": "a convolution taken apart in three (LoCon with CP decomposition)",
    r"hada_.+": "LoHa",
    r"lokr_.+": "LoKr",
    r"oft_.+|oft_R\..+|oft_blocks": "OFT",
    r"on_input": "IA3",
    r"diff|diff_b|w_norm|b_norm": "differences of whole weights",
    r"lora_[AB](\..+)?\.bias|lora_up\.bias|lora\.up\.bias": "LoRA with biases",
    r"lora_embedding_[AB].*": "LoRA of an embedding table",
}
"""What some files have beside low-rank updates, by the end of the key, and what it is called."""


@dataclass(frozen=True)
class Key:
    """A key: the layer as the file names it, and "down", "up" or "alpha"."""

    stem: str
    role: str


def parse_key(key: str) -> Key:
    """The parts of a key. Raises InputError for one of a kind that is not supported, or of none."""
    for pattern, name in _UNSUPPORTED.items():
        if re.fullmatch(rf".+\.({pattern})", key):
            raise InputError(f"{key} is {name}, which is not supported: wanted low-rank updates alone")
    for role, endings in _ROLES.items():
        for ending in endings:
            if key.endswith(f".{ending}"):
                return Key(key.removesuffix(f".{ending}"), role)
    if match := _PEFT.fullmatch(key):
        return Key(match["stem"], "down" if match["matrix"] == "A" else "up")
    if match := _OLD.fullmatch(key):
        return Key(match["stem"], match["role"])
    raise InputError(
        f"{key} is no key of a LoRA: wanted one that ends with lora_down.weight, lora_up.weight, alpha,"
        " lora_A.weight or lora_B.weight"
    )
