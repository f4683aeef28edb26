"""``make demo``: build an engine from the shipped checkpoint, draw a contact sheet, say how long things
took.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

PROMPTS = (
    "a red circle left of a blue square",
    "a large yellow star above a small green ring",
    "a purple triangle inside a cyan circle on a checkered black and white background",
    "an orange cross right of a pink square on a white to gray gradient",
    "a green circle below a red triangle on beige and white stripes",
    "a blue ring left of a yellow ring with a red star below both",
    "a small pink star on a plain black background",
    "a large cyan square and a small orange circle on a gray background",
)
SAMPLER, STEPS, GUIDANCE, SEED = "euler", 20, 5.0, 7


def main() -> None:
    """Run the demo in the folder given by ``--output``."""
    parser = argparse.ArgumentParser(prog="python -m fastdiff.zoo.demo", description=__doc__)
    parser.add_argument(
        "--output", type=Path, default=Path("out"), help="folder for engine and pictures (out)"
    )
    folder = parser.parse_args().output
    folder.mkdir(parents=True, exist_ok=True)
    engine, sheet = folder / "scenes.fd", folder / "contact_sheet.png"
    _run("build", "scenes", "-o", str(engine), "--force")
    cold = _cold_start(engine, folder / "cold.png")
    per_step, per_picture = _draw(engine, sheet)
    print(f"contact sheet:   {sheet.resolve()}")
    print(f"time per step:   {per_step * 1e3:.1f} ms (one picture, guidance {GUIDANCE:g}, median)")
    print(f"time per picture: {per_picture * 1e3:.0f} ms ({STEPS} steps of {SAMPLER}, decoded, median)")
    print(f"cold start:      {cold:.2f} s (new process to file written, {STEPS} steps)")


def _run(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "fastdiff", *arguments], check=True)


def _cold_start(engine: Path, picture: Path) -> float:
    """Seconds of a whole ``fastdiff generate`` process: the median of three."""
    seconds = []
    for _ in range(3):
        begin = time.perf_counter()
        _run(
            "generate",
            str(engine),
            PROMPTS[0],
            "-o",
            str(picture),
            "--steps",
            str(STEPS),
            "--seed",
            str(SEED),
        )
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds)


def _draw(engine: Path, sheet: Path) -> tuple[float, float]:
    """Write the contact sheet; median seconds per step and per picture."""
    import fastdiff
    from fastdiff.image import contact_sheet

    pipe = fastdiff.load(engine)
    images, steps, pictures = [], [], []
    for prompt in PROMPTS:
        result = pipe(prompt, steps=STEPS, sampler=SAMPLER, guidance=GUIDANCE, seed=SEED)
        images += result.images
        steps += list(result.timings.steps)
        pictures.append(result.timings.total)
    contact_sheet(images, PROMPTS, columns=4, scale=4).save(sheet)
    return statistics.median(steps), statistics.median(pictures)


if __name__ == "__main__":
    main()
