"""Configurations of published models: the files of each one's folder, without weights.

Copied from the model cards' own config files. Benchmarks and full-size tests fill them with random weights,
on which neither time nor memory depends; the tests hold them to the parameter counts of the published ones.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

__all__ = ["MODELS", "PARAMETERS", "SOURCES", "config_files", "part_config"]

_FOLDER = Path(__file__).parent

SOURCES = {
    "sd15": "https://huggingface.co/stable-diffusion-v1-5/stable-diffusion-v1-5",
    "sd15-inpainting": "https://huggingface.co/stable-diffusion-v1-5/stable-diffusion-inpainting",
    "lcm-sd15": "https://huggingface.co/SimianLuo/LCM_Dreamshaper_v7",
    "sd21": "https://huggingface.co/stabilityai/stable-diffusion-2-1",
    "sdxl": "https://huggingface.co/stabilityai/stable-diffusion-xl-base-1.0",
}
"""Where each model's configuration comes from, by the name of its folder here."""

MODELS = tuple(SOURCES)

_VAE, _CLIP_L = 83_653_863, 123_060_480

PARAMETERS: dict[str, dict[str, int]] = {
    "sd15": {"text_encoder": _CLIP_L, "unet": 859_520_964, "vae": _VAE},
    "sd15-inpainting": {"text_encoder": _CLIP_L, "unet": 859_535_364, "vae": _VAE},
    "lcm-sd15": {"text_encoder": _CLIP_L, "unet": 859_602_884, "vae": _VAE},
    "sd21": {"text_encoder": 340_387_840, "unet": 865_910_724, "vae": _VAE},
    "sdxl": {
        "text_encoder": _CLIP_L,
        "text_encoder_2": 694_659_840,
        "unet": 2_567_463_684,
        "vae": _VAE,
    },
}
"""Numbers of parameters of the published weights, by model and part."""


def config_files(model: str) -> dict[str, dict[str, Any]]:
    """The JSON files of a model by their path in its folder: ``unet/config.json`` and so on."""
    folder = _FOLDER / model
    return {
        path.relative_to(folder).as_posix(): json.loads(path.read_text(encoding="utf-8"))
        for path in sorted(folder.rglob("*.json"))
    }


def part_config(model: str, part: str) -> dict[str, Any]:
    """The configuration of one part of a model."""
    config: dict[str, Any] = json.loads((_FOLDER / model / part / "config.json").read_text(encoding="utf-8"))
    return config
