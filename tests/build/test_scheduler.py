"""What diffusers' pipelines correct in a checkpoint's scheduler config, against the pipelines themselves."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import pytest

from fastdiff.build.checkpoint import load_checkpoint
from fastdiff.build.families.scheduler import corrected_scheduler
from tests.checkpoints import SCHEDULER, copy_checkpoint, read_json, write_json

BETAS = {key: SCHEDULER[key] for key in ("beta_end", "beta_schedule", "beta_start", "num_train_timesteps")}
KEYS = ("clip_sample", "steps_offset", "skip_prk_steps")
PIPELINES = (
    *("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline"),
    *("StableDiffusionXLPipeline", "LatentConsistencyModelPipeline", "StableDiffusionUpscalePipeline"),
)
SCHEDULERS = (
    *("DDIM", "DDIMParallel", "DDPM", "DDPMParallel", "DEISMultistep", "DPMSolverMultistep"),
    *("DPMSolverSinglestep", "EDMEuler", "EulerAncestralDiscrete", "EulerDiscrete", "HeunDiscrete", "IPNDM"),
    *("KDPM2AncestralDiscrete", "KDPM2Discrete", "LCM", "LMSDiscrete", "PNDM", "SASolver", "TCD"),
    "UniPCMultistep",
)
SAID: tuple[dict[str, Any], ...] = (
    {},
    {"clip_sample": True, "steps_offset": 0, "skip_prk_steps": False},
    {"clip_sample": False, "steps_offset": 1, "skip_prk_steps": True},
)


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_corrections_are_those_of_diffusers(pipeline: str) -> None:
    """Whatever the class of the scheduler, whether the config says something or leaves it to the class."""
    import inspect

    import diffusers

    made = getattr(diffusers, pipeline)
    known = inspect.signature(made.__init__).parameters
    parts = {name: None for name in known if name not in ("self", "scheduler") and "requires" not in name}
    given = {name: value for name, value in parts.items() if known[name].default is inspect.Parameter.empty}
    for scheduler in SCHEDULERS:
        kind = getattr(diffusers, f"{scheduler}Scheduler")
        takes = inspect.signature(kind.__init__).parameters
        for said in SAID:
            config = {**BETAS, **said, "_class_name": kind.__name__}
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                logging.disable(logging.CRITICAL)
                wanted = made(**given, scheduler=kind.from_config(config)).scheduler.config
                found = kind.from_config(corrected_scheduler(pipeline, config)).config
                logging.disable(logging.NOTSET)
            for key in KEYS:
                if key in takes:
                    assert found[key] == wanted[key], (scheduler, said, key)


def test_a_checkpoint_is_built_with_them(tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = copy_checkpoint(tiny_checkpoint, tmp_path / "old")
    file = folder / "scheduler" / "scheduler_config.json"
    write_json(file, {**BETAS, "_class_name": "DDIMScheduler", "set_alpha_to_one": False})
    assert load_checkpoint(folder).scheduler == {
        **read_json(file),
        "clip_sample": False,
        "steps_offset": 1,
    }
    write_json(file, SCHEDULER)
    assert load_checkpoint(folder).scheduler == SCHEDULER
