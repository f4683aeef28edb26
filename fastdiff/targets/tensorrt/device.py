"""``interface.Device`` by CUDA's runtime, through cuda-python: no PyTorch is needed to run an engine."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from cuda.bindings import runtime
from numpy.typing import NDArray

from fastdiff.targets.tensorrt.interface import DeviceMemoryError, TensorRtError

__all__ = ["CudaDevice"]


class CudaDevice:
    """GPU number ``index``."""

    def __init__(self, index: int) -> None:
        self.index = index

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Select the GPU for this thread, and afterwards the one that was selected before."""
        (before,) = _checked(runtime.cudaGetDevice())
        _checked(runtime.cudaSetDevice(self.index))
        try:
            yield
        finally:
            _checked(runtime.cudaSetDevice(before))

    def allocate(self, size: int) -> int:
        """Device memory; cudaMalloc aligns it to 256 bytes."""
        error, address = runtime.cudaMalloc(max(size, 1))
        if error == runtime.cudaError_t.cudaErrorMemoryAllocation:
            runtime.cudaGetLastError()  # else the next call would report it again
            raise DeviceMemoryError(
                f"GPU {self.index} has no {size >> 20} MiB left, {self.free_bytes() >> 20} MiB are free"
            )
        _checked((error,))
        return int(address)

    def free(self, address: int) -> None:
        """Give memory back; waits for work that may use it."""
        _checked(runtime.cudaFree(address))

    def free_bytes(self) -> int:
        """Device memory that is not in use."""
        free, _ = _checked(runtime.cudaMemGetInfo())
        return int(free)

    def create_stream(self) -> int:
        """A stream that does not wait for the default one."""
        (stream,) = _checked(runtime.cudaStreamCreateWithFlags(runtime.cudaStreamNonBlocking))
        return int(stream)

    def destroy_stream(self, stream: int) -> None:
        """Give a stream back."""
        _checked(runtime.cudaStreamDestroy(stream))

    def upload(self, address: int, array: NDArray[Any], stream: int) -> None:
        """Copy to the device; memory that is not pinned has been read when the call returns."""
        kind = runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        _checked(runtime.cudaMemcpyAsync(address, array.ctypes.data, array.nbytes, kind, stream))

    def download(self, array: NDArray[Any], address: int, stream: int) -> None:
        """Copy from the device."""
        kind = runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        _checked(runtime.cudaMemcpyAsync(array.ctypes.data, address, array.nbytes, kind, stream))

    def synchronize(self, stream: int) -> None:
        """Wait for a stream's work."""
        _checked(runtime.cudaStreamSynchronize(stream))

    def order(self, first: int, second: int) -> None:
        """Let ``second`` wait for ``first``; CUDA keeps a destroyed event until nobody waits for it."""
        (event,) = _checked(runtime.cudaEventCreateWithFlags(runtime.cudaEventDisableTiming))
        try:
            _checked(runtime.cudaEventRecord(event, first))
            _checked(runtime.cudaStreamWaitEvent(second, event, 0))
        finally:
            _checked(runtime.cudaEventDestroy(event))

    def begin_capture(self, stream: int) -> None:
        """Record; other threads may go on using CUDA."""
        mode = runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        _checked(runtime.cudaStreamBeginCapture(stream, mode))

    def end_capture(self, stream: int) -> int:
        """A graph of what was recorded, ready to launch."""
        (graph,) = _checked(runtime.cudaStreamEndCapture(stream))
        try:
            (ready,) = _checked(runtime.cudaGraphInstantiate(graph, 0))
        finally:
            _checked(runtime.cudaGraphDestroy(graph))
        return int(ready)

    def abandon_capture(self, stream: int) -> None:
        """End a recording that failed, and forget the error."""
        _, graph = runtime.cudaStreamEndCapture(stream)
        if graph is not None and int(graph):
            runtime.cudaGraphDestroy(graph)
        runtime.cudaGetLastError()

    def launch(self, graph: int, stream: int) -> None:
        """Run a graph."""
        _checked(runtime.cudaGraphLaunch(graph, stream))

    def destroy_graph(self, graph: int) -> None:
        """Give a graph back."""
        _checked(runtime.cudaGraphExecDestroy(graph))


def _checked(result: Any) -> tuple[Any, ...]:
    """What a call returned besides its status. Raises TensorRtError."""
    status, *values = result
    if status != runtime.cudaError_t.cudaSuccess:
        _, text = runtime.cudaGetErrorString(status)
        name = text.decode() if isinstance(text, bytes) else str(status)
        raise TensorRtError(f"CUDA: {name} ({getattr(status, 'name', status)})")
    return tuple(values)
