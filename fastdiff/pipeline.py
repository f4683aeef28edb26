"""An engine folder as a function from prompts to pictures.

::

    prompt ─tokenizer─▶ input_ids ─text_encoder─▶ encoder_hidden_states ─┐
    seed ─Generator─▶ latents ─× init_noise_sigma─▶ sampler loop ◀─unet──┘
                                                        └─▶ latents ÷ scaling_factor ─vae_decoder─▶ pictures

Semantics are those of ``diffusers.StableDiffusionPipeline`` with one generator: same seed, same picture.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastdiff.denoise import Denoiser, SplitDenoiser, run_table
from fastdiff.devices import Device, check_devices, default_device, share_threads
from fastdiff.engine_dir import Engine, open_engine
from fastdiff.errors import FastdiffWarning, InputError
from fastdiff.inputs import default_sampler
from fastdiff.prompts import PromptEncoder
from fastdiff.request import Request, check_request
from fastdiff.result import Result, Timings, picture_metadata
from fastdiff.samplers import Callback, Guidance, NoiseSchedule, NoiseSource
from fastdiff.tasks.methods import Tasks
from fastdiff.tasks.plan import Plan
from fastdiff.tasks.text_to_image import check_from_noise, text_to_image
from fastdiff.tokenizer import ClipTokenizer
from fastdiff.vae import Vae

if TYPE_CHECKING:
    from fastdiff.targets.session import Session

__all__ = ["Pipeline", "Result", "Timings", "load"]

Array = NDArray[np.float32]

_NEEDED = ("text_encoder", "unet", "vae_decoder")


class Modules(Mapping[str, "Session"]):
    """The engine's modules by name, each opened when it is first asked for."""

    def __init__(
        self, engine: Engine, threads: int | None, device: Device | None, unet_threads: int | None
    ) -> None:
        self._engine = engine
        self._threads = threads
        self._device = device
        self._unet_threads = unet_threads
        self._open: dict[str, Session] = {}

    def __getitem__(self, name: str) -> Session:
        if name not in self._engine.manifest.modules:
            raise KeyError(name)
        if name not in self._open:
            threads = self._unet_threads if name == "unet" else self._threads
            self._open[name] = self._engine.open_module(name, threads, self._device)
        return self._open[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._engine.manifest.modules)

    def __len__(self) -> int:
        return len(self._engine.manifest.modules)

    def close(self) -> None:
        while self._open:
            self._open.popitem()[1].close()


