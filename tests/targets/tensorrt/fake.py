"""Stand-ins for TensorRT and a GPU: they record what is asked, check that it is allowed, and compute.

A plan is its ONNX file with a line before it, and ONNX Runtime runs it. Device memory is arrays at made-up
addresses. What CUDA and TensorRT forbid, and would punish with wrong pictures, fails here: graphs of contexts
that were changed or whose engine was, memory that is too small or was freed, shapes outside the profile, no
GPU selected.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastdiff.targets.tensorrt.interface import (
    BuildRequest,
    DeviceMemoryError,
    Shape,
    TensorRtError,
    Values,
)

MAGIC = b"plan of the stand-in\n"
NOISE = 0xA5


class FakeDevice:
    """Device memory, streams and graphs. ``log`` lists launches, captures and waits in order."""

    def __init__(self, capacity: int = 1 << 40) -> None:
        self.blocks: dict[int, NDArray[np.uint8]] = {}
        self.capacity = capacity
        self.log: list[tuple[Any, ...]] = []
        self.streams: set[int] = set()
        self.graphs: dict[int, list[Callable[[], None]]] = {}
        self.capturing: dict[int, list[Callable[[], None]]] = {}
        self.fail_capture = False
        self.uploaded = 0
        self._next = 1 << 20
        self._selected = 0

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        self._selected += 1
        try:
            yield
        finally:
            self._selected -= 1

    def number(self) -> int:
        assert self._selected, "no GPU is selected"
        self._next += 256
        return self._next

    def used(self) -> int:
        return sum(block.nbytes for block in self.blocks.values())

    def allocate(self, size: int) -> int:
        if self.used() + size > self.capacity:
            raise DeviceMemoryError(f"GPU 0 has no {size} bytes left")
        address = self.number()
        self._next += -(-size // 256) * 256
        self.blocks[address] = np.full(size, NOISE, np.uint8)
        return address

    def free(self, address: int) -> None:
        del self.blocks[address]

    def free_bytes(self) -> int:
        return self.capacity - self.used()

    def create_stream(self) -> int:
        self.streams.add(stream := self.number())
        return stream

    def destroy_stream(self, stream: int) -> None:
        self.streams.remove(stream)

    def memory(self, address: int, size: int) -> NDArray[np.uint8]:
        """What is at an address, which may be inside a block."""
        for start, block in self.blocks.items():
            if start <= address < start + block.nbytes:
                assert address - start + size <= block.nbytes, "past the end of a block"
                return block[address - start : address - start + size]
        raise AssertionError("memory that was freed, or never was")

    def upload(self, address: int, array: NDArray[Any], stream: int) -> None:
        assert array.flags.c_contiguous
        assert stream in self.streams
        self.uploaded += array.nbytes
        self.memory(address, array.nbytes)[:] = np.frombuffer(array.tobytes(), np.uint8)

    def download(self, array: NDArray[Any], address: int, stream: int) -> None:
        assert stream in self.streams
        assert array.flags.c_contiguous
        array[...] = self.memory(address, array.nbytes).view(array.dtype).reshape(array.shape)

    def read(self, address: int, shape: Shape, dtype: str) -> NDArray[Any]:
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        return self.memory(address, size).view(dtype).reshape(shape).copy()

    def synchronize(self, stream: int) -> None:
        assert not self.capturing.get(stream), "CUDA refuses to wait for a stream that is captured"

    def order(self, first: int, second: int) -> None:
        self.log.append(("order", first, second))

    def put(self, stream: int, what: str, work: Callable[[], None]) -> None:
        assert self._selected
        if stream in self.capturing:
            if self.fail_capture:
                raise TensorRtError("the layer cannot be captured")
            self.capturing[stream].append(work)
        else:
            self.log.append(("run", what))
            work()

    def begin_capture(self, stream: int) -> None:
        self.capturing[stream] = []

    def end_capture(self, stream: int) -> int:
        graph = self.number()
        self.graphs[graph] = self.capturing.pop(stream)
        self.log.append(("capture", graph))
        return graph

    def abandon_capture(self, stream: int) -> None:
        self.capturing.pop(stream, None)

    def launch(self, graph: int, stream: int) -> None:
        self.log.append(("launch", graph))
        for work in self.graphs[graph]:
            work()

    def destroy_graph(self, graph: int) -> None:
        del self.graphs[graph]


@dataclass
class FakeApi:
    """TensorRT on ``device``. ``requests`` has every build's request by the module's name.

    Plans do not have the weights that are ``folded`` under their names, and those of a group that is
    ``together`` only with each other. So many refits of an engine fail, half done.
    """

    device: FakeDevice
    requests: dict[str, BuildRequest] = field(default_factory=dict)
    failure: str = ""
    folded: Callable[[str], bool] = lambda name: False
    together: tuple[tuple[str, ...], ...] = ()
    failing_refits: int = 0

    def build(self, network: Path, plan: Path, request: BuildRequest) -> bytes:
        import onnx

        if self.failure:
            raise TensorRtError(self.failure)
        name = plan.stem
        self.requests[name] = request
        for profile in request.profiles:
            for low, usual, high in profile.values():
                assert all(a <= b <= c for a, b, c in zip(low, usual, high, strict=True))
        request.phases.start("Building Engine", None, 2)
        request.phases.step("Building Engine", 0)
        request.phases.start("Timing", "Building Engine", 4)
        for step in range(4):
            request.phases.step("Timing", step)
        request.phases.finish("Timing")
        request.phases.step("Building Engine", 1)
        request.phases.finish("Building Engine")
        header = {"refittable": request.refittable, "profiles": request.profiles}
        model = onnx.load(str(network))  # with its external data
        plan.write_bytes(MAGIC + json.dumps(header).encode() + b"\n" + model.SerializeToString())
        entry = f"{name} measured;".encode()
        return request.timing_cache if entry in request.timing_cache else request.timing_cache + entry

    def merge_timing_caches(self, first: bytes, second: bytes) -> bytes:
        entries = [entry for entry in (first + second).split(b";") if entry]
        return b"".join(entry + b";" for entry in dict.fromkeys(entries))

    def load(self, plan: Path) -> FakeEngine:
        header, model = read_plan(plan)
        return FakeEngine(self, plan.stem, header, model)

    def refit(self, plan: Path, network: Path, refitted: Path) -> None:
        import onnx

        header, old = read_plan(plan)
        if not header["refittable"]:
            raise TensorRtError("the plan was not built to be refitted")
        new = onnx.load(str(network))
        shapes = [
            {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
            for model in (onnx.load_from_string(old), new)
        ]
        if missing := [name for name in shapes[0] if shapes[0][name] != shapes[1].get(name)]:
            raise TensorRtError(f"{len(missing)} weights are missing, the first is {missing[0]}")
        refitted.write_bytes(MAGIC + json.dumps(header).encode() + b"\n" + new.SerializeToString())


def read_plan(plan: Path) -> tuple[dict[str, Any], bytes]:
    data = plan.read_bytes()
    if not data.startswith(MAGIC):
        raise TensorRtError("an engine cannot be made: the magic tag does not match")
    header, _, model = data.removeprefix(MAGIC).partition(b"\n")
    return json.loads(header), model


class FakeEngine:
    """``replaced`` counts the refits, ``weights`` has what the last one was given."""

    def __init__(self, api: FakeApi, name: str, header: dict[str, Any], model: bytes) -> None:
        self.api, self.device, self.name, self.profiles = api, api.device, name, header["profiles"]
        self.refittable = header["refittable"]
        self.model = model
        self.replaced = 0
        self.weights: list[str] = []
        self.open()
        dtypes = {"tensor(float)": "float32", "tensor(int64)": "int64", "tensor(float16)": "float16"}
        values = [*self.session.get_inputs(), *self.session.get_outputs()]
        self.tensors = {value.name: dtypes[value.type] for value in values}

    def open(self) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        self.session = onnxruntime.InferenceSession(self.model, options, providers=["CPUExecutionProvider"])

    def replaceable(self) -> dict[str, tuple[str, int]]:
        import onnx

        if not self.refittable:
            return {}
        dtypes = {onnx.TensorProto.FLOAT: "float32", onnx.TensorProto.FLOAT16: "float16"}
        return {
            tensor.name: (dtypes[tensor.data_type], int(np.prod(tensor.dims)))
            for tensor in onnx.load_from_string(self.model).graph.initializer
            if tensor.data_type in dtypes and not self.api.folded(tensor.name)
        }

    def also_needed(self, weights: Mapping[str, Values]) -> list[str]:
        known = self.replaceable()
        for name, values in weights.items():
            assert known[name] == (values.dtype, values.count)
        return [
            name
            for group in self.api.together
            if any(each in weights for each in group)
            for name in group
            if name not in weights
        ]

    def replace(self, weights: Mapping[str, Values], others: Callable[[str], Values], stream: int) -> None:
        import onnx
        from onnx import numpy_helper

        assert stream in self.device.streams
        assert not self.device.capturing
        every = {**weights, **{name: others(name) for name in self.also_needed(weights)}}
        self.also_needed(every)
        model = onnx.load_from_string(self.model)
        stored = {tensor.name: tensor for tensor in model.graph.initializer}
        fails = self.api.failing_refits > 0
        self.api.failing_refits -= fails
        for name, values in list(every.items())[: len(every) // 2 if fails else None]:
            shape = tuple(stored[name].dims)
            stored[name].CopyFrom(numpy_helper.from_array(self.read(values, shape), name))
        self.model = model.SerializeToString()
        self.weights = sorted(every)
        self.replaced += 1
        self.open()
        if fails:
            raise TensorRtError("the weights cannot be replaced: the refitter is out of memory")

    def read(self, values: Values, shape: Shape) -> NDArray[Any]:
        if values.on_device:
            return self.device.read(values.address, shape, values.dtype)
        size = values.count * np.dtype(values.dtype).itemsize
        data = ctypes.string_at(values.address, size)
        return np.frombuffer(data, values.dtype).reshape(shape)

    def memory(self, profile: int) -> int:
        return memory_for({name: shapes[2] for name, shapes in self.profiles[profile].items()})

    def create_context(self, profile: int, stream: int) -> FakeContext:
        return FakeContext(self, profile)


def memory_for(shapes: Mapping[str, Any]) -> int:
    """Made-up bytes of activations: more for larger inputs."""
    return 64 * sum(int(np.prod(shape)) for shape in shapes.values())


class FakeContext:
    """Counts its ``changes``: a graph must not be launched after one."""

    def __init__(self, engine: FakeEngine, profile: int) -> None:
        self.engine, self.profile = engine, profile
        self.shapes: dict[str, Shape] = {}
        self.addresses: dict[str, int] = {}
        self.memory = (0, 0)
        self.changes = 0
        self.runs = 0

    def set_shapes(self, shapes: Mapping[str, Shape]) -> int:
        for name, shape in shapes.items():
            low, _, high = self.engine.profiles[self.profile][name]
            if not all(a <= size <= b for a, size, b in zip(low, shape, high, strict=True)):
                raise TensorRtError(f"{name} cannot have shape {list(shape)}")
        self.shapes = dict(shapes)
        self.changes += 1
        return memory_for(shapes)

    def set_memory(self, address: int, size: int) -> None:
        self.memory = (address, size)
        self.changes += 1

    def set_address(self, name: str, address: int) -> None:
        assert name in self.engine.tensors
        self.addresses[name] = address
        self.changes += 1

    def enqueue(self, stream: int) -> None:
        device = self.engine.device
        assert self.runs or stream not in device.capturing, "TensorRT wants one run before a capture"
        self.runs += 1
        changes, replaced = self.changes, self.engine.replaced

        def work() -> None:
            assert changes == self.changes, "the graph is of a context that was changed since"
            assert replaced == self.engine.replaced, "the graph is of weights that were replaced since"
            self.compute()

        device.put(stream, self.engine.name, work)

    def compute(self) -> None:
        device, (address, size) = self.engine.device, self.memory
        assert size >= memory_for(self.shapes), "too little memory"
        device.blocks[address][:size] = NOISE  # whatever another module had there is gone
        feeds = {
            name: device.read(self.addresses[name], shape, self.engine.tensors[name])
            for name, shape in self.shapes.items()
        }
        names = [value.name for value in self.engine.session.get_outputs()]
        for name, result in zip(names, self.engine.session.run(names, feeds), strict=True):
            assert self.addresses[name] % 256 == 0
            block = device.memory(self.addresses[name], result.nbytes)
            block[:] = np.frombuffer(result.tobytes(), np.uint8)
