"""Compare compiled modules with PyTorch on random inputs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastdiff.build.capture import CapturedModule, run_eager
from fastdiff.build.checkpoint import Checkpoint, load_checkpoint
from fastdiff.build.modules import ModuleSpec, module_spec, random_inputs
from fastdiff.config import TOLERANCES, ModelSpec, Precision
from fastdiff.engine_dir import Engine
from fastdiff.errors import EngineMismatchError, VerificationError
from fastdiff.targets import Session

__all__ = ["ModuleError", "measure", "verification_sizes", "verify_engine"]


@dataclass(frozen=True)
class ModuleError:
    """Largest error over all outputs and sizes: relative L2 norm, and absolute."""

    relative_l2: float
    max_abs: float

    def check(self, name: str, precision: Precision) -> None:
        """Raises VerificationError when the error is over the precision's tolerance."""
        tolerance = TOLERANCES[precision]
        if not self.relative_l2 <= tolerance:  # also true for NaN
            raise VerificationError(
                f"{name}: relative L2 error against PyTorch is {self.relative_l2:.2e}, allowed in"
                f" {precision.value} is {tolerance:.0e}: report this, and build with --target torch meanwhile"
            )


def verification_sizes(spec: ModuleSpec, model: ModelSpec) -> list[dict[str, int]]:
    """The sizes that a module is verified at: those of its use, and others that share none of them.

    Guidance doubles the batch of the text encoder and the U-Net.
    """
    height = model.default_height // model.vae_scale_factor
    width = model.default_width // model.vae_scale_factor
    block = spec.shapes["height"].multiple_of if "height" in spec.shapes else 1
    guided = 2 if spec.name in ("text_encoder", "unet") else 1
    usual = {
        "batch": guided * model.default_batch,
        "height": height,
        "width": width,
        "tokens": model.max_tokens,
    }
    other = {
        "batch": 1 if usual["batch"] > 1 else 3,
        "height": max(spec.shapes["height"].minimum, block * 3) if "height" in spec.shapes else 1,
        "width": max(spec.shapes["width"].minimum, block * 5) if "width" in spec.shapes else 1,
        "tokens": max(1, model.max_tokens // 2),
    }
    return [{symbol: sizes[symbol] for symbol in spec.shapes} for sizes in (usual, other)]


def measure(module: CapturedModule, session: Session, model: ModelSpec, vocab_size: int) -> ModuleError:
    """Error of a session against the eager module, over all ``verification_sizes``."""
    spec = module.spec
    errors: list[ModuleError] = []
    for seed, sizes in enumerate(verification_sizes(spec, model), start=1):
        arrays = random_inputs(spec, sizes, seed, vocab_size)
        expected = run_eager(module.eager, spec.inputs, spec.outputs, arrays)
        results = session(**arrays)
        errors += [_error(results[name], expected[name]) for name in expected]
    return ModuleError(
        max(_nan_last(e.relative_l2 for e in errors)), max(_nan_last(e.max_abs for e in errors))
    )


def _error(result: NDArray[Any], expected: NDArray[Any]) -> ModuleError:
    if result.shape != expected.shape:
        return ModuleError(math.inf, math.inf)
    difference = np.asarray(result, np.float64) - expected
    norm = float(np.linalg.norm(np.asarray(expected, np.float64)))
    relative = float(np.linalg.norm(difference)) / max(norm, float(np.finfo(np.float32).tiny))
    return ModuleError(relative, float(np.abs(difference).max()))


def _nan_last(values: Any) -> list[float]:
    """NaN as infinity, so that it is the largest."""
    return [math.inf if math.isnan(value) else value for value in values]


def verify_engine(engine: Engine, checkpoint: str | Path | None = None) -> dict[str, ModuleError]:
    """Measure every module of an engine against PyTorch again; the errors by module name.

    ``checkpoint`` is a folder or shipped name; None means the shipped model that the engine was built from,
    and an empty result when it was built from a folder (the hashes were checked when it was opened).
    Raises EngineMismatchError for another checkpoint than the engine's and VerificationError for an error
    over the tolerance.
    """
    recorded = engine.manifest.provenance.get("checkpoint", {})
    if checkpoint is None:
        if not recorded.get("shipped"):
            return {}
        checkpoint = str(recorded.get("name"))
    source = load_checkpoint(checkpoint)
    found, wanted = source.sha256(), recorded.get("sha256")
    if found != wanted:
        raise EngineMismatchError(
            f"{engine.path} was built from another checkpoint ({str(wanted)[:12]}) than {checkpoint}"
            f" ({found[:12]}): give the one it was built from, or build again"
        )
    return {name: _verify_module(engine, name, source) for name in engine.manifest.modules}


def _verify_module(engine: Engine, name: str, checkpoint: Checkpoint) -> ModuleError:
    model = engine.manifest.model
    try:
        spec = module_spec(name, model)
    except ValueError:
        raise EngineMismatchError(f"{engine.path}: module {name} is not known to this fastdiff") from None
    part = checkpoint.load(spec.part)
    with engine.open_module(name) as session:
        error = measure(CapturedModule(spec, spec.wrap(part), part), session, model, checkpoint.vocab_size)
    error.check(name, engine.entry(name).precision)
    return error
