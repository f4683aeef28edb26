"""The IP-Adapter in a call: what it asks of it, and tokens for the U-Net to attend to (Ye et al., 2023)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastdiff.config import ModelSpec
from fastdiff.control.pictures import clip_pixels
from fastdiff.control.spec import IpAdapterSpec
from fastdiff.control.values import numbers, without
from fastdiff.errors import InputError
from fastdiff.pictures import Picture, read_picture

if TYPE_CHECKING:
    from fastdiff.request import Request
    from fastdiff.targets.session import Session

__all__ = ["IpAdapterRequest", "check_ip_adapter", "image_tokens"]

Array = NDArray[np.float32]


@dataclass(frozen=True)
class IpAdapterRequest:
    """What a call asks of the engine's IP-Adapter, for all of its prompts.

    pictures  that the result shall be like, or none where ``embeds`` are given
    scale     of the attention to them
    embeds    the image encoder's features of the pictures, [pictures, …], None: of ``pictures``
    negative  those of the half without the prompt, None: of a picture that is nothing
    """

    pictures: tuple[Picture, ...]
    scale: float
    embeds: Array | None = None
    negative: Array | None = None

    def settings(self) -> dict[str, Any]:
        """Keyword arguments of the pipeline that repeat it, where all pictures are files."""
        return {"ip_image": [picture.file for picture in self.pictures], "ip_scale": self.scale}


def check_ip_adapter(
    model: ModelSpec, request: Request, *, image: object, scale: object, embeds: object
) -> IpAdapterRequest | None:
    """What a call asks of the IP-Adapter, None for nothing. Raises InputError."""
    if image is None and embeds is None:
        without("IP-Adapter", "ip_image", {"ip_scale": scale})
        return None
    adapter = model.control.ip_adapter
    name = "ip_image" if embeds is None else "ip_embeds"
    if adapter is None:
        raise InputError(
            f"{name}: this engine has no IP-Adapter; build it with --ip-adapter FILE, or leave it out"
        )
    if image is not None and embeds is not None:
        raise InputError("ip_image and ip_embeds: give one of the two")
    (weight,) = numbers("ip_scale", scale, 1, 1.0)
    if embeds is not None:
        positive, negative = _embeds(adapter, embeds)
        if negative is None and request.guided and len(adapter.features) > 1 and not adapter.image_size:
            raise InputError(
                "ip_embeds without those of the half without the prompt, and no image encoder to make them:"
                " give both in one array, [2, pictures, …], the negative ones first"
            )
        return IpAdapterRequest((), weight, positive, negative)
    if not adapter.image_size:
        raise InputError(
            "ip_image: this engine has no image encoder; build it with --image-encoder FOLDER, or give"
            " ip_embeds"
        )
    given: Any = image if isinstance(image, (list, tuple)) else (image,)
    if not given:
        raise InputError("ip_image is an empty list: give at least one picture")
    return IpAdapterRequest(tuple(read_picture(each, "ip_image") for each in given), weight)


def _embeds(adapter: IpAdapterSpec, value: object) -> tuple[Array, Array | None]:
    """Features with and without the prompt's half, each [pictures, …]. Raises InputError."""
    array = np.asarray(value)
    shape, axes = array.shape, len(adapter.features)
    both = array.ndim == axes + 2 and shape[0] == 2
    if array.dtype.kind != "f" or not (array.ndim == axes + 1 or both) or shape[-axes:] != adapter.features:
        wanted = ", ".join(map(str, adapter.features))
        raise InputError(
            f"ip_embeds are {array.dtype} {list(shape)}: they must be float32 [pictures, {wanted}], or"
            f" [2, pictures, {wanted}] with the negative ones first"
        )
    if not array.size or not np.isfinite(array).all():
        raise InputError("ip_embeds are empty, or hold NaN or infinity: give finite numbers")
    array = np.ascontiguousarray(array, np.float32)
    return (array[1], array[0]) if both else (array, None)


def image_tokens(
    adapter: IpAdapterSpec, modules: Mapping[str, Session], asked: IpAdapterRequest, guided: bool
) -> tuple[Array, Array]:
    """What the U-Net attends to with the prompt and without it, each [1, pictures · tokens, width].

    Without the prompt that is what the adapter makes of zeros: of an embedding that is all zero, or of the
    hidden states of a picture that is. It is not computed where the call is not ``guided``.
    """

    def features(pixel_values: Array) -> Array:
        found: Array = modules["image_encoder"](pixel_values=pixel_values)["image_features"]
        return found

    def tokens(made: Array) -> Array:
        rows = [modules["ip_adapter"](image_features=row[None])["image_embeds"] for row in made]
        return np.concatenate(rows, axis=1)

    side = adapter.image_size
    positive = asked.embeds
    if positive is None:
        positive = np.concatenate([features(clip_pixels(picture.image, side)) for picture in asked.pictures])
    conditional = tokens(positive)
    if not guided:
        return conditional, np.zeros_like(conditional)
    negative = asked.negative
    if negative is None:
        nothing = np.zeros((1, *adapter.features), np.float32)
        if len(adapter.features) > 1:
            nothing = features(np.zeros((1, 3, side, side), np.float32))
        negative = np.repeat(nothing, len(positive), axis=0)
    return conditional, tokens(negative)
