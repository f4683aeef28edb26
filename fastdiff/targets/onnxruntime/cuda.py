"""Modules on ONNX Runtime's CUDA provider: buffers on the device that stay, and one CUDA graph per shape.

::

    arrays ─▶ Bindings.run ─ known shapes? ─▶ their buffers (LRU) ─ changed? copy in ─▶ run or replay
                                                                                             │
    arrays ◀──────────────────────────────────────────────────────────────── copy out ◀──────┘

Everything that touches the device goes through :class:`Device`, so that the rest runs on any machine.
"""

from __future__ import annotations

import contextlib
import io
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fastdiff.config import TensorSpec
from fastdiff.errors import InputError, TargetError

__all__ = [
    "MOST_PARAMETERS",
    "MOST_SHAPES",
    "PROVIDER",
    "Bindings",
    "Device",
    "OrtDevice",
    "open_session",
    "output_shapes",
    "provider_options",
]

Array = NDArray[Any]
_Shapes = tuple[tuple[int, ...], ...]

PROVIDER = "CUDAExecutionProvider"

MOST_SHAPES = 8
"""Sets of input shapes whose buffers and graphs a session keeps."""

MOST_PARAMETERS = 2
"""Sets of shapes of the parameters whose buffers a session keeps: of two LoRAs, each with the graphs of its
ranks."""

_WARM_RUNS = 1
"""Runs of a shape before its graph is captured: one that is run once is not worth a graph, and cuDNN's search
and the arena's growth cannot be captured."""


def provider_options(device: int = 0, stream: int | None = None, graphs: bool = True) -> dict[str, str]:
    """Options of the CUDA provider.

    ``stream`` is the address of the CUDA stream to work on, such as PyTorch's
    ``torch.cuda.current_stream().cuda_stream``; None gives the session one of its own. Sums of norms stay
    float32, and float32 is not rounded to TF32. With ``graphs``, ONNX Runtime refuses a model of which
    anything but the arithmetic of shapes would fall back to the CPU.

    Raises InputError for graphs on CUDA's default stream, which cannot be captured.
    """
    if graphs and stream == 0:
        raise InputError(
            "stream is 0, CUDA's default stream: it cannot be captured as a graph, give another one, such as"
            " torch.cuda.Stream().cuda_stream"
        )
    options = {
        "device_id": str(device),
        "arena_extend_strategy": "kSameAsRequested",
        "cudnn_conv_algo_search": "EXHAUSTIVE",
        "cudnn_conv_use_max_workspace": "1",
        "do_copy_in_default_stream": "1",
        "enable_cuda_graph": "1" if graphs else "0",
        "enable_skip_layer_norm_strict_mode": "1",
        "use_tf32": "0",
    }
    if stream is not None:
        options["user_compute_stream"] = str(stream)
    return options


class Device(Protocol):
    """What :class:`Bindings` needs of a runtime: values on the device, and runs on bound values."""

    names: list[str]
    """Of the model's inputs, in the order in which they are bound."""

    def value(self, shape: tuple[int, ...], dtype: str) -> Any:
        """Memory for an array, on the device; its address never changes."""

    def write(self, value: Any, array: Array) -> None:
        """Copy an array into such memory."""

    def read(self, value: Any) -> Array:
        """Copy such memory into an array, once what was run on it is done."""

    def bind(self, inputs: list[Any], outputs: list[Any]) -> Any:
        """A binding of the model's inputs and outputs to values."""

    def run(self, binding: Any, graph: int | None) -> None:
        """Run on a binding: as graph number ``graph``, captured at its first run, or without one."""

    def forget(self, graph: int) -> None:
        """Give back what graph number ``graph`` holds, if it was captured."""

    def close(self) -> None:
        """Give the model back, with its weights. Nothing else can be asked for afterwards."""


@dataclass
class _Bound:
    """Buffers of one set of input shapes."""

    inputs: list[Any]
    outputs: list[Any]
    binding: Any
    graph: int
    runs: int = 0
    held: dict[int, Array] = field(default_factory=dict)
    """Copies of the inputs that are on the device, by position, for those that rarely change."""


