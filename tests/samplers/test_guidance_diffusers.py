"""Guidance against diffusers' guiders, and against the papers' algorithms where diffusers has none."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import guiders
from diffusers.guiders.adaptive_projected_guidance import MomentumBuffer

from fastdiff.samplers import Guidance, NoiseSchedule, StepTable, make_table
from fastdiff.samplers.guidance import APG, CFG, CFGZeroStar, Interval, PerpNeg
from tests.compare import assert_close
from tests.samplers.configs import STABLE_DIFFUSION
from tests.samplers.guided import guided_run, last

SHAPE = (3, 4, 5, 6)
SCHEDULE = NoiseSchedule.from_config(STABLE_DIFFUSION)


def outputs(steps: int, branches: int = 2) -> np.ndarray:
    """Random outputs of a model, [step, branch, …]: the branches are as alike as those of a model."""
    rng = np.random.default_rng(steps)
    common = rng.standard_normal((steps, 1, *SHAPE))
    return common + 0.3 * rng.standard_normal((steps, branches, *SHAPE))


def combined(guidance: Guidance, table: StepTable, given: np.ndarray) -> list[np.ndarray]:
    """The outputs that a loop sees: through `bind`, and the plain guidance of each row."""
    calls = iter(given)

    def denoise(sample: np.ndarray, timestep: float, guided: int) -> tuple[np.ndarray | None, ...]:
        mine = next(calls)
        return (mine[0], None) if not guided else tuple(mine[: guided + 1])

    bound, call_scale, denoise = guidance.bind(table, denoise)
    found = []
    for step in bound.steps:
        scale = call_scale if step.guidance is None else step.guidance
        cond, uncond, *_ = denoise(np.zeros(SHAPE), step.timestep, int(scale != 1))
        found.append(cond if scale == 1 else uncond + scale * (cond - uncond))
    return found


def theirs(guider: Any, given: np.ndarray) -> list[np.ndarray]:
    found = []
    for index, (cond, uncond) in enumerate(torch.from_numpy(given[:, :2])):
        guider.set_state(index, len(given), torch.tensor(0))
        found.append(guider(blocks(guider, cond, uncond)).pred.numpy())
    return found


def blocks(guider: Any, cond: torch.Tensor, uncond: torch.Tensor) -> list[Any]:
    """The outputs as a guider takes them, of which it says how many it needs."""

    class Block:
        def __init__(self, name: str, prediction: torch.Tensor) -> None:
            setattr(self, guider._identifier_key, name)
            self.noise_pred = prediction

    return [Block("pred_cond", cond), Block("pred_uncond", uncond)][: guider.num_conditions]


PLAIN = [
    pytest.param({"guidance_scale": 7.5}, id="plain"),
    pytest.param({"guidance_scale": 0.4}, id="interpolation"),
    pytest.param({"guidance_scale": 5.0, "guidance_rescale": 0.7}, id="rescale"),
    pytest.param({"guidance_scale": 3.0, "use_original_formulation": True}, id="original"),
    pytest.param(
        {"guidance_scale": 3.0, "use_original_formulation": True, "guidance_rescale": 1.0},
        id="original and rescale",
    ),
    pytest.param({"guidance_scale": 1.0, "guidance_rescale": 0.7}, id="off"),
    pytest.param({"guidance_scale": 0.0, "use_original_formulation": True}, id="original and off"),
    pytest.param({"guidance_scale": 5.0, "start": 0.2, "stop": 0.75}, id="interval"),
    pytest.param({"guidance_scale": 5.0, "start": 0.13, "stop": 0.5, "guidance_rescale": 0.5}, id="all"),
]


def ours(options: dict[str, Any], **more: Any) -> Guidance:
    """The guidance with a guider's options."""
    interval = None
    if "start" in options:
        interval = Interval(options["start"], options["stop"], "share")
    return Guidance(
        options["guidance_scale"],
        rescale=options.get("guidance_rescale", 0.0),
        original=options.get("use_original_formulation", False),
        interval=interval,
        **more,
    )


@pytest.mark.parametrize("options", PLAIN)
def test_classifier_free(options: dict[str, Any]) -> None:
    for steps in (5, 10, 25, 50):
        given = outputs(steps)
        found = combined(ours(options), make_table("ddim", SCHEDULE, steps), given)
        wanted = theirs(guiders.ClassifierFreeGuidance(**options), given)
        assert_close(np.array(found), np.array(wanted), rel_l2=1e-12)


