"""T2I-Adapters in a call: what it asks of them, and the features that they add (Mou et al., 2023)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastdiff.config import ModelSpec
from fastdiff.control.pictures import pixels
from fastdiff.control.spec import numbered
from fastdiff.control.values import numbers, pictures, share, without
from fastdiff.errors import InputError
from fastdiff.pictures import Picture

if TYPE_CHECKING:
    from fastdiff.request import Request
    from fastdiff.targets.session import Session

__all__ = ["T2IAdapterRequest", "adapter_features", "check_t2i_adapter"]

Array = NDArray[np.float32]


@dataclass(frozen=True)
class T2IAdapterRequest:
    """What a call asks of the engine's T2I-Adapters.

    pictures  for each adapter one, or one for each prompt; none for one that the call does not use
    scales    of each adapter's features
    end       share of the steps, from the first, in which they are there
    """

    pictures: tuple[tuple[Picture, ...], ...]
    scales: tuple[float, ...]
    end: float

    def settings(self) -> dict[str, Any]:
        """Keyword arguments of the pipeline that repeat it, where all pictures are files."""
        files = [[picture.file for picture in each] for each in self.pictures]
        return {
            "adapter_image": files[0] if len(files) == 1 else [each or None for each in files],
            "adapter_scale": list(self.scales),
            "adapter_end": self.end,
        }


def check_t2i_adapter(
    model: ModelSpec, request: Request, *, image: object, scale: object, end: object
) -> T2IAdapterRequest | None:
    """What a call asks of T2I-Adapters, None for nothing. Raises InputError."""
    adapters = model.control.t2i_adapters
    if image is None:
        without("T2I-Adapter", "adapter_image", {"adapter_scale": scale, "adapter_end": end})
        return None
    if not adapters:
        raise InputError(
            "adapter_image: this engine has no T2I-Adapter; build it with --t2i-adapter FOLDER, or leave it"
            " out"
        )
    entries: Any = (image,)
    if len(adapters) > 1:
        if not isinstance(image, (list, tuple)) or len(image) != len(adapters):
            found = f"{len(image)} entries" if isinstance(image, (list, tuple)) else "one picture"
            raise InputError(
                f"adapter_image has {found}, the engine {len(adapters)} T2I-Adapters: give a list with one"
                " entry for each, None for those that are not used"
            )
        entries = image
    given = tuple(
        () if entry is None else pictures("adapter_image", entry, len(request.prompts)) for entry in entries
    )
    if not any(given):
        raise InputError("adapter_image has no picture: give one, or leave it out")
    last = share("adapter_end", numbers("adapter_end", end, 1, 1.0)[0])
    return T2IAdapterRequest(given, numbers("adapter_scale", scale, len(adapters), 1.0), last)


def adapter_features(
    model: ModelSpec, modules: Mapping[str, Session], request: Request, asked: T2IAdapterRequest
) -> dict[str, Array]:
    """The U-Net's inputs, a row for each picture of the call: the scaled features of all adapters, added."""
    names = numbered("t2i_adapter", len(asked.pictures))
    found: dict[str, Array] = {}
    for index, (name, given, scale) in enumerate(zip(names, asked.pictures, asked.scales, strict=True)):
        channels = model.control.t2i_adapters[index].image_channels
        made = [
            modules[name](adapter_image=pixels(picture.image, request.width, request.height, channels))
            for picture in given
        ]
        repeats = request.num if len(given) > 1 else request.pictures
        for feature in model.control.feature_names() if made else ():
            rows = np.repeat(np.concatenate([one[feature] for one in made]), repeats, axis=0)
            rows = rows * np.float32(scale)
            found[feature] = found[feature] + rows if feature in found else rows
    return found
