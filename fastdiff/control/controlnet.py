"""ControlNets in a call: what it asks of them, and their residuals in each step (Zhang et al., 2023)."""

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
    from fastdiff.denoise import Evaluation
    from fastdiff.request import Request
    from fastdiff.targets.session import Session

__all__ = ["ControlNetRequest", "ControlNets", "check_controlnet", "within"]

Array = NDArray[np.float32]


@dataclass(frozen=True)
class ControlNetRequest:
    """What a call asks of the engine's ControlNets, one entry for each.

    pictures  one, or one for each prompt; none for a ControlNet that the call does not use
    scales    that the residuals are multiplied by
    starts    shares of the steps between which it is there: a step counts where all of it lies between
    ends
    guess     guess mode: the half without the prompt has no residuals, those of the other grow from a tenth
              at the picture's finest level to all in the middle
    """

    pictures: tuple[tuple[Picture, ...], ...]
    scales: tuple[float, ...]
    starts: tuple[float, ...]
    ends: tuple[float, ...]
    guess: bool

    @property
    def whole(self) -> bool:
        """Whether all of it is there in every step."""
        return all(
            not used or (start == 0 and end == 1)
            for used, start, end in zip(self.pictures, self.starts, self.ends, strict=True)
        )

    def settings(self) -> dict[str, Any]:
        """Keyword arguments of the pipeline that repeat it, where all pictures are files."""
        files = [[picture.file for picture in each] for each in self.pictures]
        return {
            "control_image": files[0] if len(files) == 1 else [each or None for each in files],
            "control_scale": list(self.scales),
            "control_start": list(self.starts),
            "control_end": list(self.ends),
            "guess_mode": self.guess,
        }


def check_controlnet(
    model: ModelSpec,
    request: Request,
    *,
    image: object,
    scale: object,
    start: object,
    end: object,
    guess: object,
) -> ControlNetRequest | None:
    """What a call asks of ControlNets, None for nothing. Raises InputError."""
    nets = model.control.controlnets
    if image is None:
        settings = {"control_scale": scale, "control_start": start, "control_end": end, "guess_mode": guess}
        without("ControlNet", "control_image", settings)
        return None
    if not nets:
        raise InputError(
            "control_image: this engine has no ControlNet; build it with --controlnet FOLDER, or leave it out"
        )
    if not isinstance(guess, bool):
        raise InputError(f"guess_mode is {guess!r}: it must be True or False")
    entries: Any = (image,)
    if len(nets) > 1:
        if not isinstance(image, (list, tuple)) or len(image) != len(nets):
            found = f"{len(image)} entries" if isinstance(image, (list, tuple)) else "one picture"
            raise InputError(
                f"control_image has {found}, the engine {len(nets)} ControlNets: give a list with one entry"
                " for each, None for those that are not used"
            )
        entries = image
    given = tuple(
        () if entry is None else pictures("control_image", entry, len(request.prompts)) for entry in entries
    )
    if not any(given):
        raise InputError("control_image has no picture: give one, or leave it out")
    first = next(net for net, used in zip(nets, given, strict=True) if used)
    starts = numbers("control_start", start, len(nets), 0.0)
    ends = numbers("control_end", end, len(nets), 1.0)
    for begin, last in zip(starts, ends, strict=True):
        if share("control_start", begin) >= share("control_end", last):
            raise InputError(f"control_start is {begin:g} and control_end {last:g}: start before the end")
    scales = numbers("control_scale", scale, len(nets), 1.0)
    return ControlNetRequest(given, scales, starts, ends, guess or first.pooled)


def within(index: int, evaluations: int, start: float, end: float) -> bool:
    """Whether all of evaluation ``index`` lies between two shares of the ``evaluations``."""
    return index / evaluations >= start and (index + 1) / evaluations <= end


class ControlNets:
    """The ControlNets of one call. What they make of their pictures is computed here, once."""

    def __init__(
        self, model: ModelSpec, modules: Mapping[str, Session], request: Request, asked: ControlNetRequest
    ) -> None:
        self._asked = asked
        self._rows = request.pictures
        self._names = model.control.residual_names()
        self._pooled = [net.pooled for net in model.control.controlnets]
        self._nets: list[tuple[int, Session, Array]] = []
        names = numbered("controlnet", len(model.control.controlnets))
        for index, (name, given, scale) in enumerate(zip(names, asked.pictures, asked.scales, strict=True)):
            if not given or scale == 0:
                continue
            channels = model.control.controlnets[index].image_channels
            made = [
                modules[f"{name}_embedding"](
                    control_image=pixels(picture.image, request.width, request.height, channels)
                )["control_embedding"]
                for picture in given
            ]
            repeats = request.num if len(given) > 1 else request.pictures
            embedding = np.repeat(np.concatenate(made), repeats, axis=0)
            self._nets.append((index, modules[name], embedding))

    def residuals(self, evaluation: Evaluation, inputs: Mapping[str, NDArray[Any]]) -> dict[str, Array]:
        """The U-Net's inputs for an evaluation of it; none where no ControlNet is there in it."""
        asked, total = self._asked, evaluation.total or 1
        found: dict[str, Array] = {}
        for index, session, embedding in self._nets:
            span = asked.starts[index], asked.ends[index]
            if not asked.whole and not within(evaluation.index, total, *span):
                continue
            for name, residual in self._of(index, session, embedding, inputs).items():
                found[name] = found[name] + residual if name in found else residual
        return found

    def _of(
        self, index: int, session: Session, embedding: Array, inputs: Mapping[str, NDArray[Any]]
    ) -> dict[str, Array]:
        """The scaled residuals of one ControlNet."""
        branches = len(inputs["sample"]) // self._rows
        wanted = {tensor.name for tensor in session.inputs}
        arrays = {name: array for name, array in inputs.items() if name in wanted}
        # With several, the branch with the prompt is the second: see Denoiser.
        own = slice(None) if branches == 1 else slice(self._rows, 2 * self._rows)
        alone = self._asked.guess and branches > 1
        if alone:
            arrays = {name: array[own] for name, array in arrays.items()}
        copies = 1 if alone else branches
        arrays["control_embedding"] = np.concatenate([embedding] * copies) if copies > 1 else embedding
        outputs = session(**arrays)
        scales = self._scales(index)
        found = {}
        for name, scale in zip(self._names, scales, strict=True):
            residual = outputs[name] if scale == 1 else outputs[name] * scale
            if self._pooled[index]:
                mean = residual.mean((2, 3), keepdims=True)
                residual = np.ascontiguousarray(np.broadcast_to(mean, residual.shape))
            if alone:
                whole = np.zeros((len(inputs["sample"]), *residual.shape[1:]), np.float32)
                whole[own] = residual
                residual = whole
            found[name] = residual
        return found

    def _scales(self, index: int) -> list[np.float32]:
        """The factor of each residual."""
        scale, count = self._asked.scales[index], len(self._names)
        if not self._asked.guess or self._pooled[index]:
            return [np.float32(scale)] * count
        return [np.float32(value * scale) for value in np.logspace(-1, 0, count)]
