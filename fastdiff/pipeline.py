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
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Unpack

import numpy as np
from numpy.typing import NDArray

from fastdiff.conditioning import call_conditions
from fastdiff.control.control import add_control_inputs, control_predict
from fastdiff.control.request import ControlRequest, check_control
from fastdiff.deep_cache import SHALLOW, FeatureReuse, check_deep_cache
from fastdiff.denoise import Denoiser, Evaluation, Predict, SplitDenoiser, evaluated, run_table
from fastdiff.devices import Device, check_devices, default_device, share_threads
from fastdiff.engine_dir import Engine, open_engine
from fastdiff.errors import FastdiffWarning, InputError
from fastdiff.inputs import call_table, check_shapes, default_sampler, unit_noise
from fastdiff.lora import Loras, read_lora, stack
from fastdiff.lora.interface import TakesLoras
from fastdiff.lora.loaded import LoadedLora
from fastdiff.modules import Modules
from fastdiff.preview import LatentColours, Preview, Previewer, check_preview, check_tiny, decode_tiny
from fastdiff.prompts import NoPrompts, PromptEncoder, PromptOptions
from fastdiff.request import Request, check_request
from fastdiff.result import Result, Timings, picture_metadata
from fastdiff.samplers import (
    AdaptiveRun,
    Callback,
    Generator,
    Guidance,
    NoiseSchedule,
    NoiseSource,
    StepTable,
)
from fastdiff.tokenizer import ClipTokenizer
from fastdiff.vae import Vae

__all__ = ["Pipeline", "Result", "Timings", "load"]

Array = NDArray[np.float32]

_UNUSED = ("vae_encoder",)
"""Modules that a picture from noise does not need."""


