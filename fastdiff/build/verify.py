"""Compare compiled modules with PyTorch on random inputs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fastdiff.build.capture import CapturedModule, run_eager
from fastdiff.build.checkpoint import Checkpoint, load_checkpoint
from fastdiff.build.control import add_control
from fastdiff.build.memory import release
from fastdiff.build.modules import ModuleSpec, module_spec, random_inputs
from fastdiff.build.modules.tiny_autoencoder import PREVIEW, PREVIEW_PART
from fastdiff.config import TOLERANCES, YARDSTICKS, ModelSpec, Precision, SizeRange
from fastdiff.engine_dir import Engine
from fastdiff.errors import EngineMismatchError, VerificationError
from fastdiff.manifest import ModuleEntry
from fastdiff.targets import Session, computes_in, runs_on_gpu

__all__ = [
    "Expected",
    "ModuleError",
    "expect",
    "measure",
    "verification_device",
    "verification_sizes",
    "verify_engine",
]

Arrays = dict[str, NDArray[Any]]
"""Outputs of a module by name."""


@dataclass(frozen=True)
class ModuleError:
    """Largest error over all outputs and sizes: relative L2 norm, and absolute; and the norm allowed."""

    relative_l2: float
    max_abs: float
    allowed: float

    def check(self, name: str, precision: Precision) -> None:
        """Raises VerificationError when the error is over what is allowed."""
        if not self.relative_l2 <= self.allowed:  # also true for NaN
            raise VerificationError(
                f"{name}: relative L2 error against PyTorch is {self.relative_l2:.2e}, allowed in"
                f" {precision.value} is {self.allowed:.0e}: report this, and build with --target torch"
                " meanwhile"
            )


_ONCE = ("vae", "t2i_adapter", "image_encoder", "ip_adapter")
"""Parts that guidance gives no second half."""


def verification_sizes(spec: ModuleSpec, model: ModelSpec) -> list[dict[str, int]]:
    """The sizes that a module is verified at: those of its use, and others that share none of them.

    Guidance doubles the batch of the text encoder and the U-Net. Where the spec's ranges end, so do the
    sizes.
    """
    height = model.default_height // model.vae_scale_factor
    width = model.default_width // model.vae_scale_factor
    guided = 1 if spec.part in _ONCE or spec.name.endswith("_embedding") else 2
    tokens = model.control.ip_adapter.tokens if model.control.ip_adapter is not None else 1
    usual = {
        "batch": guided * model.default_batch,
        "height": height,
        "width": width,
        "tokens": model.max_tokens,
        "image_tokens": tokens,
    }
    other = {
        "batch": 1 if usual["batch"] > 1 else 3,
        # Of a U-Net for any sides the coarsest level and all others are odd: 17 is halved to 9, 5 and 3.
        "height": _longer(spec, "height", 1),
        "width": _longer(spec, "width", 2),
        "tokens": max(1, model.max_tokens // 2),
        "image_tokens": 2 * tokens,
    }
    return [
        {symbol: _within(sizes[symbol], allowed) for symbol, allowed in spec.shapes.items()}
        for sizes in (usual, other)
    ]


def _longer(spec: ModuleSpec, symbol: str, times: int) -> int:
    """The next size behind so many times the least one."""
    allowed = spec.shapes.get(symbol, SizeRange())
    return times * allowed.minimum + allowed.multiple_of


def _within(size: int, allowed: SizeRange) -> int:
    """The size, or the end of its range that is nearest."""
    return max(allowed.minimum, size if allowed.maximum is None else min(size, allowed.maximum))


def verification_device(entry: ModuleEntry) -> str:
    """Where PyTorch runs to be compared with a module: on the GPU if the module does and PyTorch can."""
    return "cuda" if runs_on_gpu(entry) and torch.cuda.is_available() else "cpu"


@dataclass(frozen=True)
class Expected:
    """What PyTorch computes of a module at its ``verification_sizes``: inputs and outputs of each, and the
    relative L2 error that a session may have against them.
    """

    inputs: tuple[dict[str, Any], ...]
    outputs: tuple[Arrays, ...]
    allowed: float


def expect(
    module: CapturedModule,
    model: ModelSpec,
    vocab_size: int,
    precision: Precision,
    computes: bool = False,
    device: str = "cpu",
    sizes: Sequence[dict[str, int]] | None = None,
) -> Expected:
    """Run the eager module. Nothing of it is kept, so that it can go before a session opens.

    ``sizes`` None stands for the ``verification_sizes``. ``computes`` says that the session's target computes
    in ``precision``, so that the yardstick is PyTorch doing the same; otherwise it is PyTorch in float32 with
    rounded weights. For a precision with a yardstick the eager module stays changed: a copy would double the
    memory that a large model takes. ``device`` is where the eager module runs, in float32 without TF32.
    """
    spec = module.spec
    module.eager.to(device)
    inputs = tuple(
        random_inputs(spec, sizes, seed, vocab_size)
        for seed, sizes in enumerate(sizes or verification_sizes(spec, model), start=1)
    )
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        expected = [run_eager(module.eager, spec.inputs, spec.outputs, arrays) for arrays in inputs]
    allowed = TOLERANCES[Precision.FP32]
    if precision in YARDSTICKS:
        given = list(inputs)
        if computes:
            module.eager.to(_TYPES[precision])
            given = [_rounded_inputs(arrays, _TYPES[precision]) for arrays in inputs]
        else:
            _round_weights(module.eager, _TYPES[precision])
        rounded = [run_eager(module.eager, spec.inputs, spec.outputs, arrays) for arrays in given]
        allowed = max(allowed, YARDSTICKS[precision] * _largest(rounded, expected)[0])
    return Expected(inputs, tuple(expected), allowed)


def measure(session: Session, expected: Expected) -> ModuleError:
    """Error of a session over all sizes."""
    found = [session(**arrays) for arrays in expected.inputs]
    return ModuleError(*_largest(found, expected.outputs), expected.allowed)


def _round_weights(module: nn.Module, dtype: torch.dtype) -> None:
    """Round the matrices and kernels of a module to 16 bits, which is what a file holds as halves."""
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.dim() > 1:
                parameter.copy_(parameter.to(dtype))


_TYPES = {Precision.FP16: torch.float16, Precision.BF16: torch.bfloat16}


def _rounded_inputs(arrays: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """The arrays as a pipeline in half precision passes them: all in it but token ids and timesteps."""
    return {
        name: torch.from_numpy(array).to(dtype) if array.ndim > 1 and array.dtype == np.float32 else array
        for name, array in arrays.items()
    }


def _largest(results: Sequence[Arrays], expected: Sequence[Arrays]) -> tuple[float, float]:
    """Largest relative L2 error and largest absolute error of all outputs at all sizes."""
    pairs = [
        _error(result[name], wanted[name])
        for result, wanted in zip(results, expected, strict=True)
        for name in wanted
    ]
    relative, absolute = zip(*pairs, strict=True)
    return max(_nan_last(relative)), max(_nan_last(absolute))


def _error(result: NDArray[Any], expected: NDArray[Any]) -> tuple[float, float]:
    if result.shape != expected.shape:
        return math.inf, math.inf
    difference = np.asarray(result, np.float64) - expected
    norm = float(np.linalg.norm(np.asarray(expected, np.float64)))
    relative = float(np.linalg.norm(difference)) / max(norm, float(np.finfo(np.float32).tiny))
    return relative, float(np.abs(difference).max())


def _nan_last(values: Any) -> list[float]:
    """NaN as infinity, so that it is the largest."""
    return [math.inf if math.isnan(value) else value for value in values]


def verify_engine(
    engine: Engine, checkpoint: str | Path | Checkpoint | None = None, **control: Any
) -> dict[str, ModuleError]:
    """Measure every module of an engine against PyTorch again; the errors by module name.

    ``checkpoint`` is a folder or shipped name; None means the shipped model that the engine was built from,
    and an empty result when it was built from a folder (the hashes were checked when it was opened).
    ``control`` is what the engine was built with for fastdiff.build.control.add_control.
    Raises EngineMismatchError for another checkpoint than the engine's and VerificationError for an error
    over the tolerance.
    """
    recorded = engine.manifest.provenance.get("checkpoint", {})
    if checkpoint is None:
        if not recorded.get("shipped"):
            return {}
        checkpoint = str(recorded.get("name"))
    source = checkpoint if isinstance(checkpoint, Checkpoint) else load_checkpoint(checkpoint)
    found, wanted = source.sha256(), recorded.get("sha256")
    if found != wanted:
        raise EngineMismatchError(
            f"{engine.path} was built from another checkpoint ({str(wanted)[:12]}) than {source.name}"
            f" ({found[:12]}): give the one it was built from, or build again"
        )
    source = _with_control(engine, source, control)
    modules = [name for name in engine.manifest.modules if name != PREVIEW or _has_preview(source)]
    return {name: _verify_module(engine, name, source) for name in modules}


def _has_preview(checkpoint: Checkpoint) -> bool:
    """Whether a checkpoint has a tiny autoencoder of its own; others are compared at the build alone."""
    return (checkpoint.path / PREVIEW_PART).is_dir()


def _with_control(engine: Engine, source: Checkpoint, control: dict[str, Any]) -> Checkpoint:
    """The checkpoint with the networks that the engine has. Raises EngineMismatchError for others."""
    if any(control.values()):
        source = add_control(source, **control)
    wanted = engine.manifest.provenance.get("control", {})
    found = source.additions.sha256() if source.additions is not None else {}
    for part in (*wanted, *found):
        if found.get(part) != wanted.get(part):
            given, built = (str(hashes.get(part, "none"))[:12] for hashes in (found, wanted))
            raise EngineMismatchError(
                f"{engine.path} was built with another {part} ({built}) than is given ({given}): give the one"
                f" it was built with, as --{part.rstrip('_0123456789').replace('_', '-')}"
            )
    return source


def _verify_module(engine: Engine, name: str, checkpoint: Checkpoint) -> ModuleError:
    model = engine.manifest.model
    try:
        spec = module_spec(name, model)
    except ValueError:
        raise EngineMismatchError(f"{engine.path}: module {name} is not known to this fastdiff") from None
    part, precision = checkpoint.load(spec.part), engine.entry(name).precision
    spec = replace(spec, shapes=engine.entry(name).shapes)
    computes = computes_in(engine.entry(name).target, precision)
    device = verification_device(engine.entry(name))
    module = CapturedModule(spec, spec.wrap(part), part)
    expected = expect(module, model, checkpoint.vocab_size, precision, computes, device)
    del module, part
    release()
    with engine.open_module(name) as session:
        error = measure(session, expected)
    error.check(name, precision)
    return error
