"""What a call of the pipeline returns, and the record of how each picture was made."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastdiff._version import __version__
from fastdiff.errors import OutputError
from fastdiff.prompts.textual_inversion import Inversion
from fastdiff.request import Request

if TYPE_CHECKING:
    from PIL.Image import Image

    from fastdiff.control.request import ControlRequest

__all__ = ["Result", "Timings", "picture_metadata"]


@dataclass(frozen=True)
class Timings:
    """Wall-clock seconds of one call. ``steps`` has one entry per evaluation of the U-Net and its step."""

    text_encoder: float
    steps: tuple[float, ...]
    vae: float
    total: float

    def __add__(self, later: Timings) -> Timings:
        """Those of a picture that two calls made."""
        return Timings(
            self.text_encoder + later.text_encoder,
            self.steps + later.steps,
            self.vae + later.vae,
            self.total + later.total,
        )


@dataclass(frozen=True)
class Result:
    """What a call returns.

    ``images``: the pictures, all of the first prompt first. ``latents``: float32 [pictures, channels,
    height / factor, width / factor], before the VAE's scaling. ``metadata``: one JSON object per picture, as
    ``save`` puts into the PNG; ``pipe(**metadata["settings"]).images[metadata["index"]]`` repeats it. Where
    it has a ``task``, such as "img2img", that method of the pipeline does, with the pictures of ``inputs``,
    named by their SHA-256.
    """

    images: list[Image]
    latents: NDArray[np.float32]
    seed: int
    timings: Timings
    metadata: list[dict[str, Any]]

    def save(self, path: str | os.PathLike[str]) -> list[str]:
        """Write the pictures as PNG with their metadata; returns the names.

        One picture is written to ``path``, several to ``out-1.png``, ``out-2.png`` … for ``out.png``.
        Raises OutputError; every file that exists is complete.
        """
        from fastdiff.image import numbered, write_png

        if not self.images:
            raise OutputError("there are no pictures to write: the call's output was latents")
        paths = numbered(path, len(self.images))
        for name, image, metadata in zip(paths, self.images, self.metadata, strict=True):
            write_png(name, image, metadata)
        return [os.fspath(name) for name in paths]


def picture_metadata(
    request: Request,
    engine_hash: str,
    task: Mapping[str, Any] | None = None,
    loras: Sequence[Mapping[str, Any]] = (),
    control: ControlRequest | None = None,
    inversions: Iterable[Inversion] = (),
) -> list[dict[str, Any]]:
    """One JSON object for each picture of a call; ``settings`` is the call itself.

    ``task`` is that of a `fastdiff.tasks.Plan`, with the ``vae``'s way to decode: its ``settings`` are added
    to those of the request, those that it is ``without`` are left out, the rest stands beside them. ``loras``
    are the records of those that had an effect, ``inversions`` the embeddings that were loaded.
    """
    common: dict[str, Any] = {"fastdiff": __version__, "engine": engine_hash}
    if loras:
        common["loras"] = list(loras)
    if loaded := [{"token": each.token, "vectors_sha256": each.digest} for each in inversions]:
        common["embeddings"] = loaded
    more = dict(task or {})
    settings, without, way = more.pop("settings", {}), more.pop("without", ()), more.pop("vae", None)
    if way is not None and way.tile is not None:
        more["tile"] = way.pixels
    common |= more
    common["settings"] = {
        key: value for key, value in {**request.settings(), **settings}.items() if key not in without
    }
    if control:
        common.update(control.metadata())
        common["settings"].update(control.settings())
    return [
        {
            **common,
            "index": index,
            "prompt": request.prompts[index // request.num],
            "negative": request.negatives[index // request.num],
        }
        for index in range(request.pictures)
    ]
