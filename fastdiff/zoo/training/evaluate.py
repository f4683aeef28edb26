"""Measure the checkpoint: pictures of held-out captions read by the detector, and the autoencoder's PSNR."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import diffusers
import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from numpy.typing import NDArray
from PIL import Image

from fastdiff.image import contact_sheet
from fastdiff.zoo.training.captions import caption
from fastdiff.zoo.training.detector import Reading, read
from fastdiff.zoo.training.drawing import draw
from fastdiff.zoo.training.scene import Scene, random_scene
from fastdiff.zoo.training.vae import SIZE, to_tensor

__all__ = [
    "SAMPLERS",
    "Figures",
    "evaluate",
    "held_out_scenes",
    "load_checkpoint",
    "plot_losses",
    "report",
    "vae_psnr",
]

SEED = 9001
SAMPLERS = ("DDIMScheduler", "DPMSolverMultistepScheduler", "EulerDiscreteScheduler", "PNDMScheduler")
"""diffusers' classes, the one whose figures count first."""


@dataclass(frozen=True)
class Figures:
    """Shares in 0..1.

    present      captions of which every object is there with its colour and shape
    objects      the same, and no other object is there
    objects_n    objects among captions with n objects
    each_object  objects of all captions that are there with their colour and shape
    relation     captions with a relation whose objects are all there and whose relations all hold
    vae_psnr     dB, on as many held-out scenes
    """

    captions: int
    steps: int
    guidance: float
    sampler: str
    present: float
    objects: float
    relation: float
    objects_1: float
    objects_2: float
    objects_3: float
    each_object: float
    vae_psnr: float

    def as_dict(self) -> dict[str, float | int | str]:
        """For JSON."""
        return asdict(self)


def held_out_scenes(count: int, seed: int = SEED) -> tuple[list[Scene], list[str]]:
    """``count`` scenes of combinations never trained on, with a caption each."""
    rng = np.random.default_rng(seed)
    scenes = [random_scene(rng, held_out=True) for _ in range(count)]
    return scenes, [caption(s, rng) for s in scenes]


def vae_psnr(pipe: StableDiffusionPipeline, count: int = 200, seed: int = SEED + 1) -> float:
    """Mean PSNR in dB of reconstructed held-out scenes, on uint8 pictures."""
    rng = np.random.default_rng(seed)
    pictures = np.stack([draw(random_scene(rng, held_out=True), SIZE) for _ in range(count)])
    values = []
    with torch.no_grad():
        for i in range(0, count, 50):
            part = pictures[i : i + 50]
            y = pipe.vae.decode(pipe.vae.encode(to_tensor(part)).latent_dist.mean).sample
            again = ((y.clamp(-1, 1) + 1) * 127.5).round().permute(0, 2, 3, 1).numpy()
            error = ((again - part.astype(np.float32)) ** 2).mean((1, 2, 3))
            values.append(10 * np.log10(255**2 / np.maximum(error, 1e-9)))
    return float(np.concatenate(values).mean())


def evaluate(
    pipe: StableDiffusionPipeline,
    count: int = 200,
    steps: int = 25,
    guidance: float = 5.0,
    batch: int = 50,
    sampler: str = SAMPLERS[0],
) -> tuple[Figures, list[tuple[NDArray[np.uint8], str, Reading]]]:
    """The figures, and each picture with its caption and what was read from it.

    ``sampler`` is a scheduler class of diffusers, which takes the settings of the pipeline's own.
    """
    scenes, captions = held_out_scenes(count)
    own = pipe.scheduler
    pipe.scheduler = getattr(diffusers, sampler).from_config(own.config)
    pipe.set_progress_bar_config(disable=True)
    rows: list[tuple[NDArray[np.uint8], str, Reading]] = []
    for i in range(0, count, batch):
        generator = torch.Generator().manual_seed(SEED + i)
        pictures = pipe(
            captions[i : i + batch],
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=generator,
            output_type="np",
        ).images
        drawn = (pictures * 255).round().astype(np.uint8)
        part = slice(i, i + batch)
        for scene, text, picture in zip(scenes[part], captions[part], drawn, strict=True):
            rows.append((picture, text, read(picture, scene)))
    figures = _figures(pipe, scenes, [r for _, _, r in rows], steps, guidance)
    pipe.scheduler = own
    return figures, rows


def _figures(
    pipe: StableDiffusionPipeline, scenes: list[Scene], readings: list[Reading], steps: int, guidance: float
) -> Figures:
    def share(flags: list[bool]) -> float:
        return float(np.mean(flags)) if flags else float("nan")

    by_count = {
        n: share([r.objects for s, r in zip(scenes, readings, strict=True) if len(s.objects) == n])
        for n in (1, 2, 3)
    }
    return Figures(
        captions=len(scenes),
        steps=steps,
        guidance=guidance,
        sampler=type(pipe.scheduler).__name__,
        present=share([r.found == len(s.objects) for s, r in zip(scenes, readings, strict=True)]),
        objects=share([r.objects for r in readings]),
        relation=share([r.relation for r in readings if r.relation is not None]),
        objects_1=by_count[1],
        objects_2=by_count[2],
        objects_3=by_count[3],
        each_object=sum(r.found for r in readings) / sum(len(s.objects) for s in scenes),
        vae_psnr=vae_psnr(pipe, len(scenes)),
    )


def load_checkpoint(folder: Path) -> StableDiffusionPipeline:
    """A checkpoint folder as a float32 pipeline, without a safety checker."""
    pipe = StableDiffusionPipeline.from_pretrained(
        folder,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
        local_files_only=True,
    )
    return pipe.to(torch.float32)


def report(checkpoint: Path, run: Path) -> Figures:
    """Evaluate a checkpoint folder and write ``figures.json``, ``samples.png`` and, from the run's logs,
    ``losses.png`` into it. The figures returned are those of the first sampler; the file has the others' too.
    """
    pipe = load_checkpoint(checkpoint)
    figures, rows = evaluate(pipe)
    others = {name: evaluate(pipe, sampler=name)[0].as_dict() for name in SAMPLERS[1:]}
    shares = ("objects", "each_object", "relation")
    everything = figures.as_dict() | {
        "other_samplers": {name: {s: found[s] for s in shares} for name, found in others.items()}
    }
    (checkpoint / "figures.json").write_text(json.dumps(everything, indent=2) + "\n")
    shown = rows[:24]
    marks = ["" if r.objects and r.relation is not False else " (wrong)" for _, _, r in shown]
    contact_sheet(
        [Image.fromarray(picture) for picture, _, _ in shown],
        [text + mark for (_, text, _), mark in zip(shown, marks, strict=True)],
        columns=6,
        scale=2,
    ).save(checkpoint / "samples.png")
    logs = sorted(run.glob("*.jsonl"))
    if logs:
        plot_losses(logs, checkpoint / "losses.png")
    return figures


def plot_losses(logs: list[Path], output: Path) -> None:
    """Each stage's training loss over its steps, on logarithmic axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3 * len(logs), 2.6), layout="constrained")
    for axis, log in zip(np.atleast_1d(figure.subplots(1, len(logs))), logs, strict=True):
        rows = [json.loads(line) for line in log.read_text().splitlines()]
        axis.loglog([r["step"] for r in rows], [r["loss"] for r in rows])
        axis.set(title=log.stem, xlabel="step", ylabel="training loss")
        axis.grid(True, which="both", alpha=0.3)
    figure.savefig(output, dpi=100)
