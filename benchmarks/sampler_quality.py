"""Which sampler for how many evaluations: docs/samplers.md's tables and plots.

``python benchmarks/sampler_quality.py mixture``  every sampler on a Gaussian mixture with its perfect
    denoiser: sliced Wasserstein distance to the exact distribution (some minutes)
``python benchmarks/sampler_quality.py scenes [--engine scenes.fd]``  the shipped model: share of captions
    drawn right, read by its detector, and Fréchet distance to drawings of the same captions (half an hour)
``python benchmarks/sampler_quality.py page``  plots and tables from the results, without measuring

Results go to benchmarks/results/samplers-*.json after every sampler; a sampler that is there is not measured
again unless ``--again`` is given. Evaluations are calls of the model; both halves of guidance count as one.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from machine import commit, cpu_name

from fastdiff.bench.report import write_json
from fastdiff.errors import InputError
from fastdiff.samplers import SAMPLERS, Generator, NoiseSchedule, StepTable, make_table, sample
from fastdiff.zoo.mixture import GaussianMixture

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "samplers.md"
EVALUATIONS = (4, 6, 8, 10, 15, 20, 25, 35, 50)
SCENES_EVALUATIONS = (4, 6, 8, 12, 20, 50)
# Samplers for models that are distilled, for another process, or from data to noise, draw nothing here.
OTHER_MODELS = ("consistency", "edm", "flow", "inverse", "lcm", "tcd")
CHAIN = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "clip_sample": False,
    "skip_prk_steps": True,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
KARRAS = {"use_karras_sigmas": True}
SCENES = {
    "ddim": {},
    "ddpm": {},
    "pndm": {},
    "euler": {},
    "euler, Karras": KARRAS,
    "euler_ancestral": {},
    "heun": {},
    "dpmpp_2s_ancestral": {},
    "dpmpp_2m": {},
    "dpmpp_2m, Karras": KARRAS,
    "dpmpp_3m": {},
    "dpmpp_2m_sde": {},
    "dpmpp_3m_sde": {},
    "unipc": {},
    "deis": {},
    "res_multistep": {},
}
# What the page shows of the mixture; the file of results has every sampler.
SHOWN = (
    *SCENES,
    "ipndm",
    "f_pndm",
    "lms, Karras",
    "euler_ancestral, Karras",
    "dpmpp_3m, Karras",
    "dpmpp_2m_sde, Karras",
    "unipc, Karras",
    "deis, Karras",
    "sa_solver, Karras",
    "res_multistep, Karras",
    "er_sde, Karras",
    "dpm_solver_3m, Karras",
)
MIXTURE_PLOT = (
    *("ddim", "ddpm", "pndm", "euler", "heun", "dpmpp_2m", "euler_ancestral, Karras", "dpmpp_2m, Karras"),
    *("dpmpp_2m_sde, Karras", "unipc, Karras", "deis, Karras", "dpm_solver_3m, Karras", "lms, Karras"),
    "er_sde, Karras",
)
COUNT, DIRECTIONS = 20_000, 64


def mixture() -> GaussianMixture:
    """Seven components in two dimensions, of unequal weight and width, of unit variance over all."""
    angle = 2 * np.pi * np.arange(7) / 7
    radius = np.array([1.0, 1.4, 0.8, 1.3, 1.1, 1.5, 0.9])
    weights = np.array([3.0, 1, 2, 1, 3, 2, 1]) / 13
    means = radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    stds = np.array([0.1, 0.05, 0.15, 0.08, 0.05, 0.1, 0.2])
    return GaussianMixture(weights, means - weights @ means, stds)


def table_within(
    name: str, schedule: NoiseSchedule, evaluations: int, options: Mapping[str, object]
) -> StepTable | None:
    """The table with the most steps that needs at most ``evaluations``; None where there is none."""
    for steps in range(evaluations, 0, -1):
        try:
            table = make_table(name, schedule, steps, options=options)
        except InputError:
            continue
        if table.evaluations <= evaluations:
            return table
    return None


class ExactQuantiles:
    """The mixture seen along random directions, as quantiles: no error of a second draw."""

    def __init__(self, data: GaussianMixture, count: int) -> None:
        from scipy.special import ndtr

        rng = np.random.default_rng(11)
        angle = rng.uniform(0, np.pi, DIRECTIONS)
        self.directions = np.stack([np.cos(angle), np.sin(angle)])  # [2, D]
        at = (np.arange(count) + 0.5) / count
        grid = np.linspace(-4, 4, 20_001)
        self.quantiles = np.empty((count, DIRECTIONS))
        for i, centres in enumerate((data.means @ self.directions).T):
            cdf = (data.weights * ndtr((grid[:, None] - centres) / data.stds)).sum(1)
            self.quantiles[:, i] = np.interp(at, cdf, grid)

    def distance(self, x: np.ndarray) -> float:
        """Sliced Wasserstein distance W₁ between the samples ``x`` [N, 2] and the mixture."""
        return float(np.abs(np.sort(x @ self.directions, axis=0) - self.quantiles).mean())


def draw_mixture(table: StepTable, data: GaussianMixture) -> np.ndarray:
    """COUNT samples through the sampling loop, as it runs on a model."""
    points = iter([step.point for step in table.steps])

    def denoise(scaled: np.ndarray, timestep: float, guided: bool) -> tuple[np.ndarray, None]:
        point = next(points)
        x = scaled.astype(np.float64) / point.input_scale
        return data.output(x, point).astype(np.float32), None

    generator = Generator(3)
    start = generator.randn((COUNT, 2)) * np.float32(table.init_noise_sigma)
    return sample(table, denoise, start, noise=generator)


def measure_mixture(again: bool) -> None:
    data, schedule = mixture(), NoiseSchedule.from_config(CHAIN)
    exact = ExactQuantiles(data, COUNT)
    floor = exact.distance(data.draw(COUNT, np.random.default_rng(12)))
    path = RESULTS / "samplers-mixture.json"
    rows = _load(path, again)
    for name in SAMPLERS:
        if name in rows or any(word in name for word in OTHER_MODELS):
            continue
        for label, options in ((name, {}), (f"{name}, Karras", KARRAS)):
            try:
                found = {}
                for evaluations in EVALUATIONS:
                    table = table_within(name, schedule, evaluations, options)
                    if table is None or not table.linear:
                        continue
                    distance = exact.distance(draw_mixture(table, data))
                    found[str(evaluations)] = {"distance": distance, "evaluations": table.evaluations}
            except InputError:
                continue
            if found:
                rows[label] = found
                print(f"{label:<28}", *(f"{row['distance']:.4f}" for row in found.values()), flush=True)
        _save(path, rows, {"floor": floor, "samples": COUNT})


def measure_scenes(engine: str, count: int, again: bool) -> None:
    import fastdiff
    from fastdiff.zoo.training.detector import read
    from fastdiff.zoo.training.drawing import draw
    from fastdiff.zoo.training.evaluate import held_out_scenes
    from fastdiff.zoo.training.scene import random_scene

    pipe = fastdiff.load(engine)
    features = _Features(pipe)
    rng = np.random.default_rng(77)
    drawings = np.stack([draw(random_scene(rng, held_out=True), 64) for _ in range(2_000 + count)])
    reference = _moments(features(drawings[:2_000]))
    floor = _frechet(_moments(features(drawings[2_000:])), reference)
    path = RESULTS / "samplers-scenes.json"
    rows = _load(path, again)
    scenes, captions = held_out_scenes(count)
    for label, options in SCENES.items():
        name = label.split(",")[0]
        found = dict(rows.get(label, {}))
        for evaluations in SCENES_EVALUATIONS:
            if str(evaluations) in found:
                continue
            table = table_within(name, pipe.schedule, evaluations, options)
            if table is None:
                continue
            steps = _steps_of(name, pipe.schedule, table.evaluations, options)
            pictures = []
            for i in range(0, count, 20):
                result = pipe(
                    captions[i : i + 20], steps=steps, sampler=name, seed=i, sampler_options=dict(options)
                )
                pictures += [np.asarray(image) for image in result.images]
            stack = np.stack(pictures)
            readings = [read(picture, scene) for picture, scene in zip(stack, scenes, strict=True)]
            found[str(evaluations)] = {
                "evaluations": table.evaluations,
                "objects": float(
                    np.mean([r.found == len(s.objects) for r, s in zip(readings, scenes, strict=True)])
                ),
                "exact": float(np.mean([r.objects for r in readings])),
                "frechet": _frechet(_moments(features(stack)), reference),
            }
            row = found[str(evaluations)]
            print(f"{label:<22} {evaluations:>3}  {row['objects']:.3f}  {row['frechet']:.3f}", flush=True)
            rows[label] = found
            _save(path, rows, {"floor": floor, "captions": count, "guidance": 5.0})


def _steps_of(name: str, schedule: NoiseSchedule, evaluations: int, options: Mapping[str, object]) -> int:
    for steps in range(evaluations, 0, -1):
        try:
            if make_table(name, schedule, steps, options=options).evaluations == evaluations:
                return steps
        except InputError:
            continue
    raise InputError(f"sampler {name!r} makes no {evaluations} evaluations")


class _Features:
    """The autoencoder's latents averaged over each quarter: 16 numbers per picture: 200 pictures suffice."""

    def __init__(self, pipe: Any) -> None:
        import torch
        from diffusers import AutoencoderKL

        import fastdiff.zoo as zoo

        self._torch = torch
        self._vae = AutoencoderKL.from_pretrained(Path(zoo.__file__).parent / "scenes" / "vae").eval()

    def __call__(self, pictures: np.ndarray) -> np.ndarray:
        torch = self._torch
        rows = []
        with torch.no_grad():
            for i in range(0, len(pictures), 50):
                x = torch.from_numpy(pictures[i : i + 50]).permute(0, 3, 1, 2).float() / 127.5 - 1
                mean = self._vae.encode(x).latent_dist.mean
                rows.append(torch.nn.functional.adaptive_avg_pool2d(mean, 2).flatten(1).numpy())
        return np.concatenate(rows).astype(np.float64)


