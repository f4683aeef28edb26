"""Tiny random checkpoints in the shape and folder layout of Stable Diffusion 1.x, for the tests.

The weights are random but the parts are real: ``StableDiffusionPipeline.from_pretrained`` loads the folder,
and its tokenizer knows a few words as one token each and everything else byte by byte.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

WORDS = ("a", "red", "green", "blue", "circle", "square", "star", "left", "right", "of", "above", "on", "and")
START, END = "<|startoftext|>", "<|endoftext|>"
MAX_TOKENS = 77

SCHEDULER = {
    "_class_name": "PNDMScheduler",
    "_diffusers_version": "0.30.0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "trained_betas": None,
}


def byte_alphabet() -> list[str]:
    """The printable characters that stand for the 256 byte values in byte-level BPE, ordered by byte."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    shifted = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(shifted)) for byte in range(256)]


def bpe(words: tuple[str, ...] = WORDS) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges in CLIP's order: bytes, bytes at a word's end, merges, start, end."""
    merges: list[tuple[str, str]] = []
    for word in words:
        pieces = [*word[:-1], word[-1] + "</w>"]
        while len(pieces) > 1:
            pair = (pieces[0], pieces[1])
            if pair not in merges:
                merges.append(pair)
            pieces[:2] = ["".join(pair)]
    alphabet = byte_alphabet()
    tokens = [*alphabet, *(letter + "</w>" for letter in alphabet), *map("".join, merges), START, END]
    return {token: index for index, token in enumerate(tokens)}, merges


def write_tokenizer(folder: Path, max_tokens: int = MAX_TOKENS) -> None:
    vocabulary, merges = bpe()
    folder.mkdir(parents=True)
    write_json(folder / "vocab.json", vocabulary)
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    special = {"bos_token": START, "eos_token": END, "pad_token": END, "unk_token": END}
    write_json(folder / "special_tokens_map.json", special)
    options = {"tokenizer_class": "CLIPTokenizer", "model_max_length": max_tokens, "do_lower_case": True}
    write_json(folder / "tokenizer_config.json", {**options, **special, "add_prefix_space": False})


def make_checkpoint(
    folder: Path, *, fp16: bool = False, seed: int = 0, unet: dict[str, Any] | None = None
) -> Path:
    """Write a tiny checkpoint into ``folder`` (which must not exist) and return it.

    Text: 2 layers of width 32. U-Net: two levels of 32 and 64 channels, cross-attention in the first,
    latents of 4 x 8 x 8. VAE: factor 4, so the default picture is 32 x 32. ``unet`` overrides U-Net options.
    """
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    vocabulary, _ = bpe()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(vocabulary),
                hidden_size=32,
                intermediate_size=64,
                projection_dim=32,
                num_hidden_layers=2,
                num_attention_heads=4,
                max_position_embeddings=MAX_TOKENS,
                bos_token_id=vocabulary[START],
                eos_token_id=vocabulary[END],
                pad_token_id=vocabulary[END],
            )
        )
        options: dict[str, Any] = {
            "sample_size": 8,
            "in_channels": 4,
            "out_channels": 4,
            "block_out_channels": (32, 64),
            "layers_per_block": 1,
            "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
            "cross_attention_dim": 32,
            "attention_head_dim": 4,
            "norm_num_groups": 8,
        }
        model = UNet2DConditionModel(**{**options, **(unet or {})})
        vae = AutoencoderKL(
            in_channels=3,
            out_channels=3,
            latent_channels=4,
            block_out_channels=(8, 16, 16),
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            layers_per_block=1,
            norm_num_groups=4,
            sample_size=32,
            scaling_factor=0.18215,
        )
    folder.mkdir(parents=True)
    dtype = torch.float16 if fp16 else torch.float32
    for name, module in {"text_encoder": text_encoder, "unet": model, "vae": vae}.items():
        module.to(dtype).save_pretrained(folder / name, safe_serialization=True)
    write_tokenizer(folder / "tokenizer")
    (folder / "scheduler").mkdir()
    write_json(folder / "scheduler" / "scheduler_config.json", SCHEDULER)
    index = {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": "0.30.0",
        "feature_extractor": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", "PNDMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    write_json(folder / "model_index.json", index)
    return folder


def copy_checkpoint(source: Path, destination: Path) -> Path:
    """A copy to damage."""
    shutil.copytree(source, destination)
    return destination


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def write_json(path: Path, document: Any) -> None:
    path.write_text(json.dumps(document, indent=2), encoding="utf-8")
