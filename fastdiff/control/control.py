"""The inputs of a U-Net that control it, for all steps of a call and for each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastdiff.config import ModelSpec
from fastdiff.control.controlnet import ControlNets
from fastdiff.control.ip_adapter import image_tokens
from fastdiff.control.request import ControlRequest
from fastdiff.control.spec import FeatureSpec
from fastdiff.control.t2i_adapter import adapter_features
from fastdiff.denoise import Evaluation, Predict

if TYPE_CHECKING:
    from fastdiff.prompts.encoder import Branches
    from fastdiff.request import Request
    from fastdiff.targets.session import Session

__all__ = ["add_control_inputs", "control_predict"]

Array = NDArray[np.float32]


def add_control_inputs(
    model: ModelSpec, modules: Mapping[str, Session], request: Request, asked: ControlRequest, to: Branches
) -> None:
    """Add what stays the same over all steps to the inputs of each branch, the one with the prompt first.

    Where a call does not use what the engine has, that is zeros, which change nothing.
    """
    control, rows = model.control, request.pictures
    fixed = _zeros(control.residual_names(), control.residuals, model, request)
    if asked.t2i_adapter is not None:
        fixed |= adapter_features(model, modules, request, asked.t2i_adapter)
    else:
        fixed |= _zeros(control.feature_names(), control.features, model, request)
    for branch in to:
        branch.update(fixed)
    if control.ip_adapter is None:
        return
    scale = 0.0
    empty = np.zeros((1, control.ip_adapter.tokens, model.hidden_size), np.float32)
    conditional, unconditional = empty, empty
    if asked.ip_adapter is not None:
        scale = asked.ip_adapter.scale
        conditional, unconditional = image_tokens(control.ip_adapter, modules, asked.ip_adapter, len(to) > 1)
    for index, branch in enumerate(to):
        branch["image_embeds"] = np.repeat(unconditional if index else conditional, rows, axis=0)
        branch["image_scale"] = np.full(rows, scale, np.float32)


def _zeros(
    names: tuple[str, ...], sizes: tuple[FeatureSpec, ...], model: ModelSpec, request: Request
) -> dict[str, Array]:
    height, width = (side // model.vae_scale_factor for side in (request.height, request.width))
    return {
        name: np.zeros(
            (request.pictures, size.channels, height // size.divisor, width // size.divisor), np.float32
        )
        for name, size in zip(names, sizes, strict=True)
    }


def control_predict(
    model: ModelSpec,
    modules: Mapping[str, Session],
    request: Request,
    asked: ControlRequest,
    predict: Predict,
) -> Predict | None:
    """``predict`` with the inputs that differ from step to step; None where none do."""
    if not asked.changes:
        return None
    nets = None if asked.controlnet is None else ControlNets(model, modules, request, asked.controlnet)
    names = model.control.feature_names()
    steps = None if asked.t2i_adapter is None else int(request.steps * asked.t2i_adapter.end)

    def controlled(evaluation: Evaluation, inputs: dict[str, NDArray[Any]]) -> Array:
        arrays = dict(inputs)
        if nets is not None:
            arrays.update(nets.residuals(evaluation, inputs))
        if steps is not None and evaluation.index >= steps:
            arrays.update({name: np.zeros_like(arrays[name]) for name in names})
        return predict(evaluation, arrays)

    return controlled
