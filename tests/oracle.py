"""diffusers as the oracle: the picture and the latents that it gives for a call of ours."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL.Image import Image

from fastdiff.samplers import SAMPLERS

SCHEDULERS = {
    "ddim": "DDIMScheduler",
    "dpmpp_2m": "DPMSolverMultistepScheduler",
    "euler": "EulerDiscreteScheduler",
    "pndm": "PNDMScheduler",
}


def scheduler_of(sampler: str) -> tuple[str, dict[str, Any]]:
    """The class that a sampler stands for, with the options for which it does."""
    if sampler in SCHEDULERS:
        return SCHEDULERS[sampler], {}
    known = SAMPLERS[sampler]
    options = {key: next(iter(values)) for key, values in known.when.items()}
    return known.classes[0], {key: value for key, value in options.items() if value is not None}


class Oracle:
    """``StableDiffusionPipeline`` of a checkpoint in float32 on one thread, called with our names.

    It remembers the results of its calls, for tests that compare several engines with them.
    """

    def __init__(self, checkpoint: Path) -> None:
        import torch
        from diffusers import StableDiffusionPipeline

        torch.set_num_threads(1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # names of arguments change from version to version
            self.pipe = StableDiffusionPipeline.from_pretrained(
                checkpoint, torch_dtype=torch.float32, safety_checker=None, local_files_only=True
            )
        self.pipe.set_progress_bar_config(disable=True)
        self.config = self.pipe.scheduler.config
        self._known: dict[str, tuple[list[Image], np.ndarray]] = {}

    def __call__(self, prompt: str | list[str], **call: Any) -> tuple[list[Image], np.ndarray]:
        """Pictures and final latents; the arguments are those of ``_draw``."""
        key = repr((prompt, sorted(call.items())))
        if key not in self._known:
            self._known[key] = self._draw(prompt, **call)
        return self._known[key]

    def _draw(
        self,
        prompt: str | list[str],
        *,
        negative: str | list[str] = "",
        steps: int = 20,
        sampler: str,
        guidance: float,
        seed: int,
        num: int = 1,
        height: int | None = None,
        width: int | None = None,
        eta: float = 0.0,
    ) -> tuple[list[Image], np.ndarray]:
        import diffusers
        import torch

        last: dict[str, Any] = {}

        def keep(pipe: object, step: int, timestep: object, tensors: dict[str, Any]) -> dict[str, Any]:
            last.update(tensors)
            return {}

        name, options = scheduler_of(sampler)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of NumPy's, about what diffusers does with arrays
            self.pipe.scheduler = getattr(diffusers, name).from_config(self.config, **options)
            images = self.pipe(
                prompt,
                negative_prompt=[negative] * len(prompt) if isinstance(prompt, list) else negative,
                num_inference_steps=steps,
                guidance_scale=guidance,
                generator=torch.Generator().manual_seed(seed),
                num_images_per_prompt=num,
                height=height,
                width=width,
                eta=eta,
                callback_on_step_end=keep,
            ).images
        return images, last["latents"].numpy()


def psnr(ours: Image, theirs: Image) -> float:
    """Peak signal-to-noise ratio in dB of two pictures of 8 bits; infinite when they are equal."""
    difference = np.asarray(ours, np.float64) - np.asarray(theirs, np.float64)
    error = float(np.mean(difference**2))
    return float("inf") if error == 0 else 10 * float(np.log10(255**2 / error))


def pairwise(choices: dict[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Few combinations in which every pair of values of two choices occurs (greedy)."""
    names = list(choices)
    candidates = list(itertools.product(*(range(len(choices[name])) for name in names)))

    def pairs(row: tuple[int, ...]) -> set[tuple[int, int, int, int]]:
        return {(i, j, row[i], row[j]) for i, j in itertools.combinations(range(len(row)), 2)}

    missing = set().union(*(pairs(row) for row in candidates))
    rows = []
    while missing:
        best = max(candidates, key=lambda row: len(pairs(row) & missing))
        missing -= pairs(best)
        rows.append({name: choices[name][value] for name, value in zip(names, best, strict=True)})
    return rows
