"""What the config of each library class must hold, and which of its options cannot be built."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["CONFIGS", "ConfigRules", "refused_option"]


@dataclass(frozen=True)
class ConfigRules:
    """Keys that a config must have, and options that must have one of the given values or be left out."""

    required: tuple[str, ...]
    allowed: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)


_OFF = (None, False)
_TEXT = ConfigRules(
    (
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "max_position_embeddings",
    ),
    {"use_attention_mask": _OFF},
)
_BLOCKS = ("block_out_channels", "down_block_types", "up_block_types", "layers_per_block")
_VAE = ConfigRules(("latent_channels", *_BLOCKS))

CONFIGS: Mapping[str, ConfigRules] = {
    "AutoencoderKL": _VAE,
    "AutoencoderTiny": ConfigRules(("latent_channels", "encoder_block_out_channels")),
    "CLIPTextModel": _TEXT,
    "CLIPTextModelWithProjection": ConfigRules((*_TEXT.required, "projection_dim"), _TEXT.allowed),
    "UNet2DConditionModel": ConfigRules(
        ("in_channels", "out_channels", *_BLOCKS, "cross_attention_dim", "attention_head_dim"),
        {
            "class_embed_type": _OFF,
            "encoder_hid_dim": _OFF,
            "encoder_hid_dim_type": _OFF,
        },
    ),
    "UNet2DModel": ConfigRules(
        ("in_channels", "out_channels", *_BLOCKS),
        {"class_embed_type": _OFF, "time_embedding_type": (None, "positional")},
    ),
    "VQModel": ConfigRules(
        ("latent_channels", "num_vq_embeddings", *_BLOCKS), {"norm_type": (None, "group")}
    ),
}


def refused_option(kind: str, config: Mapping[str, Any]) -> str | None:
    """The first option of a config that cannot be built, None where all can."""
    for key, values in CONFIGS[kind].allowed.items():
        if not any(config.get(key) is value or config.get(key) == value for value in values):
            return key
    return None
