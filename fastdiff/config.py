"""What the parts of fastdiff agree on: precisions, module names, tensor and model descriptions.

Sizes that change from call to call are symbols: ``batch``, ``tokens`` and, always counted in *latent*
pixels, ``height`` and ``width``. A picture-sized dimension is a multiple of a latent one and is written
``"8*height"``, one on a U-Net's lower levels is a part of it, ``"height/2"``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from fractions import Fraction

from fastdiff.control.spec import ControlSpec
from fastdiff.errors import InputError

__all__ = [
    "MODULES",
    "OPTIONAL",
    "TOLERANCES",
    "YARDSTICKS",
    "ModelSpec",
    "PictureNoise",
    "Precision",
    "SizeRange",
    "TensorSpec",
    "TextEncoderSpec",
    "parse_precision",
]

MODULES = ("text_encoder", "unet", "vae_decoder", "vae_encoder")
"""Modules of an engine, in the order in which they are built."""

_SYMBOL = re.compile(r"(?:([1-9][0-9]{0,8})\*)?([a-z][a-z0-9_]*)(?:/([1-9][0-9]{0,8}))?", re.ASCII)


class Precision(StrEnum):
    """Number format of a module's weights, and of its arithmetic where the target computes in it.

    Inputs and outputs stay float32.
    """

    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"
    INT8 = "int8"


TOLERANCES = {Precision.FP32: 1e-4}
"""Largest relative L2 error of a module against PyTorch in fp32."""

YARDSTICKS = {Precision.FP16: 2.0, Precision.BF16: 2.0}
"""Precisions whose tolerance depends on the model: this often the error that PyTorch has in the same type, or
in fp32 with the weights rounded to it where a target only stores them so."""


def parse_precision(text: str | Precision) -> Precision:
    """The precision called ``text``. Raises InputError for one that is unknown or cannot be built."""
    buildable = ", ".join(precision.value for precision in (*TOLERANCES, *YARDSTICKS))
    try:
        precision = Precision(text)
    except ValueError:
        known = ", ".join(precision.value for precision in Precision)
        raise InputError(f"unknown precision {text!r}: known are {known}; {buildable} can be built") from None
    if precision not in TOLERANCES and precision not in YARDSTICKS:
        raise InputError(f"precision {precision.value} cannot be built yet: use {buildable}")
    return precision


@dataclass(frozen=True)
class TensorSpec:
    """Name, NumPy dtype name and shape of a module's input or output.

    ``shape`` holds integers and symbolic sizes: ``"batch"``, ``"height"``, ``"8*height"``, ``"height/2"``.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    def factors(self) -> tuple[tuple[int | Fraction, str | None], ...]:
        """The shape as ``(factor, symbol)`` pairs; a fixed size is ``(size, None)``.

        Raises ValueError for a size that is neither positive nor a symbol.
        """
        return tuple(_factor(size) for size in self.shape)

    def concrete(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """The shape for given sizes. Raises KeyError for a symbol that ``sizes`` does not give."""
        return tuple(
            int(factor) if symbol is None else int(factor * sizes[symbol])
            for factor, symbol in self.factors()
        )


def _factor(size: int | str) -> tuple[int | Fraction, str | None]:
    if isinstance(size, str):
        match = _SYMBOL.fullmatch(size)
        if match is None:
            raise ValueError(f"{size!r} is not a symbolic size")
        factor = Fraction(int(match[1] or 1), int(match[3] or 1))
        return factor.numerator if factor.denominator == 1 else factor, match[2]
    if size < 1:
        raise ValueError(f"{size!r} is not a positive size")
    return size, None


@dataclass(frozen=True)
class SizeRange:
    """Values that a symbolic size may take; ``maximum`` None means without limit."""

    minimum: int = 1
    maximum: int | None = None
    multiple_of: int = 1

    def __contains__(self, size: int) -> bool:
        return (
            size >= self.minimum
            and (self.maximum is None or size <= self.maximum)
            and size % self.multiple_of == 0
        )

    def __str__(self) -> str:
        upper = "or more" if self.maximum is None else f"to {self.maximum}"
        multiple = f" in multiples of {self.multiple_of}" if self.multiple_of > 1 else ""
        return f"{self.minimum} {upper}{multiple}"


OPTIONAL = {"optional": True}
"""Metadata of a field that came into the engine's schema later: a file leaves it out where it has its
default, so engines that do not need it are the same as before."""


@dataclass(frozen=True)
class TextEncoderSpec:
    """A text encoder as the prompt needs it.

    module       its name in the engine
    tokenizer    the folder of its tokenizer in the engine
    window       tokens that it takes at once, start and end among them
    hidden_size  width of its hidden states
    layers       how many hidden states it gives, for clip-skip; 0: only the one that is used
    pooled_size  width of its embedding of the whole prompt, 0 without
    vocabulary   rows of its embedding table, before those that are added for textual inversion; 0: none are
    penultimate  whether the U-Net attends to the last but one hidden state, before the final norm, as SDXL's
                 does, instead of the last one after it
    """

    module: str
    tokenizer: str
    window: int
    hidden_size: int
    layers: int = 0
    pooled_size: int = 0
    penultimate: bool = False
    vocabulary: int = 0


@dataclass(frozen=True)
class PictureNoise:
    """How an upscaler's small picture is made noisy, as a scheduler's config has it."""

    beta_schedule: str
    beta_start: float
    beta_end: float
    num_train_timesteps: int


@dataclass(frozen=True)
class ModelSpec:
    """What the pipeline needs to know of a latent diffusion model besides its modules.

    ``latent = (mean - shift_factor) * scaling_factor``; a latent pixel covers ``vae_scale_factor`` picture
    pixels in each direction. ``default_height`` and ``default_width`` are in picture pixels, and
    ``size_multiple`` is what a picture's sides must be multiples of: the VAE's factor times the U-Net's, or
    the VAE's alone where the U-Net was built for sides of any length. Such an engine has a ``shortest_side``,
    in picture pixels; for others it is 0, and the shortest is twice the multiple.
    ``max_tokens`` is the text encoder's window including its start and end tokens, ``hidden_size`` the
    width of its output. The noise schedule is not here: it stays in the checkpoint's scheduler config.
    A U-Net such as SDXL's takes, beside the prompt, an embedding of the whole prompt, ``pooled_size`` wide,
    and ``time_ids`` numbers: original size, crop and target size of the picture. Others have 0 of both.
    ``guidance_embedding`` is the width of the guidance scale's embedding that latent consistency models take,
    ``condition_channels`` how many channels the U-Net takes beside the latents, such as inpainting's mask,
    ``num_classes`` how many class labels it knows; 0 each for models without. ``text_encoders`` are in the
    order in which their hidden states are put side by side; an engine that names none has one, which
    ``max_tokens`` and ``hidden_size`` describe, or with 0 of both takes no prompt.
    A model on pixels has no VAE: its latents are pictures, with a ``vae_scale_factor`` of 1. ``latents_mean``
    and ``latents_std``, a number per channel, stand for mean and deviation where a VAE has them: then
    ``latent = (mean - latents_mean) * scaling_factor / latents_std``. ``latent_codes`` is the size of a
    VQ-VAE's codebook, 0 for others; ``latent_variance`` says whether the encoder gives a variance.
    ``control`` is what an engine was built with that steers the U-Net by pictures. ``deep_features`` is the
    channels of the features that DeepCache keeps of ``deep_cache_branch``, and ``token_merging`` the
    percentage of tokens that are merged before the finest self-attentions; 0 each for an engine without.
    ``picture_noise`` is that of an upscaler's picture.
    ``zeros_for_empty_prompt`` says whether no negative prompt is zeros in the place of what the text encoders
    give for no text.
    """

    family: str
    latent_channels: int
    vae_scale_factor: int
    scaling_factor: float
    shift_factor: float
    default_height: int
    default_width: int
    default_batch: int
    size_multiple: int
    max_tokens: int
    hidden_size: int
    pooled_size: int = field(default=0, metadata=OPTIONAL)
    time_ids: int = field(default=0, metadata=OPTIONAL)
    guidance_embedding: int = field(default=0, metadata=OPTIONAL)
    condition_channels: int = field(default=0, metadata=OPTIONAL)
    num_classes: int = field(default=0, metadata=OPTIONAL)
    deep_features: int = field(default=0, metadata=OPTIONAL)
    deep_cache_branch: int = field(default=0, metadata=OPTIONAL)
    token_merging: int = field(default=0, metadata=OPTIONAL)
    picture_channels: int = field(default=3, metadata=OPTIONAL)
    text_encoders: tuple[TextEncoderSpec, ...] = field(default=(), metadata=OPTIONAL)
    zeros_for_empty_prompt: bool = field(default=False, metadata=OPTIONAL)
    latents_mean: tuple[float, ...] = field(default=(), metadata=OPTIONAL)
    latents_std: tuple[float, ...] = field(default=(), metadata=OPTIONAL)
    latent_codes: int = field(default=0, metadata=OPTIONAL)
    latent_variance: bool = field(default=True, metadata=OPTIONAL)
    picture_noise: PictureNoise | None = field(default=None, metadata=OPTIONAL)
    control: ControlSpec = field(default=ControlSpec(), metadata=OPTIONAL)
    shortest_side: int = field(default=0, metadata=OPTIONAL)

    @property
    def least_side(self) -> int:
        """The shortest side that a picture may have, in pixels."""
        return self.shortest_side or 2 * self.size_multiple

    @property
    def takes_prompt(self) -> bool:
        """Whether pictures are made of prompts."""
        return self.hidden_size > 0

    @property
    def on_pixels(self) -> bool:
        """Whether the U-Net works on pictures themselves, without a VAE."""
        return self.vae_scale_factor == 1
