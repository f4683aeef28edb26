"""What the target wants of TensorRT and of CUDA, so that its own logic can be tested where neither is.

``api.py`` and ``device.py`` are the real things. Addresses and streams are CUDA's, as integers. Calls concern
the GPU that ``Device.active`` selects.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

__all__ = [
    "Api",
    "BuildRequest",
    "Context",
    "Device",
    "DeviceMemoryError",
    "Engine",
    "InputShapes",
    "Phases",
    "Shape",
    "TensorRtError",
    "Values",
]

Shape = tuple[int, ...]

InputShapes = Mapping[str, tuple[Shape, Shape, Shape]]
"""Least, usual and largest shape of every input."""


class TensorRtError(Exception):
    """A call of TensorRT's or CUDA's that failed, with what its log says."""


class DeviceMemoryError(TensorRtError):
    """The GPU's memory is full."""


class Phases(Protocol):
    """Told of a build's progress: phases of some steps each, nested."""

    def start(self, phase: str, parent: str | None, steps: int) -> None:
        """A phase of ``steps`` steps begins, within ``parent``."""

    def step(self, phase: str, step: int) -> None:
        """Step number ``step``, from 0, is done. What this raises ends the build."""

    def finish(self, phase: str) -> None:
        """The phase is over."""


@dataclass(frozen=True)
class BuildRequest:
    """How to build: for each profile the least, usual and largest shape of every input; bytes of scratch
    memory that one layer may use; whether weights can be replaced later; a timing cache, empty for none.
    """

    profiles: tuple[InputShapes, ...]
    workspace: int
    refittable: bool
    timing_cache: bytes
    phases: Phases


@dataclass(frozen=True)
class Values:
    """``count`` values of a weight at ``address``, of a NumPy dtype, on the device or on the host."""

    address: int
    dtype: str
    count: int
    on_device: bool

    @staticmethod
    def of(array: NDArray[Any]) -> Values:
        """Those of a contiguous array, which must be kept while they are used."""
        return Values(array.ctypes.data, array.dtype.name, array.size, on_device=False)


class Context(Protocol):
    """One way of running an engine: a profile, shapes, addresses. A captured graph belongs to one context,
    which must not be changed while the graph is used.
    """

    def set_shapes(self, shapes: Mapping[str, Shape]) -> int:
        """Set all inputs' shapes; the bytes of device memory that a run takes besides the tensors."""

    def set_memory(self, address: int, size: int) -> None:
        """Give that memory, aligned to 256 bytes. It is in use while a run is under way."""

    def set_address(self, name: str, address: int) -> None:
        """Where an input or output lies."""

    def enqueue(self, stream: int) -> None:
        """Run on ``stream`` without waiting."""


class Engine(Protocol):
    """A plan that was read: ``tensors`` holds name and NumPy dtype of each input and output."""

    tensors: Mapping[str, str]

    def memory(self, profile: int) -> int:
        """Most bytes of device memory that a context of this profile asks for."""

    def create_context(self, profile: int, stream: int) -> Context:
        """A context without device memory of its own; ``stream`` is where the profile is switched."""

    def replaceable(self) -> Mapping[str, tuple[str, int]]:
        """NumPy dtype and number of values of each weight that can be replaced, by its name in the network.
        None in a plan that was not built for it.
        """

    def also_needed(self, weights: Mapping[str, Values]) -> list[str]:
        """Names of the weights that must be given with these, since the plan holds them combined. An empty
        name stands for a weight that has none.
        """

    def replace(self, weights: Mapping[str, Values], others: Callable[[str], Values], stream: int) -> None:
        """Put new weights into the engine, on ``stream``; ``others`` gives those that they need besides.

        Nothing of the engine's may be under way but on that stream. Contexts stay valid, graphs of them do
        not. When it raises, some weights may have been replaced.
        """


class Api(Protocol):
    """TensorRT. Every call raises TensorRtError."""

    def build(self, network: Path, plan: Path, request: BuildRequest) -> bytes:
        """Build the ONNX file ``network`` for the current GPU into ``plan``; the timing cache afterwards."""

    def merge_timing_caches(self, first: bytes, second: bytes) -> bytes:
        """Entries of both; where they disagree, the first's."""

    def load(self, plan: Path) -> Engine:
        """Read a plan on the current GPU."""

    def refit(self, plan: Path, network: Path, refitted: Path) -> None:
        """Write ``plan`` with the weights of ``network`` to ``refitted``, which can be refitted again."""


class Device(Protocol):
    """A GPU's memory, streams and graphs. Every call raises TensorRtError."""

    def active(self) -> AbstractContextManager[None]:
        """The GPU is the calling thread's current one inside the block."""

    def allocate(self, size: int) -> int:
        """Device memory, aligned to 256 bytes. Raises DeviceMemoryError."""

    def free(self, address: int) -> None:
        """Give memory back."""

    def free_bytes(self) -> int:
        """Device memory that is not in use."""

    def create_stream(self) -> int:
        """A stream that does not wait for the default one."""

    def destroy_stream(self, stream: int) -> None:
        """Give a stream back once its work is done."""

    def upload(self, address: int, array: NDArray[Any], stream: int) -> None:
        """Copy a contiguous array to the device; it may be changed when this returns."""

    def download(self, array: NDArray[Any], address: int, stream: int) -> None:
        """Copy from the device; the array is filled once the stream is synchronised."""

    def synchronize(self, stream: int) -> None:
        """Wait for a stream's work."""

    def order(self, first: int, second: int) -> None:
        """What is put on stream ``second`` from now on waits for what is on ``first``."""

    def begin_capture(self, stream: int) -> None:
        """Record what is put on the stream instead of running it."""

    def end_capture(self, stream: int) -> int:
        """A graph of what was recorded, ready to launch."""

    def abandon_capture(self, stream: int) -> None:
        """End a recording that failed, whatever its state."""

    def launch(self, graph: int, stream: int) -> None:
        """Run a graph."""

    def destroy_graph(self, graph: int) -> None:
        """Give a graph back."""
