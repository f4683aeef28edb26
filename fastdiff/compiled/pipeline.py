"""A diffusers pipeline taken apart, its models compiled, and put together again with stand-ins for them."""

from __future__ import annotations

import copy
import importlib.util
import os
import shutil
import tempfile
import warnings
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastdiff.compiled.refused import refuse_methods
from fastdiff.config import YARDSTICKS, Precision, parse_precision
from fastdiff.errors import CaptureError, FastdiffWarning, InputError, OutputError, TargetError
from fastdiff.progress import progress_bar
from fastdiff.targets import default_precision, get_target, require_target, resolve_target

if TYPE_CHECKING:
    from fastdiff.compiled.engines import EngineSettings
    from fastdiff.compiled.specs import Part, Surroundings
    from fastdiff.targets import Session

__all__ = ["CompileReport", "compile"]


@dataclass(frozen=True)
class CompileReport:
    """What became of a pipeline's models; the compiled pipeline has it as ``pipe.fastdiff``.

    target     that the engines are of, with their precision
    precision  the same
    engines    the engine folders by module, such as ``vae_decoder``
    left       components that stay with PyTorch, with the reasons
    """

    target: str
    precision: Precision
    engines: dict[str, Path]
    left: dict[str, str]


def compile(
    pipe: Any,
    target: str = "auto",
    precision: str | Precision | None = None,
    cache: str | os.PathLike[str] | None = None,
    progress: bool = True,
    modules: Sequence[str] | None = None,
    height: int | None = None,
    width: int | None = None,
    batch: int = 1,
    threads: int | None = None,
) -> Any:
    """A copy of a diffusers pipeline whose U-Net, autoencoder, text encoders and ControlNets run on fastdiff.

    It is called as ``pipe`` is, which stays as it was; what surrounds the models (schedulers, image
    processors, callbacks) is diffusers' own code. ``target`` and ``precision`` are those of ``fastdiff
    build``; results have the dtype of ``pipe``. ``cache`` is a folder that keeps the engines, found again by
    the hash of weights and configs; None: a temporary one, which lives as long as the compiled pipeline.
    ``modules`` are the components to compile, None all that can be. ``height`` and ``width`` (picture pixels)
    and ``batch`` are what the engines are tuned for; other sizes run as well. ``threads`` None uses every
    core. ``progress`` draws a bar.

    Components that stay with PyTorch are named in a FastdiffWarning and, with the reasons, in
    ``compiled.fastdiff.left``. Raises InputError for a pipeline or an argument that cannot be used,
    TargetError, OutputError, VerificationError, and CaptureError for a component in ``modules``.
    """
    _check_arguments(pipe, modules, height, width, batch, threads)
    target = resolve_target(target)
    precision = default_precision(target) if precision is None else parse_precision(precision)
    if not get_target(target).NEEDS_GRAPH:
        raise InputError(f"target {target!r} is what the pipeline runs on already: use native or onnxruntime")
    require_target(target, precision)
    return _Compilation(pipe, target, precision, progress, modules, height, width, batch).run(cache, threads)


def _check_arguments(
    pipe: Any, modules: Sequence[str] | None, height: Any, width: Any, batch: Any, threads: Any
) -> None:
    for library in ("torch", "diffusers", "transformers"):
        if importlib.util.find_spec(library) is None:
            raise TargetError(f"compile needs {library}: install it with: pip install 'fastdiff[build]'")
    from diffusers import DiffusionPipeline

    if not isinstance(pipe, DiffusionPipeline):
        raise InputError(f"compile takes a diffusers pipeline, found {type(pipe).__name__}: use fastdiff.load"
                         " for an engine folder")  # fmt: skip
    if hasattr(pipe, "fastdiff"):
        raise InputError("the pipeline was compiled already: compile the original again")
    if isinstance(modules, str):
        raise InputError(f"modules is {modules!r}: give a list of component names")
    components = _models(pipe)
    for name in modules or ():
        if name not in components:
            raise InputError(
                f"the pipeline has no component {name!r} with weights; it has {', '.join(components)}"
            )
    for label, value in {"height": height, "width": width, "batch": batch, "threads": threads}.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise InputError(f"{label} is {value!r}: give a whole number of 1 or more")


def _models(pipe: Any) -> dict[str, Any]:
    """The components of a pipeline that have weights."""
    from torch import nn

    return {name: value for name, value in pipe.components.items() if isinstance(value, nn.Module)}


