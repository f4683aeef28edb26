"""Cold start: from the start of the process to the picture on disk, and what the time goes to.

``python benchmarks/bench_cold_start.py ENGINE`` runs ``fastdiff generate`` in fresh processes, in turns with
its baselines, and prints medians:

    python          an interpreter that imports NumPy, the floor of every Python program with arrays
    import          import fastdiff
    load            fastdiff.load(ENGINE): hashes checked, sessions open
    generate        the whole command, one picture
    diffusers       StableDiffusionPipeline on the checkpoint, with --checkpoint: load, one picture, written

Each run's file is checked: all runs of ``generate`` must write the same picture.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image

PROMPT = "a red circle left of a blue square"
DIFFUSERS = """
import sys, warnings
warnings.simplefilter("ignore")
import torch
from diffusers import StableDiffusionPipeline
pipe = StableDiffusionPipeline.from_pretrained(sys.argv[1], torch_dtype=torch.float32, safety_checker=None)
pipe.set_progress_bar_config(disable=True)
options = {"guidance_scale": 5.0, "generator": torch.Generator().manual_seed(0)}
pipe(sys.argv[2], num_inference_steps=int(sys.argv[3]), **options).images[0].save(sys.argv[4])
"""


def seconds(command: list[str], environment: dict[str, str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    return time.perf_counter() - start


def pixels(path: Path) -> bytes:
    with Image.open(path) as image:
        return image.tobytes()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("engine", help="engine folder")
    parser.add_argument("--checkpoint", help="folder it was built from: adds diffusers as a baseline")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()

    python, engine, steps = sys.executable, arguments.engine, str(arguments.steps)
    threads = str(arguments.threads)
    environment = {**os.environ, "OMP_NUM_THREADS": threads, "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "out.png"
        load = f"import fastdiff; fastdiff.load({engine!r}, {threads})"
        options = ["-o", str(path), "--steps", steps, "--seed", "0", "--threads", threads]
        commands = {
            "python": [python, "-c", "import numpy"],
            "import": [python, "-c", "import fastdiff"],
            "load": [python, "-c", load],
            "generate": [python, "-m", "fastdiff", "generate", engine, PROMPT, *options],
        }
        if arguments.checkpoint:
            other = str(Path(folder) / "diffusers.png")
            commands["diffusers"] = [python, "-c", DIFFUSERS, arguments.checkpoint, PROMPT, steps, other]

        seconds(commands["generate"], environment)  # disk caches and byte code
        picture = pixels(path)
        times: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(arguments.rounds):
            for name, command in commands.items():
                times[name].append(seconds(command, environment))
            if pixels(path) != picture:
                raise SystemExit("generate wrote another picture for the same seed; no figures")

    print(
        f"{arguments.threads} threads, {steps} steps, median of {arguments.rounds} runs in turns, "
        f"load average {os.getloadavg()[0]:.1f}"
    )
    for name, values in times.items():
        print(f"{name:<10} {1000 * statistics.median(values):8.0f} ms   fastest {1000 * min(values):8.0f} ms")


if __name__ == "__main__":
    main()