class Bindings:
    """Runs a model on buffers that stay on the device, of which it keeps those of the latest shapes.

    ``output_shapes`` gives the outputs' shapes for the arrays of a call. ``kept`` are positions of inputs
    that are the same in many calls, like a prompt's embeddings: they are copied to the device only when
    their values change. Graphs are captured with ``graphs``; each belongs to the buffers of its shape.

    The model may have inputs behind those of a call, its parameters, which all calls have in common.
    """

    def __init__(
        self,
        device: Device,
        outputs: tuple[TensorSpec, ...],
        output_shapes: Callable[[list[Array]], list[tuple[int, ...]]],
        kept: frozenset[int] = frozenset(),
        graphs: bool = True,
        most_shapes: int = MOST_SHAPES,
    ) -> None:
        self._device = device
        self._outputs = outputs
        self._output_shapes = output_shapes
        self._kept = kept
        self._graphs = graphs
        self._most = most_shapes
        self._bound: OrderedDict[tuple[_Shapes, _Shapes], _Bound] = OrderedDict()  # parameters', call's
        self._parameters: OrderedDict[_Shapes, list[Any]] = OrderedDict({(): []})  # the last one's are in use
        self._captured = 0

    def run(self, arrays: list[Array]) -> list[Array]:
        """The outputs for contiguous arrays of the inputs' dtypes."""
        bound = self._buffers(arrays)
        for position, (value, array) in enumerate(zip(bound.inputs, arrays, strict=True)):
            self._write(bound, position, value, array)
        bound.runs += 1
        capture = self._graphs and bound.runs > _WARM_RUNS
        self._device.run(bound.binding, bound.graph if capture else None)
        return [self._device.read(value) for value in bound.outputs]

    def set_parameters(self, arrays: list[Array]) -> None:
        """Have the parameters these values from the next call on.

        Their buffers stay where they are as long as the shapes are the same: graphs that were captured with
        them read the new values. When memory does not suffice for others, all is as it was.
        """
        key = tuple(array.shape for array in arrays)
        values = self._parameters.get(key)
        if values is None:
            while len(self._parameters) >= MOST_PARAMETERS:
                self._drop_parameters(next(iter(self._parameters)))
            values = [self._device.value(array.shape, str(array.dtype)) for array in arrays]
        for value, array in zip(values, arrays, strict=True):
            self._device.write(value, array)
        self._parameters[key] = values
        self._parameters.move_to_end(key)

    @property
    def shapes(self) -> list[_Shapes]:
        """The input shapes whose buffers are kept, the latest last."""
        return [shapes for _, shapes in self._bound]

    def close(self) -> None:
        """Give the buffers and the device's model back."""
        for bound in self._bound.values():
            self._device.forget(bound.graph)
        self._bound.clear()
        self._parameters.clear()
        self._device.close()

    def _drop_parameters(self, shapes: _Shapes) -> None:
        for key in [key for key in self._bound if key[0] == shapes]:
            self._device.forget(self._bound.pop(key).graph)
        del self._parameters[shapes]

    def _buffers(self, arrays: list[Array]) -> _Bound:
        parameters = next(reversed(self._parameters))
        key = parameters, tuple(array.shape for array in arrays)
        bound = self._bound.get(key)
        if bound is None:
            while len(self._bound) >= self._most:
                _, oldest = self._bound.popitem(last=False)
                self._device.forget(oldest.graph)
            inputs = [self._device.value(array.shape, str(array.dtype)) for array in arrays]
            outputs = [
                self._device.value(shape, spec.dtype)
                for shape, spec in zip(self._output_shapes(arrays), self._outputs, strict=True)
            ]
            self._captured += 1  # a number of its own: a graph is bound to the addresses it was captured with
            binding = self._device.bind([*inputs, *self._parameters[parameters]], outputs)
            bound = _Bound(inputs, outputs, binding, self._captured)
            self._bound[key] = bound
        self._bound.move_to_end(key)
        return bound

    def _write(self, bound: _Bound, position: int, value: Any, array: Array) -> None:
        if position in self._kept:
            held = bound.held.get(position)
            if held is not None and np.array_equal(held, array):
                return
            bound.held[position] = array.copy()
        self._device.write(value, array)


