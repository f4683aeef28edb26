"""Pictures on several devices at once: one process per device behind one queue."""

from __future__ import annotations

import inspect
import os
import threading
import warnings
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastdiff.call_size import check_shapes
from fastdiff.devices import Device, check_devices, device_name, share_threads
from fastdiff.engine_dir import Engine, file_sha256, open_engine
from fastdiff.errors import EngineMismatchError, FastdiffWarning, InputError
from fastdiff.feature_reuse import check_deep_cache
from fastdiff.inputs import call_table, default_sampler, unit_noise
from fastdiff.lora import Lora, Loras
from fastdiff.lora.interface import TakesLoras
from fastdiff.lora.loaded import LoadedLora
from fastdiff.pipeline import Pipeline
from fastdiff.preview import check_tiny
from fastdiff.progress import progress_bar
from fastdiff.prompts import NoPrompts, PromptOptions
from fastdiff.prompts.reader import PromptReader
from fastdiff.prompts.textual_inversion import Inversions
from fastdiff.request import Request, check_request, request_values
from fastdiff.result import Result, Timings, picture_metadata
from fastdiff.samplers import AdaptiveRun, Generator, Guidance, NoiseSchedule
from fastdiff.tasks.variations import Variation, check_variation
from fastdiff.workers.process import Crew, Job, Place
from fastdiff.workers.refused import OneDeviceTasks
from fastdiff.workers.wire import Message

__all__ = ["PipelinePool", "load_many"]

Array = NDArray[np.float32]


