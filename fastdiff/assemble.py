"""The denoiser of a call: the U-Net with the prompt's branches, control, reuse of features and previews."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastdiff.conditioning import call_conditions
from fastdiff.control.control import add_control_inputs, control_predict
from fastdiff.control.request import ControlRequest
from fastdiff.denoise import Denoiser, Evaluation, Predict, SplitDenoiser, evaluated
from fastdiff.errors import InputError
from fastdiff.feature_reuse import SHALLOW, FeatureReuse, check_deep_cache
from fastdiff.preview import LatentColours, Previewer, check_preview, check_tiny, decode_tiny
from fastdiff.samplers import AdaptiveRun, Guidance, StepTable
from fastdiff.warn import warn

if TYPE_CHECKING:
    from fastdiff.pipeline import Pipeline
    from fastdiff.request import Request
    from fastdiff.tasks.plan import Plan
    from fastdiff.watch import Watch

__all__ = ["check_call", "make_denoiser"]

Array = NDArray[np.float32]


def check_call(pipe: Pipeline, request: Request, plan: Plan, watch: Watch, control: ControlRequest) -> None:
    """Raises InputError for options that this engine, its devices or the call's sampler cannot have.

    Warns (FastdiffWarning) of those without effect.
    """
    if watch.callback is not None and not callable(watch.callback):
        raise InputError(f"callback is of type {type(watch.callback).__name__}: it must be a function")
    split = pipe.splits_guidance
    adaptive = plan.table.sampler if isinstance(plan.table, AdaptiveRun) else None
    model = pipe.engine.manifest.model
    if model.condition_channels and "condition" not in plan.conditions:
        if model.condition_channels == model.latent_channels + 1:
            raise InputError("this model paints parts of a picture: use inpaint with a picture and a mask")
        raise InputError("this model enlarges pictures: use upscale with a picture")
    if control.changes and split:
        raise InputError(
            "control_image, or adapter_end below 1, with a device for the other half of guidance: the"
            " halves need each step's control together; leave the second device out"
        )
    if control.counts and adaptive is not None:
        raise InputError(
            f"control_start, control_end or adapter_end with sampler {adaptive!r}, which chooses its"
            " own steps: leave them out, or use another sampler"
        )
    for option, network, scale in control.scales():
        if scale == 0:
            warn(f"{option} is 0: the {network} has no effect; give another scale, or leave its picture out")
    if not isinstance(plan.table, AdaptiveRun):
        _warn_of_idle(request, plan.table, control)
    if request.deep_cache is not None:
        check_deep_cache(pipe.engine, adaptive, split)
        if control.changes:
            raise InputError(
                "deep_cache with a control_image, or with adapter_end below 1: what changes from step to"
                " step reaches the features that are kept; leave one of them out"
            )
    if watch.preview is not None:
        check_preview(watch.preview, watch.preview_every, pipe.schedule, adaptive, split)
    if request.vae is not None:
        check_tiny(pipe.modules)
        if pipe.tile not in ("auto", "off"):
            warn(f"tile {pipe.tile} has no effect on the tiny autoencoder, which decodes whole pictures")


def make_denoiser(
    pipe: Pipeline, request: Request, plan: Plan, watch: Watch, control: ControlRequest
) -> Denoiser | SplitDenoiser:
    """The U-Net with the conditions of the call. Warns of what has no effect without guidance."""
    model, unet = pipe.engine.manifest.model, pipe.modules["unet"]
    own = {**call_conditions(model, request), **plan.conditions}
    branches = [{**branch, **own} for branch in pipe.prompts.branches(request)]
    add_control_inputs(model, pipe.modules, request, control, branches)
    predict: Predict | None = control_predict(model, pipe.modules, request, control, evaluated(unet))
    if request.deep_cache is not None and not isinstance(plan.table, AdaptiveRun):
        predict = FeatureReuse(unet, pipe.modules[SHALLOW], request.deep_cache.full(plan.table.evaluations))
    if watch.preview is not None:
        predict = Previewer(
            watch.preview,
            watch.preview_every,
            _whole(pipe) if predict is None else predict,
            _decode_preview(pipe),
            pipe.schedule,
            request.scale,
            request.pictures,
        )
    if len(branches) == 1:
        _warn_without_guidance(request, pipe.splits_guidance)
        return Denoiser(unet, branches[0], None, predict=predict)
    if pipe.other_modules is not None:
        return SplitDenoiser(unet, pipe.other_modules["unet"], *branches)
    return Denoiser(unet, *branches, predict=predict)


def _whole(pipe: Pipeline) -> Predict:
    """The U-Net alone, as a Predict."""

    def predict(evaluation: Evaluation, inputs: dict[str, NDArray[Any]]) -> Array:
        output: Array = pipe.modules["unet"](**inputs)["sample"]
        return output

    return predict


def _decode_preview(pipe: Pipeline) -> Callable[[Array], Array]:
    """The tiny autoencoder, or colours of latents, which are worked out when they are first wanted."""
    if "preview_decoder" in pipe.modules:
        return lambda latents: decode_tiny(pipe.modules, latents)
    if pipe.latent_colours is None:
        decoder = pipe.modules["vae_decoder"]
        pipe.latent_colours = LatentColours(pipe.vae, pipe.engine.manifest.model, decoder)
    return pipe.latent_colours


def _warn_of_idle(request: Request, table: StepTable, control: ControlRequest) -> None:
    """Of intervals in which no step lies."""
    steps = table.evaluations
    for options in control.idle(request, steps):
        warn(f"with {options} none of {steps} steps is left: the network has no effect; widen the interval")
    interval = request.guidance.interval if isinstance(request.guidance, Guidance) else None
    if interval is not None and not any(interval.holds(table)):
        warn("the guidance interval holds no step: there is no guidance; widen it, or use a guidance of 1")


def _warn_without_guidance(request: Request, split: bool) -> None:
    for given, what in (
        (any(request.negatives), "the negative prompt"),
        (any(request.text.negatives_2 or ()), "negative_2"),
        (bool(request.sizes.negative), ", ".join(request.sizes.negative)),
        (split, "the device for the other half of guidance"),
    ):
        if given:
            way = "the model is told the scale" if request.embedded else "use more than 1"
            warn(f"{what} has no effect with guidance {request.scale:g}: {way}")
