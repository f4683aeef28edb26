"""Compare an engine's pictures with those of ``diffusers`` for the same checkpoint, prompt and seed.

    python export/compare.py ENGINE CHECKPOINT [--prompt TEXT] [--steps 20] [--seed 0] [--size H W]

Prints a table: per sampler and guidance the PSNR of the 8-bit pictures in dB, and milliseconds per step of
each. Exit status 1 when a picture is under 45 dB.
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

import numpy as np

import fastdiff
from fastdiff.build.checkpoint import load_checkpoint
from fastdiff.build.weights import quiet
from fastdiff.errors import FastdiffError

SCHEDULERS = {
    "ddim": "DDIMScheduler",
    "dpmpp_2m": "DPMSolverMultistepScheduler",
    "euler": "EulerDiscreteScheduler",
    "pndm": "PNDMScheduler",
}
WANTED_DB = 45.0


def psnr(ours: Any, theirs: Any) -> float:
    """Peak signal-to-noise ratio of two 8-bit pictures in dB; infinite when they are equal."""
    error = float(np.mean((np.asarray(ours, np.float64) - np.asarray(theirs, np.float64)) ** 2))
    return float("inf") if error == 0 else 10 * float(np.log10(255**2 / error))


def compare(options: argparse.Namespace) -> bool:
    """Print the table; whether every picture is close enough."""
    import diffusers
    import torch

    pipe = fastdiff.load(options.engine)
    folder = load_checkpoint(options.checkpoint).path
    with quiet():
        reference: Any = diffusers.StableDiffusionPipeline.from_pretrained(
            folder, torch_dtype=torch.float32, safety_checker=None, local_files_only=True
        )
    reference.set_progress_bar_config(disable=True)
    config = reference.scheduler.config
    height, width = options.size or (None, None)
    common = {"height": height, "width": width}
    worst = float("inf")
    print("sampler    guidance   PSNR dB   fastdiff ms/step   diffusers ms/step")
    for sampler, scheduler in SCHEDULERS.items():
        for guidance in options.guidance:
            start = time.perf_counter()
            ours = pipe(
                options.prompt,
                steps=options.steps,
                sampler=sampler,
                guidance=guidance,
                seed=options.seed,
                **common,
            ).images[0]
            middle = time.perf_counter()
            reference.scheduler = getattr(diffusers, scheduler).from_config(config)
            theirs = reference(
                options.prompt,
                num_inference_steps=options.steps,
                guidance_scale=guidance,
                generator=torch.Generator().manual_seed(options.seed),
                **common,
            ).images[0]
            seconds = (middle - start, time.perf_counter() - middle)
            decibels = psnr(ours, theirs)
            worst = min(worst, decibels)
            each = [1000 * value / options.steps for value in seconds]
            print(f"{sampler:9} {guidance:9.1f} {decibels:9.1f} {each[0]:18.1f} {each[1]:19.1f}", flush=True)
    return worst >= WANTED_DB


def main(arguments: list[str] | None = None) -> int:
    """Run with the given command-line arguments; the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("engine")
    parser.add_argument("checkpoint")
    parser.add_argument("--prompt", default="a red circle left of a blue square")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", type=int, nargs=2, metavar=("H", "W"))
    parser.add_argument("--guidance", type=float, nargs="+", default=[1.0, 7.5])
    options = parser.parse_args(arguments)
    try:
        return 0 if compare(options) else 1
    except FastdiffError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
