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
from collections.abc import Mapping, Sequence
from typing import Any, Unpack

import numpy as np
from numpy.typing import NDArray

from fastdiff.assemble import check_call, make_denoiser
from fastdiff.control.request import ControlRequest, check_control
from fastdiff.denoise import run_table
from fastdiff.devices import Device, check_devices, default_device, share_threads
from fastdiff.engine_dir import Engine, open_engine
from fastdiff.errors import InputError
from fastdiff.inputs import default_sampler
from fastdiff.lora import Loras, read_lora, stack
from fastdiff.lora.interface import TakesLoras
from fastdiff.lora.loaded import LoadedLora
from fastdiff.modules import Modules
from fastdiff.preview import LatentColours, Preview, decode_tiny
from fastdiff.prompts import NoPrompts, PromptEncoder, PromptOptions
from fastdiff.request import Request, check_request
from fastdiff.result import Result, Timings, picture_metadata
from fastdiff.samplers import Callback, Guidance, NoiseSchedule, NoiseSource
from fastdiff.tasks.methods import Tasks
from fastdiff.tasks.plan import Plan
from fastdiff.tasks.text_to_image import check_from_noise, text_to_image
from fastdiff.tokenizer import ClipTokenizer
from fastdiff.vae import Vae
from fastdiff.watch import Watch

__all__ = ["Pipeline", "Result", "Timings", "load"]

Array = NDArray[np.float32]

_UNUSED = ("vae_encoder",)
"""Modules that a picture from noise does not need."""