class OrtDevice:
    """:class:`Device` by an ONNX Runtime session; ``kind`` is "cuda", or "cpu" to run without a GPU."""

    def __init__(self, session: Any, kind: str, number: int) -> None:
        self._session, self._kind, self._number = session, kind, number
        self.names = [item.name for item in session.get_inputs()]
        self._outputs = [item.name for item in session.get_outputs()]

    def value(self, shape: tuple[int, ...], dtype: str) -> Any:  # noqa: D102 (Device says what these do)
        import onnxruntime  # type: ignore[import-untyped, unused-ignore]

        return onnxruntime.OrtValue.ortvalue_from_shape_and_type(
            list(shape), np.dtype(dtype).type, self._kind, self._number
        )

    def write(self, value: Any, array: Array) -> None:  # noqa: D102
        value.update_inplace(array)

    def read(self, value: Any) -> Array:  # noqa: D102
        result: Array = value.numpy()
        return result.copy() if self._kind == "cpu" else result

    def bind(self, inputs: list[Any], outputs: list[Any]) -> Any:  # noqa: D102
        binding = self._session.io_binding()
        for name, value in zip(self.names, inputs, strict=True):
            binding.bind_ortvalue_input(name, value)
        for name, value in zip(self._outputs, outputs, strict=True):
            binding.bind_ortvalue_output(name, value)
        return binding

    def run(self, binding: Any, graph: int | None) -> None:  # noqa: D102
        import onnxruntime

        options = onnxruntime.RunOptions()
        # -1 runs without a graph; 0 would be the number of a graph that all runs share
        options.add_run_config_entry("gpu_graph_id", str(-1 if graph is None else graph))
        binding.synchronize_inputs()
        self._session.run_with_iobinding(binding, options)
        binding.synchronize_outputs()

    def forget(self, graph: int) -> None:  # noqa: D102
        release = getattr(self._session, "release_captured_graph", None)  # not in older versions
        if release is not None:
            release(graph)

    def close(self) -> None:  # noqa: D102
        self._session = None


def open_session(path: Path, options: Any, provider: dict[str, str], create: Any = None) -> Any:
    """An ONNX Runtime session on the CUDA provider, and nowhere else. Raises TargetError.

    ONNX Runtime itself warns and goes on with the CPU where the provider's libraries do not load; here that
    is an error. ``create`` makes the session; None: ``onnxruntime.InferenceSession``.
    """
    if create is None:
        import onnxruntime

        preload = getattr(onnxruntime, "preload_dlls", None)  # not in older versions
        if preload is not None:
            with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does not find
                preload()
        create = onnxruntime.InferenceSession
    session = create(str(path), options, providers=[(PROVIDER, provider)])
    session.disable_fallback()
    found = list(session.get_providers())
    if not found or found[0] != PROVIDER:
        raise TargetError(
            f"ONNX Runtime opened {path.name} with {', '.join(found) or 'nothing'}, wanted {PROVIDER}: its"
            " CUDA or cuDNN libraries did not load; install those that onnxruntime-gpu was built for, with:"
            " pip install 'onnxruntime-gpu[cuda,cudnn]'"
        )
    return session


def output_shapes(
    inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]
) -> Callable[[list[Array]], list[tuple[int, ...]]]:
    """A function from the arrays of a call to the shapes of its outputs, by the symbols they share."""

    def shapes(arrays: list[Array]) -> list[tuple[int, ...]]:
        sizes: dict[str, int] = {}
        for spec, array in zip(inputs, arrays, strict=True):
            for length, (factor, symbol) in zip(array.shape, spec.factors(), strict=True):
                if symbol is not None:
                    sizes[symbol] = int(length // factor)
        return [spec.concrete(sizes) for spec in outputs]

    return shapes