class Pipeline(Tasks):
    """Text and pictures to pictures on an open engine. ``modules[name](**arrays)`` runs a single module.

    With a ``guidance_device`` the unconditional half of guidance runs there, beside the conditional half.
    """

    def __init__(
        self,
        engine: Engine,
        threads: int | None = None,
        device: Device | None = None,
        guidance_device: Device | None = None,
    ) -> None:
        self.engine = engine
        self._others: Modules | None = None
        own_threads = threads
        if guidance_device is not None:
            device = default_device(engine.manifest) if device is None else device
            check_devices(engine.manifest, (device, guidance_device))
            own_threads, threads_beside = share_threads((device, guidance_device), threads)
            self._others = Modules(engine, threads, guidance_device, threads_beside)
            self._others["unet"]
        self.modules = Modules(engine, threads, device, own_threads)
        self.schedule = NoiseSchedule.from_config(engine.manifest.scheduler)
        self.prompts = PromptEncoder(engine, self.modules)
        self.vae = Vae(engine.manifest.model, self.modules, engine.manifest.modules)
        for name in _NEEDED:
            self.modules[name]  # opened here: the first picture takes no longer than the second

    def __call__(
        self,
        prompt: str | list[str],
        *,
        negative: str | list[str] = "",
        steps: int = 20,
        sampler: str | None = None,
        guidance: float | Guidance | dict[str, Any] = 5.0,
        seed: int | None = None,
        num: int = 1,
        height: int | None = None,
        width: int | None = None,
        eta: float | None = None,
        sampler_options: Mapping[str, Any] | None = None,
        latents: Array | None = None,
        variation_seed: int | None = None,
        variation_strength: float | None = None,
        denoising_end: float | None = None,
        output: str = "pictures",
        callback: Callback | None = None,
        progress: bool = False,
    ) -> Result:
        """Generate ``num`` pictures of each prompt.

        ``sampler`` None is the checkpoint's own; ``seed`` None draws one, which the result holds; ``height``
        and ``width`` are in pixels, None being the engine's default. ``guidance`` is the scale of
        classifier-free guidance, up to 1 of which skips the unconditional half, or a `Guidance` with another
        method, an interval or a schedule, also as the dict in a picture's metadata. ``eta`` is η, the share
        of fresh noise, None being the sampler's own. ``sampler_options`` replace entries of the checkpoint's
        scheduler config, such as ``{"use_karras_sigmas": True}``; ``fastdiff samplers NAME`` lists them.
        ``latents``, float32 [pictures, channels, h, w] of unit variance, replaces the drawn noise.
        ``variation_strength``, 0 to 1, leads the noise towards that of ``variation_seed``. ``denoising_end``
        stops after that share of the way; with ``output`` "latents", which decodes nothing, another model can
        go on (``img2img``).
        ``callback(step, total, latents)`` is called after each evaluation of the U-Net, ``step`` counting
        from 1; copy the latents to keep them. ``progress`` draws a bar.
        Raises InputError for a value that cannot be used and NumericError when NaN or infinity comes out.
        Warns (FastdiffWarning) of a prompt that was cut and of a negative prompt without guidance.
        """
        request = check_request(
            self.engine.manifest.model,
            prompt=prompt,
            negative=negative,
            steps=steps,
            sampler=self.default_sampler() if sampler is None else sampler,
            guidance=guidance,
            seed=seed,
            num=num,
            height=height,
            width=width,
            eta=eta,
            sampler_options=sampler_options,
        )
        options = check_from_noise(denoising_end, output, variation_seed, variation_strength)
        plan = text_to_image(self, request, latents, None, options)
        return self.carry_out(request, plan, callback, progress)

    def run(
        self,
        request: Request,
        latents: Array | None = None,
        noise: NoiseSource | None = None,
        callback: Callback | None = None,
        progress: bool = False,
    ) -> Result:
        """A checked call. ``noise`` is what a stochastic sampler draws from, None: the seed's generator."""
        return self.carry_out(request, text_to_image(self, request, latents, noise), callback, progress)

    def carry_out(
        self, request: Request, plan: Plan, callback: Callback | None = None, progress: bool = False
    ) -> Result:
        """A call that a task has planned: prompt, steps, pictures."""
        from fastdiff.image import to_images

        if self.engine.manifest.model.condition_channels and "condition" not in plan.conditions:
            raise InputError("this model paints parts of a picture: use inpaint with a picture and a mask")
        embed_begin = time.perf_counter()
        denoise = self._denoiser(request, plan)
        embedded = time.perf_counter()
        final, seconds = run_table(
            plan.table, denoise, plan.start, request, plan.source, callback, progress, plan.edit
        )
        decode_begin = time.perf_counter()
        images, task = [], dict(plan.task)
        if plan.output == "pictures":
            images = to_images(self.vae.decode(final))
            images = images if plan.finish is None else plan.finish(images)
            task["vae"] = self.vae.way
        end = time.perf_counter()
        timings = Timings(embedded - embed_begin, seconds, end - decode_begin, end - plan.begin)
        metadata = picture_metadata(request, self.engine.engine_hash, task)
        return Result(images, final, request.seed, timings, metadata)

    @property
    def splits_guidance(self) -> bool:
        """Whether the halves of guidance run on devices of their own."""
        return self._others is not None

    @property
    def tokenizer(self) -> ClipTokenizer:
        """The tokenizer of the first text encoder."""
        return self.prompts.tokenizer

    def default_sampler(self) -> str:
        """The sampler that the checkpoint's scheduler config names. Raises InputError when there is none."""
        return default_sampler(self.engine.manifest.scheduler)

    def close(self) -> None:
        """Free the modules. The pipeline opens them again when it is called."""
        self.modules.close()
        if self._others is not None:
            self._others.close()
        self.prompts.forget()

    def _denoiser(self, request: Request, plan: Plan) -> Denoiser | SplitDenoiser:
        """The U-Net with the conditions of the call."""
        branches = [{**branch, **plan.conditions} for branch in self.prompts.branches(request)]
        if len(branches) == 1:
            self._warn_without_guidance(request)
            return Denoiser(self.modules["unet"], branches[0], None)
        if self._others is not None:
            return SplitDenoiser(self.modules["unet"], self._others["unet"], *branches)
        return Denoiser(self.modules["unet"], *branches)

    def _warn_without_guidance(self, request: Request) -> None:
        for given, what in (
            (any(request.negatives), "the negative prompt"),
            (self._others is not None, "the device for the other half of guidance"),
        ):
            if given:
                warnings.warn(
                    f"{what} has no effect with guidance {request.scale:g}: use more than 1",
                    FastdiffWarning,
                    stacklevel=5,
                )


def load(
    path: str | os.PathLike[str],
    threads: int | None = None,
    device: Device | None = None,
    guidance_device: Device | None = None,
) -> Pipeline:
    """Open the engine folder ``path`` for generating pictures; ``threads`` None uses every core.

    ``device`` is the number of a GPU or ``"cpu"``, None: GPU 0 for an engine that needs one.
    ``guidance_device`` is a second one for the unconditional half of guidance: a picture takes little more
    than half the time. Both may be ``"cpu"``, and share the threads.

    Raises EngineError (missing, damaged, of another format version, built for another machine), TargetError
    (what the engine needs is not installed or there is no such GPU) or InputError (``threads``, a device of
    another kind than the engine's).
    """
    return Pipeline(open_engine(path, device=device), threads, device, guidance_device)
