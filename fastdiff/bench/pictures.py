"""Contestants that make whole pictures: fastdiff's pipeline, diffusers', and both from a cold start."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from fastdiff.bench.case import Job
from fastdiff.bench.peers import PEERS, Arrays, Contestant, prepare_torch
from fastdiff.errors import InputError, TargetError

__all__ = ["PictureEngine", "open_picture_contestant"]


def open_picture_contestant(job: Job) -> Contestant:
    """The contestant of a job of kind ``picture`` or ``cold``. Raises InputError where it has no pipeline."""
    peer = PEERS.get(job.contestant)
    if not job.engine and (peer is None or job.case.kind not in peer.pictures):
        raise InputError(f"{job.contestant} makes no pictures here: measure its modules")
    if job.case.kind == "cold":
        return _Command(job)
    return PictureEngine(job) if job.engine else _Diffusers(job)


class PictureEngine(Contestant):
    """An engine folder through fastdiff.Pipeline."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.pipe: Any = None

    def load(self) -> None:
        """Open it, closing what was open."""
        import fastdiff

        if self.pipe is not None:
            self.pipe.close()
        self.pipe = fastdiff.load(self.job.engine, self.job.threads)

    def run(self, inputs: Arrays) -> Arrays:
        """One picture per row."""
        case, picture = self.job.case, self.job.picture
        result = self.pipe(
            picture.prompt,
            steps=picture.steps,
            guidance=picture.guidance,
            seed=picture.seed,
            num=case.batch,
            height=case.height,
            width=case.width,
        )
        return _arrays(result.images)


class _Diffusers(Contestant):
    """StableDiffusionPipeline with the checkpoint's own scheduler; U-Net and VAE as the peer runs modules."""

    def __init__(self, job: Job) -> None:
        import diffusers
        import torch

        torch.set_num_threads(job.threads)
        self.job, self.torch = job, torch
        self.dtype = torch.float16 if job.case.precision == "fp16" else torch.float32
        self.kind: Any = diffusers.StableDiffusionPipeline
        self.pipe: Any = None

    def load(self) -> None:
        from fastdiff.build.weights import quiet

        self.pipe = None
        with quiet():
            pipe = self.kind.from_pretrained(
                self.job.folder, torch_dtype=self.dtype, safety_checker=None, local_files_only=True
            )
        pipe.to(self.job.case.device)
        pipe.set_progress_bar_config(disable=True)
        device = self.job.case.device
        pipe.unet = prepare_torch(pipe.unet, self.job.contestant, device)
        pipe.vae.decoder = prepare_torch(pipe.vae.decoder, self.job.contestant, device)
        self.pipe = pipe

    def run(self, inputs: Arrays) -> Arrays:
        case, picture = self.job.case, self.job.picture
        with self.torch.no_grad():
            images = self.pipe(
                picture.prompt,
                num_inference_steps=picture.steps,
                guidance_scale=picture.guidance,
                num_images_per_prompt=case.batch,
                height=case.height,
                width=case.width,
                generator=self.torch.Generator().manual_seed(picture.seed),
            ).images
        return _arrays(images)


_SCRIPT = """
import json, sys
from fastdiff.bench.case import Job
from fastdiff.bench.pictures import write_picture
write_picture(Job.from_json(json.loads(sys.argv[1])), sys.argv[2])
"""


def write_picture(job: Job, path: str) -> None:
    """Load diffusers' pipeline, make one picture, write it as PNG: what a cold start of a peer is."""
    from PIL import Image

    contestant = _Diffusers(job)
    contestant.load()
    pixels = contestant.run({})["pictures"]
    Image.fromarray(pixels[0]).save(path)


class _Command(Contestant):
    """A process per picture: ``fastdiff generate`` or a script around diffusers."""

    def __init__(self, job: Job) -> None:
        self.job = job

    def load(self) -> None:
        """Nothing: every run loads."""

    def run(self, inputs: Arrays) -> Arrays:
        import json

        import numpy as np
        from PIL import Image

        with tempfile.TemporaryDirectory(prefix="fastdiff-bench-") as folder:
            path = Path(folder) / "out.png"
            if self.job.engine:
                words = ["-m", "fastdiff", *self._generate(path)]
            else:
                words = ["-c", _SCRIPT, json.dumps(self.job.to_json()), str(path)]
            environment = {**os.environ, "OMP_NUM_THREADS": str(self.job.threads), "HF_HUB_OFFLINE": "1"}
            process = subprocess.run(
                [sys.executable, *words], env=environment, capture_output=True, text=True, check=False
            )
            if process.returncode:
                lines = process.stderr.strip().splitlines() or [f"status {process.returncode}"]
                raise TargetError(f"the process of {self.job.contestant} failed: {lines[-1][:300]}")
            with Image.open(path) as image:
                return {"pictures": np.asarray(image)[None]}

    def _generate(self, path: Path) -> list[str]:
        case, picture = self.job.case, self.job.picture
        options: dict[str, object] = {
            "-o": path,
            "--steps": picture.steps,
            "--guidance": picture.guidance,
            "--seed": picture.seed,
            "--height": case.height,
            "--width": case.width,
            "--threads": self.job.threads,
        }
        pairs = [str(word) for pair in options.items() for word in pair]
        return ["generate", self.job.engine, picture.prompt, *pairs]


def _arrays(images: Any) -> Arrays:
    import numpy as np

    return {"pictures": np.stack([np.asarray(image) for image in images])}
