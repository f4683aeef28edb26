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
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastdiff.conditioning import call_conditions
from fastdiff.control.control import add_control_inputs, control_predict
from fastdiff.control.request import ControlRequest, check_control
from fastdiff.deep_cache import FeatureReuse, check_deep_cache
from fastdiff.denoise import Denoiser, SplitDenoiser, evaluated, run_table
from fastdiff.devices import Device, check_devices, default_device, share_threads
from fastdiff.engine_dir import Engine, open_engine
from fastdiff.errors import FastdiffWarning, InputError
from fastdiff.inputs import default_sampler
from fastdiff.lora import Loras, Shapes, read_lora, stack
from fastdiff.lora.interface import TakesLoras
from fastdiff.lora.loaded import LoadedLora
from fastdiff.lora.stack import Updates
from fastdiff.lora.update import MODULES as LORA_MODULES
from fastdiff.prompts import NoPrompts, PromptEncoder
from fastdiff.request import Request, check_request
from fastdiff.result import Result, Timings, picture_metadata
from fastdiff.samplers import AdaptiveRun, Callback, Guidance, NoiseSchedule, NoiseSource, StepTable
from fastdiff.tasks.methods import Tasks
from fastdiff.tasks.plan import Plan
from fastdiff.tasks.text_to_image import check_from_noise, text_to_image
from fastdiff.tokenizer import ClipTokenizer
from fastdiff.vae import Vae

if TYPE_CHECKING:
    from fastdiff.targets.session import Session

__all__ = ["Pipeline", "Result", "Timings", "load"]

Array = NDArray[np.float32]

_UNUSED = ("vae_encoder",)
"""Modules that a picture from noise does not need."""


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
        self.updates: Mapping[str, Updates] = {}

    def __getitem__(self, name: str) -> Session:
        if name not in self._engine.manifest.modules:
            raise KeyError(name)
        if name not in self._open:
            threads = self._unet_threads if name == "unet" else self._threads
            session = self._engine.open_module(name, threads, self._device)
            if name in self.updates:
                session.set_adapters(self.updates[name])
            self._open[name] = session
        return self._open[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._engine.manifest.modules)

    def __len__(self) -> int:
        return len(self._engine.manifest.modules)

    def adaptable(self) -> Shapes:
        """Shapes of the weights that LoRAs may update, by module. Raises TargetError."""
        return {name: self[name].adaptable() for name in LORA_MODULES if name in self}

    def set_adapters(self, updates: Mapping[str, Updates]) -> None:
        """Give each module its updates, those that are not named none; also when it is opened again.

        Raises what a session's ``set_adapters`` does, and all is as it was then.
        """
        before, self.updates = self.updates, updates
        changed = [
            name for name in LORA_MODULES if name in self._open and (name in before or name in updates)
        ]
        try:
            for name in changed:
                self._open[name].set_adapters(updates.get(name, {}))
        except BaseException:
            self.updates = before
            for name in changed:
                self._open[name].set_adapters(before.get(name, {}))
            raise

    def close(self) -> None:
        while self._open:
            self._open.popitem()[1].close()


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
        ``step`` counting from 1; copy the latents to keep them. ``progress`` draws a bar.

        On an engine with ControlNets ``control_image`` is what they follow: a file's name, a Pillow image or
        an array of uint8, or a list with one for each prompt; with several ControlNets a list with such an
        entry for each, None for one that is not used. ``control_scale`` (1) is how strongly,
        ``control_start`` (0) and ``control_end`` (1) between which shares of the steps, each one number or a
        list; ``guess_mode`` controls the half with the prompt alone. ``adapter_image`` and ``adapter_scale``
        are the same for T2I-Adapters, which are there up to the share ``adapter_end`` (1) of the steps.
        ``ip_image``, one picture or several, is what the IP-Adapter makes the result like, with the weight
        ``ip_scale`` (1); ``ip_embeds``, [pictures, …], are features of the image encoder instead. Pictures
        are resized to the call's size, for the IP-Adapter to the image encoder's.

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
        options = check_from_noise(denoising_end, output, variation_seed, variation_strength)
        plan = text_to_image(self, request, latents, None, options)
        return self.carry_out(request, plan, callback, progress, control)

    def run(
        self,
        request: Request,
        latents: Array | None = None,
        noise: NoiseSource | None = None,
        callback: Callback | None = None,
        progress: bool = False,
        control: ControlRequest | None = None,
    ) -> Result:
        """A checked call. ``noise`` is what a stochastic sampler draws from, None: the seed's generator."""
        plan = text_to_image(self, request, latents, noise)
        return self.carry_out(request, plan, callback, progress, control)

    def carry_out(
        self,
        request: Request,
        plan: Plan,
        callback: Callback | None = None,
        progress: bool = False,
        control: ControlRequest | None = None,
    ) -> Result:
        """A call that a task has planned: prompt, steps, pictures."""
        from fastdiff.image import to_images

        if self.engine.manifest.model.condition_channels and "condition" not in plan.conditions:
            raise InputError("this model paints parts of a picture: use inpaint with a picture and a mask")
        control = control or ControlRequest()
        adaptive = isinstance(plan.table, AdaptiveRun)
        self._check_control(control, plan.table)
        if request.deep_cache is not None:
            check_deep_cache(self.engine, request.sampler if adaptive else None, self._others is not None)
        embed_begin = time.perf_counter()
        evaluations = None if isinstance(plan.table, AdaptiveRun) else plan.table.evaluations
        denoise = self._denoiser(request, plan, control, evaluations)
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
        metadata = picture_metadata(request, self.engine.engine_hash, task, self._loras.records(), control)
        return Result(images, final, request.seed, timings, metadata)

    def match_loras(self, requests: list[dict[str, Any]]) -> None:
        """Have the LoRAs of another pipeline; ``Loras.requests`` gives its own."""
        self._loras.match(requests)

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
        self, request: Request, plan: Plan, control: ControlRequest, evaluations: int | None
    ) -> Denoiser | SplitDenoiser:
        """The U-Net with the conditions of the call."""
        own = {**call_conditions(self.engine.manifest.model, request), **plan.conditions}
        branches = [{**branch, **own} for branch in self.prompts.branches(request)]
        model, unet = self.engine.manifest.model, self.modules["unet"]
        add_control_inputs(model, self.modules, request, control, branches)
        predict = control_predict(model, self.modules, request, control, evaluated(unet))
        if request.deep_cache is not None and evaluations is not None:
            if predict is not None:
                raise InputError(
                    "deep_cache with a control_image, or with adapter_end below 1: what changes from step to"
                    " step reaches the features that are kept; leave one of them out"
                )
            full = request.deep_cache.full(evaluations)
            predict = FeatureReuse(unet, self.modules["unet_shallow"], full)
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

    def _warn_without_guidance(self, request: Request) -> None:
        for given, what in (
            (any(request.negatives), "the negative prompt"),
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