def _moments(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return features.mean(0), np.cov(features, rowvar=False)


def _frechet(a: tuple[np.ndarray, np.ndarray], b: tuple[np.ndarray, np.ndarray]) -> float:
    """Fréchet distance of two Gaussians, Dowson and Landau: |μ−μ'|² + tr(Σ + Σ' − 2(ΣΣ')^½)."""
    roots = np.sqrt(np.maximum(np.linalg.eigvals(a[1] @ b[1]).real, 0))
    return float(((a[0] - b[0]) ** 2).sum() + np.trace(a[1]) + np.trace(b[1]) - 2 * roots.sum())


def write_page() -> None:
    """Plots beside docs/samplers.md, and its tables between the markers."""
    text = _filled(PAGE.read_text(), "samplers", _sampler_list())
    for kind, metric, title, form in (
        ("mixture", "distance", "sliced Wasserstein distance to a mixture", "{:.4f}"),
        ("scenes", "objects", "captions drawn right", "{:.0%}"),
        ("scenes-frechet", "frechet", "Fréchet distance to drawings", "{:.3f}"),
    ):
        path = RESULTS / f"samplers-{kind.removesuffix('-frechet')}.json"
        if not path.is_file():
            continue
        document = json.loads(path.read_text())
        rows = document["samplers"]
        shown = MIXTURE_PLOT if kind == "mixture" else tuple(SCENES)
        _plot(
            {name: rows[name] for name in shown if name in rows},
            metric,
            title,
            document["floor"],
            PAGE.with_name(f"samplers-{kind}.png"),
        )
        text = _filled(text, kind, _table(rows, metric, form))
    PAGE.write_text(text)


def _filled(text: str, name: str, table: str) -> str:
    begin, end = f"<!-- {name} -->\n", f"<!-- end {name} -->"
    head, rest = text.split(begin)
    return head + begin + "\n" + table + "\n" + end + rest.split(end)[1]


def _sampler_list() -> str:
    lines = ["| name | order | evaluations | noise | diffusers class | paper |", "|---|---|---|---|---|---|"]
    for sampler in SAMPLERS.values():
        classes = ", ".join(name.removesuffix("Scheduler") for name in sampler.classes)
        noise = "yes" if sampler.stochastic else ""
        lines.append(
            f"| `{sampler.name}` | {sampler.order} | {sampler.evaluations} | {noise} | {classes} | "
            f"{sampler.paper} |"
        )
    return "\n".join(lines) + "\n"


def _table(rows: Mapping[str, Any], metric: str, form: str) -> str:
    counts = sorted({int(count) for row in rows.values() for count in row})
    lines = ["| sampler | " + " | ".join(map(str, counts)) + " |", "|---" * (len(counts) + 1) + "|"]
    for name in (name for name in SHOWN if name in rows):
        row = rows[name]
        cells = [form.format(row[str(c)][metric]) if str(c) in row else "" for c in counts]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _plot(rows: Mapping[str, Any], metric: str, title: str, floor: float, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    colours = plt.get_cmap("tab20").colors
    for colour, name in zip(colours, rows, strict=False):
        row = rows[name].values()
        x = [cell["evaluations"] for cell in row]
        axes.plot(x, [cell[metric] for cell in row], marker="o", ms=3, color=colour, label=name)
    if metric != "objects":
        axes.axhline(floor, color="black", lw=0.8, ls=":", label="exact samples")
        axes.set_yscale("log")
    axes.set_xscale("log")
    axes.set_xticks(EVALUATIONS, [str(count) for count in EVALUATIONS])
    axes.minorticks_off()
    axes.set(xlabel="evaluations of the model", ylabel=title)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, ncols=2)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _load(path: Path, again: bool) -> dict[str, Any]:
    return {} if again or not path.is_file() else json.loads(path.read_text())["samplers"]


def _save(path: Path, rows: Mapping[str, Any], more: Mapping[str, object]) -> None:
    document = {"cpu": cpu_name(), "commit": commit(), **more, "samplers": rows}
    write_json(path, document)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", choices=("mixture", "scenes", "page"))
    parser.add_argument("--engine", default="scenes.fd", help="native engine of the shipped checkpoint")
    parser.add_argument("--captions", type=int, default=200)
    parser.add_argument("--again", action="store_true", help="measure everything, also what is there")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", fastdiff_warning())
    actions: dict[str, Callable[[], None]] = {
        "mixture": lambda: measure_mixture(arguments.again),
        "scenes": lambda: measure_scenes(arguments.engine, arguments.captions, arguments.again),
        "page": lambda: None,
    }
    actions[arguments.what]()
    write_page()


def fastdiff_warning() -> type[Warning]:
    from fastdiff.errors import FastdiffWarning

    return FastdiffWarning


if __name__ == "__main__":
    main()
