"""Capture: one ``torch.export`` per module, with symbolic batch, height, width and token count.

The ExportedProgram keeps high-level ATen operators and is the only intermediate form: passes rewrite it and
targets lower it.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from fastdiff.build.modules import ModuleSpec, random_inputs
from fastdiff.config import SizeRange, TensorSpec
from fastdiff.errors import CaptureError

__all__ = ["CapturedModule", "capture", "run_eager"]

_LARGEST_CAPTURED_BATCH = 63
"""diffusers' upsampling makes a copy from a batch of 64 on. The result is the same, so the graph of smaller
batches serves every batch; only the capture must be told to stay below."""


@dataclass(frozen=True)
class CapturedModule:
    """A module before compilation: its spec, the eager module, and its graph once captured.

    ``eager`` takes and returns tensors as the spec says (several outputs as a tuple). ``source`` is the
    library's own module, for the target that runs it as it is; ``program`` is None for such a target.
    """

    spec: ModuleSpec
    eager: nn.Module
    source: Any
    program: ExportedProgram | None = None

    @property
    def name(self) -> str:
        """The module's name in the engine."""
        return self.spec.name

    def with_program(self, program: ExportedProgram) -> CapturedModule:
        """The same module with another graph."""
        return replace(self, program=program)


def capture(module: CapturedModule) -> CapturedModule:
    """Export ``module.eager`` with the symbolic sizes of its spec. Raises CaptureError.

    The example sizes differ from each other and are never 1, which the exporter would take for a constant.
    """
    spec = module.spec
    dims = {symbol: _dim(spec, symbol) for symbol in spec.shapes}
    dynamic = tuple(
        {
            axis: _scaled(dims, factor, symbol)
            for axis, (factor, symbol) in enumerate(tensor.factors())
            if symbol is not None
        }
        for tensor in spec.inputs
    )
    arrays = random_inputs(spec, _example_sizes(spec), seed=0)
    inputs = tuple(torch.from_numpy(arrays[tensor.name]) for tensor in spec.inputs)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.export.export(module.eager, inputs, dynamic_shapes=dynamic, strict=False)
    except Exception as error:  # the exporter raises many types of its own
        reason = " ".join(str(error).split())[:300]
        raise CaptureError(f"{spec.name} cannot be captured with symbolic sizes: {reason}") from error
    return module.with_program(program)


def run_eager(
    module: nn.Module,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    arrays: Mapping[str, NDArray[Any] | Tensor],
) -> dict[str, NDArray[Any]]:
    """Run a torch module on arrays, or tensors; the outputs by name, as arrays, floating ones in float32."""
    with torch.inference_mode():
        device = next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
        results = module(*(_tensor(arrays[tensor.name], device) for tensor in inputs))
    tensors = (results,) if isinstance(results, Tensor) else tuple(results)
    return {
        tensor.name: np.asarray((value.float() if value.is_floating_point() else value).cpu().numpy())
        for tensor, value in zip(outputs, tensors, strict=True)
    }


def _tensor(array: NDArray[Any] | Tensor, device: torch.device) -> Tensor:
    """The array on a device. PyTorch knows no read-only memory and warns of it."""
    if isinstance(array, np.ndarray) and not array.flags.writeable:
        array = array.copy()
    return torch.as_tensor(array, device=device)


def _dim(spec: ModuleSpec, symbol: str) -> tuple[int, Any]:
    """The exporter's dimension, as a number of blocks and how long a block is."""
    size = spec.shapes[symbol]
    maximum = size.maximum
    if symbol == "batch":
        maximum = min(maximum or _LARGEST_CAPTURED_BATCH, _LARGEST_CAPTURED_BATCH)
    if size.multiple_of == 1:
        return 1, Dim(symbol, min=size.minimum, max=maximum)
    blocks = Dim(
        f"{symbol}_blocks",
        min=size.minimum // size.multiple_of,
        max=maximum and maximum // size.multiple_of,
    )
    return size.multiple_of, blocks


def _scaled(dims: dict[str, tuple[int, Any]], factor: int | Fraction, symbol: str) -> Any:
    """A dimension that is ``factor`` times a size; a part of one must be a whole number of its blocks."""
    multiple, blocks = dims[symbol]
    whole = factor * multiple
    if whole != int(whole):
        raise ValueError(f"{factor} times {symbol}, a multiple of {multiple}, need not be a whole number")
    return blocks if whole == 1 else int(whole) * blocks


def _example_sizes(spec: ModuleSpec) -> dict[str, int]:
    small = {"batch": 2, "tokens": 7, "height": 6, "width": 10, "image_tokens": 3}
    return {
        symbol: min(_example(small[symbol], size), size.maximum or 10**9)
        for symbol, size in spec.shapes.items()
    }


def _example(small: int, allowed: SizeRange) -> int:
    """A size that stays apart from others when both are halved."""
    size = small * allowed.multiple_of
    return size if size >= allowed.minimum else allowed.minimum + small