class _Compilation:
    """One call of ``compile``."""

    def __init__(
        self,
        pipe: Any,
        target: str,
        precision: Precision,
        progress: bool,
        modules: Sequence[str] | None,
        height: int | None,
        width: int | None,
        batch: int,
    ) -> None:
        self._pipe = pipe
        self._target = target
        self._precision = precision
        self._progress = progress
        self._modules = modules
        self._models = _models(pipe)
        self._around = self._surroundings(height, width, batch)
        self._engines: dict[str, Path] = {}
        self._left: dict[str, str] = {}

    def run(self, cache: str | os.PathLike[str] | None, threads: int | None) -> Any:
        from fastdiff.compiled.engines import STAGES, EngineSettings

        chosen = self._chosen()
        if not chosen:
            reasons = "; ".join(f"{name} {reason}" for name, reason in self._left.items())
            raise InputError(f"nothing of this {type(self._pipe).__name__} can be compiled: {reasons}")
        folder = Path(tempfile.mkdtemp(prefix="fastdiff-")) if cache is None else _made(cache)
        settings = EngineSettings(self._target, self._precision, folder, threads)
        bar = progress_bar(len(chosen) * len(STAGES), "stage", keep=False) if self._progress else None
        try:
            places = {
                name: place
                for index, name in enumerate(chosen)
                if (place := self._place(name, settings, bar, index * len(STAGES))) is not None
            }
            compiled = self._assembled(places)
        except BaseException:
            if cache is None:
                shutil.rmtree(folder, ignore_errors=True)
            raise
        finally:
            if bar is not None:
                bar.close()
        if cache is None:
            weakref.finalize(compiled, shutil.rmtree, folder, ignore_errors=True)
        return compiled

    def _surroundings(self, height: int | None, width: int | None, batch: int) -> Surroundings:
        from fastdiff.compiled.specs import Surroundings

        vae = next((self._models[name] for name in ("vae", "vqvae") if name in self._models), None)
        second = self._models.get("text_encoder_2")
        blocks: Any = ()
        if vae is not None:
            blocks = (
                vae.config.get("block_out_channels") or vae.config.get("encoder_block_out_channels") or ()
            )
        return Surroundings(
            residuals="controlnet" in self._models,
            pooled=int(getattr(getattr(second, "config", None), "projection_dim", 0) or 0),
            scores=bool(self._pipe.config.get("requires_aesthetics_score")),
            height=height,
            width=width,
            batch=batch,
            factor=2 ** (len(blocks) - 1) if blocks else 1,
            any_sides=getattr(get_target(self._target), "ANY_SIDES", False),
        )

    def _chosen(self) -> list[str]:
        """The components to compile. Raises InputError for one that was asked for and cannot be."""
        from fastdiff.compiled.reasons import why_not

        chosen = []
        for name, model in self._models.items():
            if self._modules is not None and name not in self._modules:
                self._left[name] = "was not asked for"
                continue
            reason = next((reason for net in _nets(model) if (reason := why_not(net)) is not None), None)
            if reason is None and name == "unet" and "adapter" in self._models:
                reason = "takes the features of a T2I-Adapter, which fastdiff has no inputs for"
            if reason is None:
                chosen.append(name)
            elif self._modules is not None:
                raise InputError(f"{name} {reason}")
            else:
                self._left[name] = reason
        return chosen

    def _place(self, name: str, settings: EngineSettings, bar: Any, done: int) -> Any:
        """What takes the component's place; None where it stays."""
        from fastdiff.compiled import stand_ins

        model = self._models[name]
        nets = _nets(model)
        try:
            opened = [
                self._opened(_numbered(name, index), net, settings, bar, done)
                for index, net in enumerate(nets)
            ]
        except CaptureError as error:
            if self._modules is not None:
                raise
            self._left[name] = f"cannot be captured ({error})"
            return None
        if nets != [model]:
            places = []
            for index, (net, sessions) in enumerate(zip(nets, opened, strict=True)):
                (session,) = sessions.values()
                places.append(stand_ins.controlnet(_numbered(name, index), session, net))
            return stand_ins.several(model, places)
        (sessions,) = opened
        kind = type(model).__name__
        if kind in ("AutoencoderKL", "AutoencoderTiny", "VQModel"):
            halves = {label.rpartition("_")[2]: session for label, session in sessions.items()}
            return stand_ins.autoencoder(name, halves, model)
        (session,) = sessions.values()
        if kind == "ControlNetModel":
            return stand_ins.controlnet(name, session, model)
        make = stand_ins.text_encoder if kind.startswith("CLIP") else stand_ins.unet
        return make(name, session, model)

    def _opened(
        self, name: str, model: Any, settings: EngineSettings, bar: Any, done: int
    ) -> dict[str, Session]:
        """The sessions of a component's modules."""
        from fastdiff.compiled.engines import STAGES, open_part, weights_digest
        from fastdiff.compiled.specs import parts_of

        digest = weights_digest(model)
        # verification rounds the weights that it compares with
        parts: list[Part] = parts_of(name, model, self._around, self._precision in YARDSTICKS)
        sessions = {}
        for part in parts:

            def announce(stage: str, fraction: float, label: str = part.spec.name) -> None:
                if bar is not None:
                    share = f" {fraction:.0%}" if fraction else ""
                    bar.set_description(f"{label}: {stage}{share}", refresh=False)
                    bar.update(max(0, done + STAGES.index(stage) - bar.n))
                    bar.refresh()

            session, path = open_part(part, digest, settings, announce)
            sessions[part.spec.name] = session
            self._engines[name if part.spec.name == "unet" else part.spec.name] = path
        return sessions

    def _assembled(self, places: dict[str, Any]) -> Any:
        """A pipeline of the same class with these components; the others are shared, the scheduler is not."""
        compiled = copy.copy(self._pipe)
        compiled.__dict__.update(places)
        for name, value in self._pipe.components.items():
            if type(value).__name__.endswith("Scheduler"):
                compiled.__dict__[name] = copy.deepcopy(value)
        refuse_methods(compiled)
        compiled.__dict__["fastdiff"] = CompileReport(
            self._target, self._precision, self._engines, self._left
        )
        asked = {name: reason for name, reason in self._left.items() if reason != "was not asked for"}
        if asked:
            named = "; ".join(f"{name} {reason}" for name, reason in asked.items())
            warnings.warn(f"left to PyTorch: {named}", FastdiffWarning, stacklevel=4)
        return compiled


def _nets(model: Any) -> list[Any]:
    """The networks of a component: several ControlNets are one component."""
    return list(model.nets) if type(model).__name__ == "MultiControlNetModel" else [model]


def _numbered(name: str, index: int) -> str:
    return f"{name}_{index + 1}" if index else name


def _made(cache: str | os.PathLike[str]) -> Path:
    folder = Path(cache)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputError(f"cache {folder} cannot be made ({reason}): give another folder") from error
    return folder