class Pipeline(TakesLoras, Tasks):
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
        prompted = engine.manifest.model.takes_prompt
        self.prompts = PromptEncoder(engine, self.modules) if prompted else NoPrompts()
        self.vae = Vae(engine.manifest.model, self.modules, engine.manifest.modules)
        self.latent_colours: LatentColours | None = None
        for name in engine.manifest.modules:
            if name not in _UNUSED:
                self.modules[name]  # opened here: the first picture takes no longer than the second
        modules = self.modules
        self._loras = Loras(lambda file: read_lora(file, modules.adaptable()), self._apply_loras)

    def __call__(
        self,
        prompt: str | list[str] | None = None,
        *,
        negative: str | list[str] = "",
        steps: int = 20,
        sampler: str | None = None,
        guidance: float | Guidance | dict[str, Any] | None = None,
        seed: int | None = None,
        num: int = 1,
        height: int | None = None,
        width: int | None = None,
        eta: float | None = None,
        sampler_options: Mapping[str, Any] | None = None,
        class_label: int | list[int] | None = None,
        latents: Array | None = None,
        variation_seed: int | None = None,
        variation_strength: float | None = None,
        denoising_end: float | None = None,
        output: str = "pictures",
        callback: Callback | None = None,
        progress: bool = False,
        control_image: Any = None,
        control_scale: float | Sequence[float] | None = None,
        control_start: float | Sequence[float] | None = None,
        control_end: float | Sequence[float] | None = None,
        guess_mode: bool = False,
        adapter_image: Any = None,
        adapter_scale: float | Sequence[float] | None = None,
        adapter_end: float | None = None,
        ip_image: Any = None,
        ip_scale: float | None = None,
        ip_embeds: NDArray[np.float32] | None = None,
        deep_cache: int | Mapping[str, Any] | None = None,
        vae: str | None = None,
        preview: Preview | None = None,
        preview_every: int = 1,
        **prompt_options: Unpack[PromptOptions],
    ) -> Result:
        """Generate ``num`` pictures of each prompt, or of none with an engine that takes no prompt.

        ``sampler`` None is the checkpoint's own; ``seed`` None draws one, which the result holds; ``height``
        and ``width`` are in pixels, None being the engine's default. ``guidance`` is the scale of
        classifier-free guidance, up to 1 of which skips the unconditional half, or a `Guidance` with another
        method, an interval or a schedule, also as the dict in a picture's metadata. None is 5, or 8.5 for a
        model that is told the scale (latent consistency models) and computes no unconditional half. ``eta``
        is η, the share of fresh noise, None being the sampler's own. ``sampler_options`` replace entries of
        the checkpoint's scheduler config, such as ``{"use_karras_sigmas": True}``; ``fastdiff samplers NAME``
        lists them. ``class_label`` is the class of all pictures, or a list with one for each, of a model that
        knows classes. ``latents``, float32 [pictures, channels, h, w] of unit variance, replaces the drawn
        noise. ``variation_strength``, 0 to 1, leads it towards that of ``variation_seed``. ``denoising_end``
        stops after that share of the way; with ``output`` "latents", which decodes nothing, another model can
        go on (``img2img``). ``callback(step, total, latents)`` is called after each evaluation of the U-Net,
        ``step`` counting from 1; copy the latents to keep them. ``progress`` draws a bar. ``prompt_options``
        say how prompts are read, such as ``clip_skip=1``, and what SDXL is told of the picture: see
        `PromptOptions` and docs/prompts.md.

        On an engine with ControlNets ``control_image`` is what they follow: a file's name, a Pillow image or
        an array of uint8, or a list with one for each prompt; with several ControlNets a list with such an
        entry for each, None for one that is not used. ``control_scale`` (1) is how strongly,
        ``control_start`` (0) and ``control_end`` (1) between which shares of the steps, each one number or a
        list; ``guess_mode`` controls the half with the prompt alone. ``adapter_image`` and ``adapter_scale``
        are the same for T2I-Adapters, which are there up to the share ``adapter_end`` (1) of the steps.
        ``ip_image``, one picture or several, is what the IP-Adapter makes the result like, with the weight
        ``ip_scale`` (1); ``ip_embeds``, [pictures, …], are features of the image encoder instead. Pictures
        are resized to the call's size, for the IP-Adapter to the image encoder's.

        ``deep_cache`` N evaluates the whole U-Net in every N-th step and its outermost layers in those
        between, on an engine that was built for it ([docs/approximations.md](approximations.md)); fields of a
        `DeepCache` space the whole ones unevenly. ``vae`` "tiny" decodes with the engine's tiny autoencoder.
        ``preview(step, total, pictures)`` is called after every ``preview_every``-th evaluation and after the
        last, with pictures of the clean latents that the model then expects: of the tiny autoencoder, or
        without one a pixel for each latent.

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
            class_label=class_label,
            deep_cache=deep_cache,
            vae=vae,
            **prompt_options,
        )
        control = check_control(
            self.engine.manifest.model,
            request,
            {
                "control_image": control_image,
                "control_scale": control_scale,
                "control_start": control_start,
                "control_end": control_end,
                "guess_mode": guess_mode,
                "adapter_image": adapter_image,
                "adapter_scale": adapter_scale,
                "adapter_end": adapter_end,
                "ip_image": ip_image,
                "ip_scale": ip_scale,
                "ip_embeds": ip_embeds,
            },
        )
        watch = Watch(callback, progress, preview, preview_every)
        options = check_from_noise(denoising_end, output, variation_seed, variation_strength)
        plan = text_to_image(self, request, latents, None, options)
        return self.carry_out(request, plan, watch, control)

    def run(
        self,
        request: Request,
        latents: Array | None = None,
        noise: NoiseSource | None = None,
        callback: Callback | None = None,
    ) -> Result:
        """A checked call. ``noise`` is what a stochastic sampler draws from, None: the seed's generator."""
        plan = text_to_image(self, request, latents, noise)
        return self.carry_out(request, plan, Watch(callback))

    def carry_out(
        self,
        request: Request,
        plan: Plan,
        watch: Watch | None = None,
        control: ControlRequest | None = None,
    ) -> Result:
        """A call that a task has planned: prompt, steps, pictures."""
        with self._loras.held():
            return self._carry_out(request, plan, watch or Watch(), control or ControlRequest())

    def _carry_out(self, request: Request, plan: Plan, watch: Watch, control: ControlRequest) -> Result:
        from fastdiff.image import to_images

        check_call(self, request, plan, watch, control)
        embed_begin = time.perf_counter()
        denoise = make_denoiser(self, request, plan, watch, control)
        embedded = time.perf_counter()
        scales = {f"LoRA {name!r} at": scale for name, scale in self._loras.scales.items() if scale != 0}
        final, seconds = run_table(
            plan.table,
            denoise,
            plan.start,
            request,
            plan.source,
            watch.callback,
            watch.progress,
            plan.edit,
            {**scales, **{option: scale for option, _, scale in control.scales()}},
        )
        decode_begin = time.perf_counter()
        images, task = [], dict(plan.task)
        if plan.output == "pictures":
            if request.vae is None:
                images = to_images(self.vae.decode(final))
                task["vae"] = self.vae.way
            else:
                images = to_images(decode_tiny(self.modules, final))
            images = images if plan.finish is None else plan.finish(images)
        end = time.perf_counter()
        timings = Timings(embedded - embed_begin, seconds, end - decode_begin, end - plan.begin)
        metadata = picture_metadata(
            request, self.engine.engine_hash, task, self._loras.records(), control, self.prompts.inversions
        )
        return Result(images, final, request.seed, timings, metadata)

    def match_loras(self, requests: list[dict[str, Any]]) -> None:
        """Have the LoRAs of another pipeline; ``Loras.requests`` gives its own."""
        self._loras.match(requests)

    @property
    def splits_guidance(self) -> bool:
        """Whether the halves of guidance run on devices of their own."""
        return self._others is not None

    @property
    def other_modules(self) -> Modules | None:
        """Those on the device for the other half of guidance."""
        return self._others

    @property
    def tokenizer(self) -> ClipTokenizer:
        """The tokenizer of the first text encoder."""
        return self.prompts.tokenizer

    def load_textual_inversion(self, path: str | os.PathLike[str], token: str | None = None) -> str:
        """Load an embedding of textual inversion, a ``.safetensors`` file; returns the word that stands for
        it in prompts: ``token``, or where that is None the one that the file names, else the file's own name.

        Raises InputError for a file that is none, vectors of another width than the text encoder's, and a
        word that is taken.
        """
        return self.prompts.load(path, token).token

    def unload_textual_inversion(self, token: str | None = None) -> None:
        """Unload the embedding of a word, None: all. Raises InputError for one that is not loaded."""
        self.prompts.inversions.remove(token)

    def default_sampler(self) -> str:
        """The sampler that the checkpoint's scheduler config names. Raises InputError when there is none."""
        return default_sampler(self.engine.manifest.scheduler)

    def close(self) -> None:
        """Free the modules. The pipeline opens them again when it is called.

        Raises InputError while a picture is made, in a callback or by another thread.
        """
        if self._loras.in_use:
            raise InputError("the pipeline is closed while a picture is made: close it when the call is over")
        self.modules.close()
        if self._others is not None:
            self._others.close()
        self.prompts.forget()

    def _apply_loras(self, loras: Sequence[LoadedLora]) -> None:
        """Give the modules of both devices their updates, or neither."""
        updates = stack((loaded.lora, loaded.scale) for loaded in loras)
        self.prompts.forget()
        before = self.modules.updates
        self.modules.set_adapters(updates)
        if self._others is not None:
            try:
                self._others.set_adapters(updates)
            except BaseException:
                self.modules.set_adapters(before)
                raise


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
