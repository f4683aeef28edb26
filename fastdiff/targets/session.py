"""A compiled module that can be called: arrays in, arrays out, with arguments checked."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastdiff.config import SizeRange, TensorSpec
from fastdiff.errors import InputError, TargetError

if TYPE_CHECKING:
    from fastdiff.lora.update import LowRank
    from fastdiff.samplers import Callback, NoiseSource, StepTable

__all__ = ["Session"]

Array = NDArray[Any]


class Session(ABC):
    """A compiled module. Targets implement ``_run``; the base class checks what goes in.

    ``session(**arrays)`` takes one array per input and returns a dict of arrays, one per output. Floating
    and integer arrays are converted to the input's dtype. An input of shape ``("batch",)``, such as a
    timestep, may also be a scalar or of shape ``[1]``, and is repeated over the batch. Sizes must agree
    between the inputs and lie in ``shapes``; InputError names the value that does not.
    """

    def __init__(
        self,
        name: str,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        shapes: dict[str, SizeRange],
    ) -> None:
        self.name = name
        self.inputs = inputs
        self.outputs = outputs
        self.shapes = shapes

    def __call__(self, **arrays: Any) -> dict[str, Array]:
        """Run on one array per input; one array per output. Raises InputError."""
        return self._run(self.check(arrays))

    @abstractmethod
    def _run(self, arrays: dict[str, Array]) -> dict[str, Array]:
        """Run on checked, contiguous arrays, in the order of ``inputs``."""

    has_loop = False
    """Whether ``sample`` is there: the target runs all steps of a picture in one call."""

    waits_per_step = True
    """Whether ``sample`` has the latents of a step at hand before the next begins. Where it would have to
    wait for them, on a GPU, it is given no callback unless somebody wants to see the steps."""

    takes_any_noise = True
    """Whether ``sample`` draws from any NoiseSource; otherwise only from a Generator, in compiled code."""

    def runs(self, table: StepTable, guidance: float) -> bool:
        """Whether ``sample`` is there and right for a table; otherwise the loop of ``fastdiff.samplers`` is.

        By default for tables that are linear, and guided in all steps or in none: of a step that is not
        guided, that loop computes one half only.
        """
        scales = table.guidance_scales(guidance)
        return self.has_loop and table.linear and len({scale == 1 for scale in scales}) <= 1

    def sample(
        self,
        table: StepTable,
        latents: Array,
        inputs: dict[str, Array],
        guidance: float,
        noise: NoiseSource,
        callback: Callback | None,
    ) -> Array:
        """What ``fastdiff.samplers.sample`` returns with this session as the U-Net, in its precision.

        Only for tables that it ``runs``. ``inputs`` are those besides ``sample`` and ``timestep``, checked;
        where any step is guided their batch is twice that of ``latents``, first without the prompt, then with
        it.
        """
        raise NotImplementedError(f"{type(self).__name__} has no loop of its own")

    def planned_bytes(self, sizes: dict[str, int]) -> int | None:
        """Bytes that a call with these symbolic sizes needs besides weights, inputs and outputs.

        None where the target does not know. Raises EngineError for more than it can count.
        """
        return None

    def held_bytes(self) -> int:
        """Of those, bytes that are held from the calls before."""
        return 0

    takes_tensors = False
    """Whether ``run_tensors`` is there: PyTorch tensors on the session's GPU in and out."""

    def run_tensors(self, tensors: dict[str, Any]) -> dict[str, Any]:
        """What a call returns, as tensors on the GPU, from tensors there of the declared dtypes and shapes.

        Nothing is copied to the host and nobody waits; the outputs are valid until the next call.
        """
        raise NotImplementedError(f"{type(self).__name__} takes arrays of the host")

    def adaptable(self) -> Mapping[str, tuple[int, ...]]:
        """Shapes of the weights that ``set_adapters`` takes updates of, by the path of their layer in the
        checkpoint's module. Raises TargetError where the target, or this engine, takes none.
        """
        raise TargetError(
            f"{self.name}: its target takes no LoRA on an open engine: build one for native, cuda, torch or"
            " onnxruntime"
        )

    def set_adapters(self, updates: Mapping[str, Sequence[LowRank]]) -> None:
        """Run with these updates of layers' weights from the next call on, in place of those that it had.

        Several of a layer add up. Without any the session computes what it computed at first, bit for bit.
        Raises InputError for an update that does not fit, TargetError as ``adaptable`` does, and the session
        is as it was then.
        """
        if not updates:
            self._set_adapters({})
            return
        shapes = self.adaptable()
        for path, parts in updates.items():
            if path not in shapes:
                raise InputError(f"{self.name} has no layer {path} that takes updates")
            for part in parts:
                if part.shape != shapes[path]:
                    raise InputError(
                        f"{self.name}: an update of {path} has shape {list(part.shape)}:"
                        f" it must be {list(shapes[path])}"
                    )
        self._set_adapters(updates)

    def _set_adapters(self, updates: Mapping[str, Sequence[LowRank]]) -> None:
        """``set_adapters`` with updates that fit. Without adapters there is nothing to take back."""
        if updates:
            raise NotImplementedError(f"{type(self).__name__} names layers, and takes no updates of them")

    def close(self) -> None:  # noqa: B027 (closing is optional for a target)
        """Free what the session holds. It cannot be called afterwards."""

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def check(self, arrays: dict[str, Any]) -> dict[str, Array]:
        """The arguments as contiguous arrays of the declared dtypes and shapes. Raises InputError."""
        names = [spec.name for spec in self.inputs]
        if missing := [name for name in names if name not in arrays]:
            raise InputError(f"{self.name} needs {', '.join(names)}: {', '.join(missing)} is missing")
        if unknown := [name for name in arrays if name not in names]:
            raise InputError(f"{self.name} takes {', '.join(names)}: {', '.join(unknown)} is unknown")
        converted = {spec.name: self._convert(spec, arrays[spec.name]) for spec in self.inputs}
        sizes: dict[str, tuple[int, str]] = {}  # symbol -> (size, the input that fixed it)
        for spec in sorted(self.inputs, key=lambda spec: -len(spec.shape)):
            if not _repeats(spec, converted[spec.name]):
                self._bind(spec, converted[spec.name], sizes)
        for symbol, (size, source) in sizes.items():
            if symbol in self.shapes and size not in self.shapes[symbol]:
                raise InputError(
                    f"{self.name}: {symbol} of {source} is {size}: it must be {self.shapes[symbol]}"
                )
        for spec in self.inputs:
            if _repeats(spec, converted[spec.name]):
                length = sizes.get(str(spec.shape[0]), (1, ""))[0]
                converted[spec.name] = np.repeat(converted[spec.name].reshape(1), length)
        return {name: np.ascontiguousarray(array) for name, array in converted.items()}

    def _convert(self, spec: TensorSpec, value: Any) -> Array:
        array = np.asarray(value)
        wanted = np.dtype(spec.dtype)
        if array.dtype == wanted:
            return array
        allowed = "iu" if wanted.kind in "iu" else "fiu"
        if array.dtype.kind not in allowed:
            raise InputError(f"{self.name}: {spec.name} has dtype {array.dtype}: it must be {wanted}")
        return array.astype(wanted)

    def _bind(self, spec: TensorSpec, array: Array, sizes: dict[str, tuple[int, str]]) -> None:
        """Record the sizes of the symbols in ``spec`` and compare those that are known."""
        described = f"[{', '.join(str(size) for size in spec.shape)}]"
        found = f"{self.name}: {spec.name} has shape {list(array.shape)}"
        if array.ndim != len(spec.shape):
            raise InputError(f"{found}: it must be {described}")
        for size, (factor, symbol) in zip(array.shape, spec.factors(), strict=True):
            if symbol is None:
                if size != factor:
                    raise InputError(f"{found}: it must be {described}")
                continue
            if size % factor:
                raise InputError(f"{found}: {size} is no multiple of {factor}, it must be {described}")
            known, source = sizes.setdefault(symbol, (int(size // factor), spec.name))
            if known != int(size // factor):
                raise InputError(f"{found}: {symbol} is {known} in {source}, it must be {described}")


def _repeats(spec: TensorSpec, array: Array) -> bool:
    """Whether a value is given once for a whole batch."""
    return len(spec.shape) == 1 and isinstance(spec.shape[0], str) and array.shape in ((), (1,))