@pytest.mark.parametrize("zero_steps", [0, 1, 3])
@pytest.mark.parametrize("options", PLAIN)
def test_zero_star(options: dict[str, Any], zero_steps: int) -> None:
    given = outputs(25)
    guider = guiders.ClassifierFreeZeroStarGuidance(zero_init_steps=zero_steps, **options)
    found = combined(
        ours(options, method=CFGZeroStar(zero_steps)),
        make_table("ddim", SCHEDULE, 25),
        # they evaluate the model also in the steps whose output is 0
        given[zero_steps:],
    )
    wanted = theirs(guider, given)
    if options.get("guidance_rescale"):
        # They rescale the zeros by 0/0.
        assert np.isnan(wanted[:zero_steps]).all()
        wanted = [np.zeros(SHAPE)] * zero_steps + wanted[zero_steps:]
    # They sum in float32, and add 1e-8 to the norm.
    assert_close(np.array(found), np.array(wanted), rel_l2=1e-6)


@pytest.mark.parametrize("options", PLAIN)
@pytest.mark.parametrize(
    ("eta", "momentum", "threshold"),
    [(1.0, None, 0.0), (0.0, None, 0.0), (0.3, -0.75, 0.0), (0.0, 0.5, 2.5), (0.5, -0.5, 1.0)],
)
def test_adaptive_projected(
    options: dict[str, Any], eta: float, momentum: float | None, threshold: float
) -> None:
    given = outputs(12)
    guider = guiders.AdaptiveProjectedGuidance(
        eta=eta,
        adaptive_projected_guidance_momentum=momentum,
        adaptive_projected_guidance_rescale=threshold,
        **options,
    )
    if momentum is not None:
        guider.momentum_buffer = MomentumBuffer(momentum)  # made by prepare_inputs in a pipeline
    base = "cond" if options.get("use_original_formulation") else "uncond"
    method = APG(eta, momentum or 0.0, threshold or math.inf, "output", base)
    found = combined(ours(options, method=method), make_table("ddim", SCHEDULE, 12), given)
    assert_close(np.array(found), np.array(theirs(guider, given)), rel_l2=1e-12)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("sampler", ["ddim", "euler"])
def test_apg_as_the_paper_has_it(sampler: str, prediction: str) -> None:
    """Algorithm 1 on the predicted clean sample, whatever the model predicts, written in x₀ alone."""
    schedule = NoiseSchedule.from_config({**STABLE_DIFFUSION, "prediction_type": prediction})
    table = make_table(sampler, schedule, 8)
    given = outputs(8)
    eta, beta, r, w = 0.2, -0.5, 4.0, 6.0
    calls = iter(given)

    def denoise(sample: np.ndarray, timestep: float, guided: int) -> tuple[np.ndarray, ...]:
        return tuple(next(calls))

    start = np.random.default_rng(0).standard_normal(SHAPE)
    guidance = Guidance(w, APG(eta, beta, r))
    found = last(guided_run(table, guidance, denoise, start))

    x = start * table.init_noise_sigma
    running = np.zeros(SHAPE)
    axes = (1, 2, 3)
    for step, (cond, uncond) in zip(table.steps, given, strict=True):
        x0 = step.point.x0
        d_cond = x0.sample * x + x0.output * cond
        d_uncond = x0.sample * x + x0.output * uncond
        running = d_cond - d_uncond + beta * running
        norm = np.sqrt((running**2).sum(axes, keepdims=True))
        diff = running * np.minimum(1, r / norm)
        unit = d_cond / np.sqrt((d_cond**2).sum(axes, keepdims=True))
        parallel = (diff * unit).sum(axes, keepdims=True) * unit
        d = d_cond + (w - 1) * (diff - parallel + eta * parallel)
        # from x₀ back to the output, to the state of the next step
        output = (d - x0.sample * x) / x0.output
        x = step.update.sample * x + step.update.output * output
    assert_close(found, x, rel_l2=1e-10)


def test_perp_neg_as_the_paper_has_it() -> None:
    given = outputs(6, branches=3)
    found = combined(Guidance(4.0, PerpNeg(1.5)), make_table("ddim", SCHEDULE, 6), given)
    for step, (cond, uncond, negative) in enumerate(given):
        for image in range(SHAPE[0]):
            e_pos = (cond - uncond)[image].ravel()
            e_neg = (negative - uncond)[image].ravel()
            e_perp = e_neg - (e_pos @ e_neg) / (e_pos @ e_pos) * e_pos
            assert abs(e_perp @ e_pos) < 1e-9
            wanted = uncond[image].ravel() + 4.0 * (e_pos - 1.5 * e_perp)
            assert_close(found[step][image].ravel(), wanted, rel_l2=1e-12)


def test_negative_prompt_in_place_of_the_empty_one() -> None:
    """What the denoiser gives as uncond is what guidance leads away from; there is no other difference."""
    given = outputs(5, branches=3)
    swapped = given[:, [0, 2, 1]]
    table = make_table("ddim", SCHEDULE, 5)
    found = combined(Guidance(3.0, CFG(), rescale=0.3), table, swapped)
    wanted = theirs(guiders.ClassifierFreeGuidance(guidance_scale=3.0, guidance_rescale=0.3), swapped)
    assert_close(np.array(found), np.array(wanted), rel_l2=1e-12)
    assert not np.allclose(found, combined(Guidance(3.0, CFG(), rescale=0.3), table, given))
