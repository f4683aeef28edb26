"""A diffusers pipeline of ``scenes`` and its compiled twin: seconds for a picture, by steps.

``python benchmarks/bench_compile.py [--rounds N] [--steps N] [--pictures N] [--cache FOLDER]``

Both run in one process with as many threads as there are cores, in alternating turns, the first of which is
not counted. Each line gives the medians, their ratio, the share of the compiled call outside the U-Net, and
how far the pictures are apart (at least 45 dB, or the benchmark fails).
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from machine import describe

import fastdiff
from fastdiff.build.weights import quiet
from fastdiff.zoo import resolve

PROMPT = "a red circle left of a blue square"
MIN_PSNR = 45.0


def draw(pipe: Any, steps: int, pictures: int) -> tuple[float, Any]:
    """Seconds of a call, and its pictures of 0 to 1."""
    generator = torch.Generator().manual_seed(0)
    begin = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of NumPy's, about what diffusers does with arrays
        images = pipe(
            PROMPT,
            num_inference_steps=steps,
            num_images_per_prompt=pictures,
            generator=generator,
            output_type="np",
        ).images
    return time.perf_counter() - begin, images


def psnr(found: Any, wanted: Any) -> float:
    error = float(np.mean((found - wanted) ** 2))
    return float("inf") if error == 0 else -10 * float(np.log10(error))


def timed_unet(pipe: Any) -> list[float]:
    """A list that the seconds of every call of the pipeline's U-Net are added to."""
    seconds: list[float] = []
    forward = pipe.unet.forward

    def timed(*arguments: Any, **options: Any) -> Any:
        begin = time.perf_counter()
        result = forward(*arguments, **options)
        seconds.append(time.perf_counter() - begin)
        return result

    pipe.unet.forward = timed
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, nargs="+", default=[4, 20])
    parser.add_argument("--pictures", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--cache", help="folder that keeps the engines")
    options = parser.parse_args()
    print(describe(torch.get_num_threads()))
    with quiet():
        pipe = StableDiffusionPipeline.from_pretrained(
            resolve("scenes"), torch_dtype=torch.float32, safety_checker=None
        )
    pipe.set_progress_bar_config(disable=True)
    compiled = fastdiff.compile(pipe, cache=options.cache)
    inside = timed_unet(compiled)
    names = ("pictures", "steps", "diffusers", "compiled", "ratio", "outside", "PSNR")
    print(" ".join(f"{name:>{width}}" for name, width in zip(names, (8, 5, 10, 10, 6, 8, 8), strict=True)))
    for pictures in options.pictures:
        for steps in options.steps:
            wanted, found = (draw(each, steps, pictures)[1] for each in (pipe, compiled))
            if (quality := psnr(found, wanted)) < MIN_PSNR:
                raise SystemExit(f"the pictures differ: {quality:.1f} dB, wanted {MIN_PSNR:g}")
            theirs, ours, outside = [], [], []
            for _ in range(options.rounds):
                theirs.append(draw(pipe, steps, pictures)[0])
                inside.clear()
                ours.append(draw(compiled, steps, pictures)[0])
                outside.append(1 - sum(inside) / ours[-1])
            before, after = statistics.median(theirs), statistics.median(ours)
            print(
                f"{pictures:>8} {steps:>5} {before:>8.3f} s {after:>8.3f} s {before / after:>5.2f}x"
                f" {statistics.median(outside):>8.1%} {quality:>5.1f} dB"
            )


if __name__ == "__main__":
    main()
