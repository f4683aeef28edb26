"""What approximate accelerations gain and cost on the shipped model: docs/approximations.md's table and plot.

``python benchmarks/approximations.py build [--engines DIR]``  native engines with the build options (minutes)
``python benchmarks/approximations.py run [--engines DIR]``    measure what has not been measured yet
``python benchmarks/approximations.py page``                   table and plot from the results

Pictures are those of ``--captions`` held-out captions, Euler's sampler, 20 steps, guidance 5. PSNR is that of
a picture to the exact one of the same caption and noise, in dB, 60 at most, and its mean is shown; the share
of captions drawn right is read by the model's detector. Times are CPU seconds of one thread, the least of
several turns that alternate with the exact pipeline's, so that other load on the machine counts little.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from machine import commit, cpu_name

import fastdiff
from fastdiff.bench.report import write_json

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "approximations-scenes.json"
PAGE = ROOT / "docs" / "approximations.md"
STEPS, GUIDANCE, BATCH, MOST_DB = 20, 5.0, 20, 60.0
ENGINES: dict[str, dict[str, Any]] = {
    "cache0": {"deep_cache": 0, "preview_vae": True},
    "cache1": {"deep_cache": 1},
    "merge25": {"token_merging": 0.25},
    "merge50": {"token_merging": 0.5},
}


def interval(low: float, high: float) -> dict[str, Any]:
    shares = {"low": low, "high": high, "unit": "share"}
    return {"guidance": {"scale": GUIDANCE, "method": {"name": "cfg"}, "interval": shares}}


def ignore(step: int, total: int, pictures: object) -> None:
    """A preview that nobody looks at."""


# group, label, engine, arguments of the call
CASES: tuple[tuple[str, str, str, dict[str, Any]], ...] = (
    ("exact", "exact", "cache0", {}),
    ("fewer steps", "14 steps", "cache0", {"steps": 14}),
    ("fewer steps", "10 steps", "cache0", {"steps": 10}),
    ("fewer steps", "7 steps", "cache0", {"steps": 7}),
    ("DeepCache, branch 0", "branch 0, every 2nd", "cache0", {"deep_cache": 2}),
    ("DeepCache, branch 0", "branch 0, every 3rd", "cache0", {"deep_cache": 3}),
    ("DeepCache, branch 0", "branch 0, every 5th", "cache0", {"deep_cache": 5}),
    ("DeepCache, branch 1", "branch 1, every 2nd", "cache1", {"deep_cache": 2}),
    ("DeepCache, branch 1", "branch 1, every 3rd", "cache1", {"deep_cache": 3}),
    ("DeepCache, branch 1", "branch 1, every 5th", "cache1", {"deep_cache": 5}),
    (
        "DeepCache, uneven",
        "branch 1, 3 around step 6",
        "cache1",
        {"deep_cache": {"every": 3, "center": 6, "power": 1.4}},
    ),
    ("token merging", "25 % of the tokens", "merge25", {}),
    ("token merging", "50 % of the tokens", "merge50", {}),
    ("guidance interval", "steps 0 to 80 %", "cache0", interval(0.0, 0.8)),
    ("guidance interval", "steps 0 to 60 %", "cache0", interval(0.0, 0.6)),
    ("guidance interval", "steps 20 to 80 %", "cache0", interval(0.2, 0.8)),
    ("tiny VAE", "tiny VAE for the picture", "cache0", {"vae": "tiny"}),
    ("previews", "a preview of every step, tiny VAE", "cache0", {"preview": ignore}),
    ("previews", "a preview of every step, linear", "cache1", {"preview": ignore}),
)


def build(folder: Path) -> None:
    from fastdiff.build.build import build_engine

    folder.mkdir(parents=True, exist_ok=True)
    for name, options in ENGINES.items():
        path = build_engine("scenes", folder / f"{name}.fd", target="native", force=True, **options).path
        print(path, flush=True)


class Quality:
    """Pictures of the captions, compared with the exact ones and read by the detector."""

    def __init__(self, exact: fastdiff.Pipeline, count: int) -> None:
        from fastdiff.zoo.training.evaluate import held_out_scenes

        self._scenes, self._captions = held_out_scenes(count)
        self._exact = self._draw(exact, {})

    def _draw(self, pipe: fastdiff.Pipeline, call: Mapping[str, Any]) -> np.ndarray:
        pictures: list[np.ndarray] = []
        for i in range(0, len(self._captions), BATCH):
            part = self._captions[i : i + BATCH]
            result = pipe(
                part, **{"steps": STEPS, "sampler": "euler", "guidance": GUIDANCE, "seed": i, **call}
            )
            pictures += [np.asarray(image) for image in result.images]
        return np.stack(pictures)

    def __call__(self, pipe: fastdiff.Pipeline, call: Mapping[str, Any]) -> dict[str, float]:
        """Mean PSNR in dB and share of captions drawn right, of a call with these arguments."""
        from fastdiff.zoo.training.detector import read

        pictures = self._draw(pipe, call)
        errors = ((pictures.astype(np.float64) - self._exact) ** 2).mean((1, 2, 3))
        decibels = np.minimum(10 * np.log10(255**2 / np.maximum(errors, 1e-9)), MOST_DB)
        found = [read(p, s).found == len(s.objects) for p, s in zip(pictures, self._scenes, strict=True)]
        return {"psnr": float(decibels.mean()), "right": float(np.mean(found))}


def seconds_of(pipe: fastdiff.Pipeline, call: Mapping[str, Any]) -> float:
    """CPU seconds of one picture in a batch of two, prompt and decoding included."""
    call = {"steps": STEPS, "sampler": "euler", "guidance": GUIDANCE, "seed": 1, "num": 2, **call}
    begin = time.thread_time()
    pipe("a red circle above a blue square", **call)
    return (time.thread_time() - begin) / 2


def run(folder: Path, captions: int, rounds: int, again: bool) -> None:
    pipes = {name: fastdiff.load(folder / f"{name}.fd", threads=1) for name in ENGINES}
    known = json.loads(RESULT.read_text())["rows"] if RESULT.is_file() and not again else {}
    quality: Quality | None = None
    for group, label, engine, call in CASES:
        if label in known:
            continue
        if quality is None:
            quality = Quality(pipes["cache0"], captions)
        row: dict[str, Any] = {"group": group, **quality(pipes[engine], call)}
        ours, exact = [], []
        for _ in range(rounds + 1):  # the first warms up
            exact.append(seconds_of(pipes["cache0"], {}))
            ours.append(seconds_of(pipes[engine], call))
        row |= {"seconds": min(ours[1:]), "exact_seconds": min(exact[1:])}
        row["speed"] = row["exact_seconds"] / row["seconds"]
        known[label] = row
        print(
            f"{label:<36} {row['seconds'] * 1e3:8.1f} ms {row['speed']:5.2f}x {row['psnr']:6.1f} dB "
            f"{row['right']:6.1%}",
            flush=True,
        )
        document = {"cpu": cpu_name(), "commit": commit(), "captions": captions, "rows": known}
        write_json(RESULT, document)


def write_page() -> None:
    """The table between the page's markers, and the plot beside it."""
    document = json.loads(RESULT.read_text())
    rows = {label: document["rows"][label] for _, label, *_ in CASES if label in document["rows"]}
    lines = [
        "| option | setting | ms per picture | times as fast | PSNR, dB | captions right |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for label, row in rows.items():
        equal = "equal" if row["psnr"] >= MOST_DB else f"{row['psnr']:.1f}"
        lines.append(
            f"| {row['group']} | {label} | {row['seconds'] * 1e3:.0f} | {row['speed']:.2f} | {equal} | "
            f"{row['right']:.0%} |"
        )
    text = PAGE.read_text()
    begin, end = "<!-- measured -->\n", "<!-- end measured -->"
    head, rest = text.split(begin)
    said = f"\n{document['cpu']}, {document['captions']} captions.\n\n"
    PAGE.write_text(head + begin + said + "\n".join(lines) + "\n\n" + end + rest.split(end)[1])
    _plot(rows, PAGE.with_name("approximations-scenes.png"))


def _plot(rows: Mapping[str, Any], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 4.2), layout="constrained")
    axes = figure.subplots()
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows.values():
        if row["group"] not in ("exact", "previews"):
            groups.setdefault(row["group"], []).append(row)
    markers = "osD^vPX*"
    for marker, (group, members) in zip(markers, groups.items(), strict=False):
        members = sorted(members, key=lambda row: row["speed"])
        axes.plot(
            [row["speed"] for row in members],
            [row["psnr"] for row in members],
            marker=marker,
            ms=5,
            label=group,
        )
    axes.axvline(1, color="black", lw=0.8, ls=":")
    axes.set(xlabel="times as fast as the exact picture", ylabel="PSNR to the exact picture, dB")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", choices=("build", "run", "page"))
    parser.add_argument("--engines", type=Path, default=Path("approximations"), help="folder of the engines")
    parser.add_argument("--captions", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--again", action="store_true", help="measure everything, also what is there")
    arguments = parser.parse_args()
    actions: dict[str, Callable[[], None]] = {
        "build": lambda: build(arguments.engines),
        "run": lambda: run(arguments.engines, arguments.captions, arguments.rounds, arguments.again),
        "page": lambda: None,
    }
    actions[arguments.what]()
    if arguments.what != "build":
        write_page()


if __name__ == "__main__":
    main()