class PipelinePool(TakesLoras, OneDeviceTasks):
    """An engine open in one process per device. Called like a Pipeline, it gives the same pictures.

    The pictures of a call are a queue: whichever device is free takes the next ``batch`` of them. Their
    noise is that of the whole call, so that a seed gives the picture that a Pipeline gives, but for the
    rounding of kernels that sum in another order for another batch.

    An error in one process ends all, and the next call starts them again; so does ``close``. The processes
    end with this one in any case. Calls from several threads wait for each other.
    """

    def __init__(
        self, engine: Engine, devices: Sequence[Device], threads: int | None = None, batch: int = 1
    ) -> None:
        if batch < 1:
            raise InputError(f"batch is {batch}: it must be 1 or more")
        check_devices(engine.manifest, devices)
        self.engine = engine
        self.devices = tuple(devices)
        self.schedule = NoiseSchedule.from_config(engine.manifest.scheduler)
        self._reader = PromptReader(engine) if engine.manifest.model.takes_prompt else None
        self._batch = batch
        self._places = _places(engine, devices, threads)
        self._loras = Loras(lambda path: Lora(Path(path), _sha256(path), {}), self._try_loras)
        self._crew: Crew | None = None
        self._stop: weakref.finalize[[], PipelinePool] | None = None
        self._lock = threading.Lock()
        self._start()  # here: the first picture takes no longer than the second

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
        progress: bool = False,
        deep_cache: int | Mapping[str, Any] | None = None,
        vae: str | None = None,
        **others: Any,
    ) -> Result:
        """Generate ``num`` pictures of each prompt; arguments, result and errors are those of a Pipeline.

        ``progress`` draws a bar that counts pictures. The result's timings are those of all jobs one after
        the other, ``total`` is the time that the call took. A device that fails is named in the error.
        ``others`` are a Pipeline's options of prompts.
        """
        begin = perf_counter()
        prompt_options = {name: others.pop(name) for name in PromptOptions.__annotations__ if name in others}
        _refuse_control(others)
        manifest = self.engine.manifest
        request = check_request(
            manifest.model,
            prompt=prompt,
            negative=negative,
            steps=steps,
            sampler=default_sampler(manifest.scheduler) if sampler is None else sampler,
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
        variation = check_variation(variation_seed, variation_strength)
        jobs = self._jobs(request, latents, variation)
        task: dict[str, Any] = {"settings": variation.settings() if variation else {}}
        if latents is not None:
            task["latents"] = "given"  # the settings alone do not repeat the picture
        with self._lock:
            replies = self._run(jobs, progress)
        for text in dict.fromkeys(text for body, _ in replies for text in body["warnings"]):
            warnings.warn(text, FastdiffWarning, stacklevel=2)
        metadata = picture_metadata(
            request,
            self.engine.engine_hash,
            task,
            self._loras.records(),
            inversions=self._inversions(),
        )
        return _joined(replies, request.seed, metadata, begin)

    def load_textual_inversion(self, path: str | os.PathLike[str], token: str | None = None) -> str:
        """Load an embedding as a Pipeline does; the processes read the file when they are next called."""
        prompts = NoPrompts() if self._reader is None else self._reader
        return prompts.load(path, token).token

    def unload_textual_inversion(self, token: str | None = None) -> None:
        """Unload the embedding of a word, None: all. Raises InputError for one that is not loaded."""
        self._inversions().remove(token)

    def _inversions(self) -> Inversions:
        return (NoPrompts() if self._reader is None else self._reader).inversions

    def close(self) -> None:
        """End the processes. The next call starts them again."""
        with self._lock:
            self._end()

    def __enter__(self) -> PipelinePool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _try_loras(self, loras: Sequence[LoadedLora]) -> None:
        """Let a process have these LoRAs. Raises what a Pipeline does, with the device's name in front."""
        body = {"loras": [loaded.request() for loaded in loras], "request": None}
        with self._lock:
            self._run([Job(0, (body, {}))], progress=False)

    def _jobs(self, request: Request, latents: Array | None, variation: Variation | None) -> list[Job]:
        """The call in parts of ``batch`` pictures. Raises InputError for what the engine cannot compute."""
        check_shapes(self.engine, request.rows(range(min(self._batch, request.pictures))))
        table = call_table(self.schedule, request, latents is not None)
        if request.deep_cache is not None:
            adaptive = request.sampler if isinstance(table, AdaptiveRun) else None
            check_deep_cache(self.engine, adaptive, False)
        if request.vae is not None:
            check_tiny(self.engine.manifest.modules)
        start = unit_noise(self.engine.manifest.model, request, latents, Generator(request.seed))
        if variation is not None:
            if latents is not None:
                raise InputError("variation_seed beside latents: leave one of them out")
            start = variation.apply(start)
        if self._reader is not None:  # parts of the call are padded as the whole is
            chunks = self._reader.chunks(request)
            request = replace(request, text=replace(request.text, chunks=chunks))
        embeddings = [[str(each.path.resolve()), each.token, each.digest] for each in self._inversions()]
        jobs: list[Job] = []
        for begin in range(0, request.pictures, self._batch):
            rows = range(begin, min(begin + self._batch, request.pictures))
            part = request.rows(rows)
            noise = {"batch": request.pictures, "begin": begin, "drawn": latents is None}
            body = {
                "loras": self._loras.requests(),
                "embeddings": embeddings,
                "request": request_values(part),
                "noise": noise if table.stochastic else None,
            }
            jobs.append(Job(len(jobs), (body, {"latents": start[rows.start : rows.stop]})))
        return jobs

    def _run(self, jobs: list[Job], progress: bool) -> list[Message]:
        """Replies in the order of ``jobs``."""
        crew = self._crew or self._start()
        pictures = sum(_pictures(job.message) for job in jobs)
        bar = progress_bar(pictures, "picture", keep=True) if progress else None
        replies: dict[int, Message] = {}
        try:
            for job in jobs:
                crew.put(job)
            while len(replies) < len(jobs):
                index, reply = crew.next_result()
                replies[index] = reply
                if bar is not None:
                    bar.update(_pictures(reply))
        except BaseException:  # Ctrl-C too
            self._end()
            raise
        finally:
            if bar is not None:
                bar.close()
        return [replies[job.index] for job in jobs]

    def _start(self) -> Crew:
        """Start a process per device and wait until all have opened the engine."""
        crew = self._crew = Crew(self._places)
        self._stop = weakref.finalize(self, crew.stop)
        try:
            for _ in self._places:
                _, (opened, _) = crew.next_result()
                if opened["engine_hash"] != self.engine.engine_hash:
                    raise EngineMismatchError(f"{self.engine.path} was built again meanwhile: open it again")
        except BaseException:
            self._end()
            raise
        return crew

    def _end(self) -> None:
        if self._stop is not None:
            self._stop()
        self._crew = self._stop = None


def _refuse_control(given: Mapping[str, Any]) -> None:
    """Raises InputError for an option that only a Pipeline has, TypeError for one that nobody knows."""
    known = inspect.signature(Pipeline.__call__).parameters
    for name, value in given.items():
        if name not in known:
            raise TypeError(f"a pool has no argument {name!r}")
        if value is not None and value is not False:
            raise InputError(f"{name} on several devices at once: use one device, or leave it out")


def _pictures(message: Message) -> int:
    """How many pictures a job or its reply is about."""
    return len(message[1]["latents"]) if "latents" in message[1] else 0


def _sha256(path: str | os.PathLike[str]) -> str:
    try:
        return file_sha256(Path(path))
    except OSError as error:
        raise InputError(f"LoRA file {os.fspath(path)} cannot be read: {error.strerror}") from error


def _places(engine: Engine, devices: Sequence[Device], threads: int | None) -> list[Place]:
    """Names and opening requests; several processes on the CPU are numbered from 1."""
    path = str(engine.path.resolve())
    places = []
    for index, (device, share) in enumerate(zip(devices, share_threads(devices, threads), strict=True)):
        name = device_name(device)
        if devices.count(device) > 1:
            name = f"{name} worker {devices[: index + 1].count(device)}"
        places.append(Place(name, {"path": path, "threads": share, "device": device}))
    return places


def _joined(replies: list[Message], seed: int, metadata: list[dict[str, Any]], begin: float) -> Result:
    """The jobs' results as that of one call."""
    from PIL import Image

    timings = [body["timings"] for body, _ in replies]
    images = [Image.fromarray(pixels) for _, arrays in replies for pixels in arrays["pixels"]]
    latents = np.concatenate([arrays["latents"] for _, arrays in replies])
    joined = Timings(
        sum(timing["text_encoder"] for timing in timings),
        tuple(seconds for timing in timings for seconds in timing["steps"]),
        sum(timing["vae"] for timing in timings),
        perf_counter() - begin,
    )
    return Result(images, latents, seed, joined, metadata)


def load_many(
    path: str | os.PathLike[str], devices: Sequence[Device], threads: int | None = None, batch: int = 1
) -> PipelinePool:
    """Open the engine folder ``path`` on several devices at once, in a process for each.

    ``devices`` are numbers of GPUs, each once, or ``"cpu"``, as often as there shall be processes; these
    share ``threads``, None: every core. A device computes ``batch`` pictures at a time. Close the pool, or
    use it as a context, to free what the processes hold.

    This process imports no library of a vendor and uses no GPU. Raises EngineError, TargetError and
    InputError as ``load`` does.
    """
    return PipelinePool(open_engine(path, check_machine=False), devices, threads, batch)
