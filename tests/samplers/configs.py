"""The scheduler configurations that the sampler tests go through."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator

import numpy as np

from fastdiff.errors import InputError
from fastdiff.samplers import SAMPLERS, NoiseSchedule, StepTable, make_table

BETAS = {
    "linear": {"beta_schedule": "linear"},
    "scaled_linear": {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    "cosine": {"beta_schedule": "squaredcos_cap_v2"},
    "trained": {"trained_betas": (np.linspace(0.0002, 0.03, 1000) ** 1.1).tolist()},
}
PREDICTIONS = ("epsilon", "v_prediction", "sample")
SPACINGS = ("leading", "trailing", "linspace")
STEPS = (1, 2, 3, 5, 20, 25, 50)

STABLE_DIFFUSION = {
    "_class_name": "PNDMScheduler",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
}

# What each sampler reads besides betas, prediction type, spacing and offset.
OPTIONS = {
    "ddim": {
        "set_alpha_to_one": (True, False),
        "clip_sample": (False, True),
        "clip_sample_range": (0.7,),
        "eta": (0.0, 0.4, 1.0),
    },
    "dpmpp_2m": {
        "use_karras_sigmas": (False, True),
        "final_sigmas_type": ("zero", "sigma_min"),
        "solver_type": ("midpoint", "heun"),
    },
    "euler": {"use_karras_sigmas": (False, True), "final_sigmas_type": ("zero", "sigma_min")},
    "pndm": {"set_alpha_to_one": (True, False), "skip_prk_steps": (True, False)},
}


def configs(sampler: str, betas: str) -> Iterator[tuple[dict, int, float]]:
    """Config, steps and eta: every combination of options, each with one of the step counts in turn.

    The options for the last step of DPM-Solver++ go round as well; other samplers ignore them.
    """
    predictions = PREDICTIONS[:2] if sampler == "pndm" else PREDICTIONS
    options = OPTIONS[sampler]
    steps = itertools.cycle(STEPS)
    last_step = itertools.cycle(itertools.product((True, False), (False, True)))
    for prediction, spacing, offset in itertools.product(predictions, SPACINGS, (0, 1)):
        base = {"prediction_type": prediction, "timestep_spacing": spacing, "steps_offset": offset}
        for values in itertools.product(*options.values()):
            config = {**BETAS[betas], **base, **dict(zip(options, values, strict=True))}
            config["lower_order_final"], config["euler_at_final"] = next(last_step)
            count = next(steps)
            if config.get("skip_prk_steps") is False:
                count = max(count, 4)
            yield config, count, config.pop("eta", 0.0)


def has_heun_at_end_of_schedule(sampler: str, config: dict) -> bool:
    """The last step of these leads from the lowest training level to itself: h = 0.

    diffusers' Heun form then computes 0/0. The table leaves the sample as it is, which is the limit.
    """
    return (
        sampler == "dpmpp_2m"
        and config["solver_type"] == "heun"
        and config["use_karras_sigmas"]
        and config["final_sigmas_type"] == "sigma_min"
        and not config["euler_at_final"]
    )


def every_table(steps: int) -> dict[str, StepTable]:
    """A table of each sampler, from the first of a few configs that it takes.

    Samplers that choose their own steps have none; tables of more than 300 rows are left out.
    """
    configs = (STABLE_DIFFUSION, {"prediction_type": "flow_prediction"}, {"prediction_type": "score"})
    found: dict[str, StepTable] = {}
    for name, config in itertools.product(SAMPLERS, configs):
        if name not in found:
            with contextlib.suppress(InputError):
                found[name] = make_table(name, NoiseSchedule.from_config(config), steps)
    assert len(found) >= 4
    return {name: table for name, table in found.items() if table.evaluations <= 300}