class Pipeline(TakesLoras):
    """Text to pictures on an open engine. ``modules[name](**arrays)`` runs a single module.

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
        self.vae = Vae(engine.manifest.model, self.modules)
        self._colours: LatentColours | None = None
        for name in engine.manifest.modules:
            if name not in _UNUSED:
                self.modules[name]  # opened here: the first picture takes no longer than the second
        self._loras = Loras(lambda file: read_lora(file, self.modules.adaptable()), self._apply_loras)

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
        noise. ``callback(step, total, latents)`` is called after each evaluation of the U-Net, ``step``
        counting from 1; copy the latents to keep them. ``progress`` draws a bar. ``prompt_options`` say how
        prompts are read, such as ``clip_skip=1``, and what SDXL is told of the picture: see `PromptOptions`
        and docs/prompts.md.

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
            **prompt_options,
            vae=vae,
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
        return self.run(request, latents, None, callback, progress, control, preview, preview_every)

    def run(
        self,
        request: Request,
        latents: Array | None = None,
        noise: NoiseSource | None = None,
        callback: Callback | None = None,
        progress: bool = False,
        control: ControlRequest | None = None,
        preview: Preview | None = None,
        preview_every: int = 1,
    ) -> Result:
        """A checked call. ``noise`` is what a stochastic sampler draws from, None: the seed's generator."""
        from fastdiff.image import to_images

        begin = time.perf_counter()
        check_shapes(self.engine, request, self._others is not None)
        table = call_table(self.schedule, request, latents is not None)
        adaptive = request.sampler if isinstance(table, AdaptiveRun) else None
        control = control or ControlRequest()
        self._check_control(control, table)
        if request.deep_cache is not None:
            check_deep_cache(self.engine, adaptive, self._others is not None)
        if preview is not None:
            check_preview(preview, preview_every, self.schedule, adaptive, self._others is not None)
        if request.vae is not None:
            check_tiny(self.modules)
        generator = Generator(request.seed)
        start = unit_noise(self.engine.manifest.model, request, latents, generator)
        start = start * np.float32(table.init_noise_sigma)

        embed_begin = time.perf_counter()
        evaluations = None if isinstance(table, AdaptiveRun) else table.evaluations
        denoise = self._denoiser(request, control, evaluations, preview, preview_every)
        embedded = time.perf_counter()
        source = generator if noise is None else noise
        final, seconds = run_table(table, denoise, start, request, source, callback, progress)
        decode_begin = time.perf_counter()
        tiny = request.vae is not None
        images = to_images(decode_tiny(self.modules, final) if tiny else self.vae.decode(final))
        end = time.perf_counter()
        timings = Timings(embedded - embed_begin, seconds, end - decode_begin, end - begin)
        metadata = picture_metadata(
            request,
            self.engine.engine_hash,
            latents is not None,
            self._loras.records(),
            control,
            self.prompts.inversions,
        )
        return Result(images, final, request.seed, timings, metadata)

    def match_loras(self, requests: list[dict[str, Any]]) -> None:
        """Have the LoRAs of another pipeline; ``Loras.requests`` gives its own."""
        self._loras.match(requests)

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
        """Free the modules. The pipeline opens them again when it is called."""
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

    def _denoiser(
        self,
        request: Request,
        control: ControlRequest,
        evaluations: int | None,
        preview: Preview | None,
        preview_every: int,
    ) -> Denoiser | SplitDenoiser:
        """The U-Net with the conditions of the call."""
        own = call_conditions(self.engine.manifest.model, request)
        branches = [{**branch, **own} for branch in self.prompts.branches(request)]
        model, unet = self.engine.manifest.model, self.modules["unet"]
        add_control_inputs(model, self.modules, request, control, branches)
        predict: Predict | None = control_predict(model, self.modules, request, control, evaluated(unet))
        if request.deep_cache is not None and evaluations is not None:
            if predict is not None:
                raise InputError(
                    "deep_cache with a control_image, or with adapter_end below 1: what changes from step to"
                    " step reaches the features that are kept; leave one of them out"
                )
            full = request.deep_cache.full(evaluations)
            predict = FeatureReuse(unet, self.modules[SHALLOW], full)
        if preview is not None:
            predict = Previewer(
                preview,
                preview_every,
                self._whole if predict is None else predict,
                self._decode_preview(),
                self.schedule,
                request.scale,
                request.pictures,
            )
        if len(branches) == 1:
            self._warn_without_guidance(request)
            return Denoiser(unet, branches[0], None, predict=predict)
        if self._others is not None:
            return SplitDenoiser(unet, self._others["unet"], *branches)
        return Denoiser(unet, *branches, predict=predict)

    def _check_control(self, control: ControlRequest, table: StepTable | AdaptiveRun) -> None:
        """Raises InputError for control that this call's sampler or devices cannot have."""
        if control.changes and self._others is not None:
            raise InputError(
                "control_image, or adapter_end below 1, with a device for the other half of guidance: the"
                " halves need each step's control together; leave the second device out"
            )
        if control.counts and isinstance(table, AdaptiveRun):
            raise InputError(
                f"control_start, control_end or adapter_end with sampler {table.sampler!r}, which chooses its"
                " own steps: leave them out, or use another sampler"
            )

    def _whole(self, evaluation: Evaluation, inputs: dict[str, Any]) -> Array:
        """The U-Net alone, as a Predict."""
        output: Array = self.modules["unet"](**inputs)["sample"]
        return output

    def _decode_preview(self) -> Callable[[Array], Array]:
        """The tiny autoencoder, or colours of latents, which are worked out when they are first wanted."""
        if "preview_decoder" in self.modules:
            return lambda latents: decode_tiny(self.modules, latents)
        if self._colours is None:
            self._colours = LatentColours(self.vae, self.engine.manifest.model, self.modules["vae_decoder"])
        return self._colours

    def _warn_without_guidance(self, request: Request) -> None:
        for given, what in (
            (any(request.negatives), "the negative prompt"),
            (any(request.text.negatives_2 or ()), "negative_2"),
            (bool(request.sizes.negative), ", ".join(request.sizes.negative)),
            (self._others is not None, "the device for the other half of guidance"),
        ):
            if given:
                way = "the model is told the scale" if request.embedded else "use more than 1"
                warnings.warn(
                    f"{what} has no effect with guidance {request.scale:g}: {way}",
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
