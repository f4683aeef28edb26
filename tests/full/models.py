"""The full-size models, the bars that they are held to, and what a machine needs for them."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["FULL", "FullModel"]


@dataclass(frozen=True)
class FullModel:
    """One published configuration.

    peak      largest resident memory of a build, as a multiple of the weights in float32
    more      anonymous memory of one more pipeline after a picture, the same: activations, no weights
    memory    GiB of memory that the machine must have available, for the build and for diffusers' pipeline
    disk      GiB for checkpoint, engine and the results of PyTorch
    pictures  sides in pixels, height first, of pictures that are compared with diffusers; empty: none
    sizes     batch, height and width in pixels at which single modules are compared, beyond what a build does
    sampler   fastdiff's name and diffusers' class; None: the checkpoint's own
    steps     steps of a picture
    guidance  guidance scale
    task      what the model draws, of ``calls.TASKS``
    file      whether one file in the layout of the model's own code is a known kind without its configs
    """

    peak: float
    memory: int
    disk: int
    pictures: tuple[tuple[int, int], ...] = ((256, 256),)
    sizes: tuple[tuple[int, int, int], ...] = ()
    sampler: tuple[str | None, str | None] = ("euler", "EulerDiscreteScheduler")
    steps: int = 3
    guidance: float = 5.0
    task: str = "generate"
    file: bool = True
    more: float = 0.25
    modules: tuple[str, ...] = field(default=("text_encoder", "unet", "vae_decoder"))


_SMALL = 2.5 + 0.6
"""As others, and what the libraries hold, 0.7 GB, which is much beside weights of 1.2 GB."""

FULL = {
    # one engine for 512², 768×512 and 1024², for batches of 1 to 4, and for 65×49 latents, odd on every level
    "sd15": FullModel(
        peak=2.5,
        memory=12,
        disk=18,
        pictures=((256, 256), (512, 512), (512, 768), (392, 520)),
        sizes=(
            *((batch, 512, 512) for batch in (1, 2, 3, 4)),
            *((1, 512, 768), (1, 1024, 1024), (1, 392, 520)),
        ),
    ),
    "sd21": FullModel(
        peak=2.5, memory=12, disk=20, pictures=((256, 256),), sampler=("ddim", "DDIMScheduler")
    ),
    "sd15-inpainting": FullModel(peak=2.5, memory=12, disk=18, task="inpaint"),
    "lcm-sd15": FullModel(
        peak=2.5, memory=12, disk=18, sampler=("lcm", "LCMScheduler"), guidance=8.0, file=False
    ),
    "sdxl": FullModel(
        peak=1.6, memory=22, disk=48, pictures=((512, 512), (1024, 1024)), sizes=((1, 1024, 1024),)
    ),
    "sdxl-refiner": FullModel(
        peak=1.6,
        memory=18,
        disk=36,
        pictures=((512, 512),),
        task="img2img",
        modules=("text_encoder_2", "unet", "vae_decoder"),
    ),
    "x4-upscaler": FullModel(  # its U-Net's latents are as large as those of SD's at 1024²
        peak=2.5,
        more=0.4,
        memory=12,
        disk=12,
        pictures=((512, 512),),
        sampler=(None, None),
        task="upscale",
        file=False,
    ),
    "ldm-celebahq-256": FullModel(
        peak=_SMALL,
        more=0.5,
        memory=6,
        disk=6,
        sampler=(None, None),
        task="unconditional",
        file=False,
        modules=("unet", "vae_decoder", "vae_quantizer"),
    ),
    "cd-imagenet64": FullModel(
        peak=_SMALL,
        memory=6,
        disk=6,
        pictures=((64, 64),),
        sampler=(None, None),
        steps=2,
        task="classes",
        file=False,
        modules=("unet",),
    ),
    "ddpm-cifar10-32": FullModel(
        peak=10.0,  # 0.14 GB of weights and 0.7 of libraries
        memory=6,
        disk=2,
        pictures=((32, 32),),
        sampler=(None, None),
        steps=8,
        task="unconditional",
        file=False,
        modules=("unet",),
    ),
}
"""By the names of ``families.files_of``."""
