"""The CUDA session's own logic: buffers and graphs by shape, on a device that records and on a real one."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from fastdiff.config import Precision, SizeRange, TensorSpec
from fastdiff.errors import EngineDamagedError, InputError, TargetError
from fastdiff.manifest import ModuleEntry
from fastdiff.targets import onnxruntime as target
from fastdiff.targets.onnxruntime import CudaSession, cuda
from fastdiff.targets.onnxruntime.cuda import Array, Bindings, OrtDevice, output_shapes, provider_options
from tests.compare import assert_close
from tests.engines import TEXT_ENCODER

SAMPLE = TensorSpec("sample", "float32", ("batch", 2, "height", "width"))
STATES = TensorSpec("encoder_hidden_states", "float32", ("batch", "tokens", 3))
LARGE = TensorSpec("out", "float32", ("batch", 2, "8*height", "width"))


class Recorder:
    """A device whose model adds 1 and its parameters' sums to its first input, and which notes what is asked
    of it. A captured graph does so with the buffers that it was captured with.
    """

    def __init__(self, *parameters: str) -> None:
        self.names = [SAMPLE.name, STATES.name, *parameters]
        self.log: list[Any] = []
        self.captured: dict[int, Any] = {}

    def value(self, shape: tuple[int, ...], dtype: str) -> Any:
        self.log.append("allocate")
        return np.zeros(shape, dtype)

    def write(self, value: Any, array: Array) -> None:
        self.log.append("write")
        value[...] = array

    def read(self, value: Any) -> Array:
        return np.array(value)

    def bind(self, inputs: list[Any], outputs: list[Any]) -> Any:
        return inputs, outputs

    def run(self, binding: Any, graph: int | None) -> None:
        self.log.append(("run", graph))
        if graph is not None:
            binding = self.captured.setdefault(graph, binding)
        inputs, outputs = binding
        outputs[0][...] = inputs[0] + 1 + sum(value.sum() for value in inputs[2:])

    def forget(self, graph: int) -> None:
        self.log.append(("forget", graph))

    def close(self) -> None:
        self.log.append("close")

    def runs(self) -> list[Any]:
        return [entry[1] for entry in self.log if entry[0] == "run"]


def bindings(device: cuda.Device, **options: Any) -> Bindings:
    return Bindings(device, (SAMPLE,), output_shapes((SAMPLE, STATES), (SAMPLE,)), **options)


def arrays(batch: int, side: int = 4, value: float = 0.0) -> list[Array]:
    return [np.full((batch, 2, side, 5), value, np.float32), np.full((batch, 7, 3), value, np.float32)]


def test_a_shape_is_captured_when_it_comes_again() -> None:
    device = Recorder()
    bound = bindings(device)
    for step in range(4):
        assert_close(bound.run(arrays(2, value=step))[0], arrays(2, value=step + 1)[0], max_abs=0.0)
    assert device.runs() == [None, 1, 1, 1], "the first run is not worth a graph"
    assert device.log.count("allocate") == 3, "buffers stay"


def test_every_shape_has_its_graph() -> None:
    device = Recorder()
    bound = bindings(device)
    for _ in range(2):
        bound.run(arrays(1))
        bound.run(arrays(2))
    assert device.runs() == [None, None, 1, 2]


def test_without_graphs() -> None:
    device = Recorder()
    bound = bindings(device, graphs=False)
    for _ in range(3):
        bound.run(arrays(1))
    assert device.runs() == [None, None, None]


def test_least_recently_used_shapes_go() -> None:
    device = Recorder()
    bound = bindings(device, most_shapes=2)
    for side in (3, 4, 3, 5):
        bound.run(arrays(1, side))
    assert [shapes[0][2] for shapes in bound.shapes] == [3, 5], "4 was not used for longest"
    assert ("forget", 2) in device.log
    bound.run(arrays(1, 4))
    bound.run(arrays(1, 4))
    assert device.runs()[-2:] == [None, 4], (
        "a number is used once: a graph holds the addresses of its buffers"
    )
    assert len(bound.shapes) == 2
    bound.close()
    assert bound.shapes == []
    assert [entry for entry in device.log if entry[0] == "forget"][-1] == ("forget", 4)
    assert device.log[-1] == "close"


def test_what_rarely_changes_is_written_when_it_does() -> None:
    device = Recorder()
    bound = bindings(device, kept=frozenset({1}))
    sample, states = arrays(1)
    for _ in range(3):
        bound.run([sample, states])
    assert device.log.count("write") == 3 + 1
    states[0, 0, 0] = 5.0  # in place: the same array with other values
    bound.run([sample, states])
    assert device.log.count("write") == 4 + 2


def matrices(rank: int, value: float) -> list[Array]:
    return [np.full((3, rank), value, np.float32), np.full((rank, 2), value, np.float32)]


def test_captured_graphs_read_new_parameters() -> None:
    """Of the same shapes: they are copied once, into the buffers that the graphs were captured with."""
    device = Recorder("down", "up")
    bound = bindings(device)
    for _ in range(3):
        bound.run(arrays(1))
    before = len(device.log)
    bound.set_parameters(matrices(8, 1.0))
    assert device.log[before:] == ["allocate", "allocate", "write", "write"]
    for size in (1, 1, 1, 2, 2):
        assert_close(bound.run(arrays(size))[0], arrays(size, value=41.0)[0], max_abs=0.0)
    assert device.runs() == [None, 1, 1, None, 2, 2, None, 3]
    before = len(device.log)
    bound.set_parameters(matrices(8, 0.5))
    assert device.log[before:] == ["write", "write"]
    for size in (1, 2):
        assert_close(bound.run(arrays(size))[0], arrays(size, value=21.0)[0], max_abs=0.0)
    assert device.runs()[-2:] == [2, 3]


def test_other_ranks_have_other_graphs() -> None:
    """Those of two sets of ranks are kept; the buffers of the older ones go with their graphs."""
    device = Recorder("down", "up")
    bound = bindings(device)
    for rank in (8, 16, 8):
        bound.set_parameters(matrices(rank, 1.0))
        for _ in range(2):
            assert_close(bound.run(arrays(1))[0], arrays(1, value=1 + 5.0 * rank)[0], max_abs=0.0)
    assert device.runs() == [None, 1, None, 2, 1, 1]
    bound.set_parameters(matrices(24, 1.0))
    assert ("forget", 2) in device.log
    assert ("forget", 1) not in device.log
    bound.run(arrays(1))
    bound.set_parameters(matrices(16, 1.0))
    assert ("forget", 1) in device.log
    bound.run(arrays(1))
    assert device.runs()[-2:] == [None, None]


def test_no_memory_for_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Recorder("down", "up")
    bound = bindings(device)
    bound.set_parameters(matrices(8, 1.0))
    wanted = bound.run(arrays(1))[0]

    def value(shape: tuple[int, ...], dtype: str) -> Any:
        raise RuntimeError("no memory")

    monkeypatch.setattr(device, "value", value)
    with pytest.raises(RuntimeError, match="no memory"):
        bound.set_parameters(matrices(16, 2.0))
    assert_close(bound.run(arrays(1))[0], wanted, max_abs=0.0)


def test_output_shapes_follow_the_symbols() -> None:
    shapes = output_shapes((SAMPLE, STATES), (LARGE, STATES))
    assert shapes(arrays(3, side=4)) == [(3, 2, 32, 5), (3, 7, 3)]
    pictures = TensorSpec("picture", "float32", ("batch", 3, "8*height", "8*width"))
    latent = TensorSpec("mean", "float32", ("batch", 4, "height", "width"))
    assert output_shapes((pictures,), (latent,))([np.zeros((2, 3, 24, 40))]) == [(2, 4, 3, 5)]


def test_provider_options() -> None:
    options = provider_options(device=1, stream=4096)
    assert options["device_id"] == "1"
    assert options["user_compute_stream"] == "4096"
    assert options["enable_cuda_graph"] == "1"
    assert options["use_tf32"] == "0"
    assert "user_compute_stream" not in provider_options()
    assert provider_options(stream=0, graphs=False)["user_compute_stream"] == "0"
    with pytest.raises(InputError, match="stream is 0, CUDA's default stream: it cannot be captured"):
        provider_options(stream=0)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """``sample + 1``, with an input that goes nowhere but into a second sum."""
    inputs = [
        helper.make_tensor_value_info(spec.name, TensorProto.FLOAT, list(spec.shape))
        for spec in (SAMPLE, STATES)
    ]
    out = helper.make_tensor_value_info("out_sample", TensorProto.FLOAT, list(SAMPLE.shape))
    one = helper.make_tensor("one", TensorProto.FLOAT, [1], [1.0])
    nodes = [
        helper.make_node("ReduceMean", ["encoder_hidden_states"], ["mean"], keepdims=0),
        helper.make_node("Add", ["sample", "one"], ["more"]),
        helper.make_node("Add", ["more", "mean"], ["out_sample"]),
    ]
    graph = helper.make_graph(nodes, "g", inputs, [out], [one])
    path = tmp_path / "unet.onnx"
    opsets = [helper.make_opsetid("", 20)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), path)
    return path


ENTRY = ModuleEntry(
    target="onnxruntime",
    precision=Precision.FP16,
    inputs=(SAMPLE, STATES),
    outputs=(SAMPLE,),
    shapes={name: SizeRange() for name in ("batch", "height", "width", "tokens")},
    files={"unet.onnx": ""},
    bytes=0,
    error={},
    seconds=0.0,
    requires={"device": "cuda"},
)


def test_session_on_real_bindings(model: Path) -> None:
    """ONNX Runtime's own binding, with memory of the CPU."""

    def open_graph(file: str) -> OrtDevice:
        path = str(model.parent / file)
        return OrtDevice(onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]), "cpu", 0)

    rng = np.random.default_rng(0)
    with CudaSession(model.parent, "unet", ENTRY, "unet.onnx", open_graph) as session:
        results = []
        for batch, tokens in ((2, 3), (2, 3), (1, 9), (2, 3)):
            sample = rng.standard_normal((batch, 2, 3, 5), np.float32)
            states = rng.standard_normal((batch, tokens, 3), np.float32)
            found = session(sample=sample, encoder_hidden_states=states)["sample"]
            results.append((found, sample + 1 + states.mean()))
        for found, wanted in results:  # at the end: no result lies in a buffer that was used again
            assert_close(found, wanted, rel_l2=1e-6)


class Opened:
    """A session that says which providers it got."""

    def __init__(self, *providers: str) -> None:
        self.providers = providers
        self.given: Any = None

    def __call__(self, path: str, options: Any, providers: Any) -> Any:
        self.given = copy.deepcopy(providers)
        return self

    def disable_fallback(self) -> None:
        pass

    def get_providers(self) -> list[str]:
        return list(self.providers)


def test_fallback_to_the_cpu_is_an_error(tmp_path: Path) -> None:
    options = onnxruntime.SessionOptions()
    there = Opened(cuda.PROVIDER, "CPUExecutionProvider")
    assert cuda.open_session(tmp_path / "unet.onnx", options, {"device_id": "2"}, there) is there
    assert there.given == [(cuda.PROVIDER, {"device_id": "2"})]
    words = "opened unet.onnx with CPUExecutionProvider, wanted CUDAExecutionProvider"
    with pytest.raises(TargetError, match=words):
        cuda.open_session(tmp_path / "unet.onnx", options, {}, Opened("CPUExecutionProvider"))


needs_no_cuda = pytest.mark.skipif(
    cuda.PROVIDER in onnxruntime.get_available_providers(), reason="onnxruntime-gpu is installed"
)


@needs_no_cuda
def test_engine_for_cuda_needs_the_provider(model: Path) -> None:
    words = "built without CUDA, wanted the package onnxruntime-gpu; install it with: .*onnxruntime-gpu"
    with pytest.raises(TargetError, match=words):
        target.open(model.parent, "unet", ENTRY, None)
    assert not target.availability("cuda").ok
    assert target.availability().ok
    assert "onnxruntime-gpu" in str(target.mismatch(ENTRY))
    assert target.mismatch(TEXT_ENCODER) is None


def test_entry_without_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [cuda.PROVIDER])
    with pytest.raises(EngineDamagedError, match=r"lists no \.onnx file"):
        target.open(tmp_path, "unet", replace(ENTRY, files={"x.data": ""}), None)


@pytest.mark.gpu
@pytest.mark.parametrize("shared", [False, True], ids=["own stream", "shared stream"])
def test_session_on_a_gpu(model: Path, shared: bool) -> None:
    """The same results from the first run, from the captured graph and from a stream of PyTorch's."""
    if cuda.PROVIDER not in onnxruntime.get_available_providers():
        pytest.skip("onnxruntime-gpu is not installed")
    import torch

    stream = torch.cuda.Stream() if shared else None
    address = None if stream is None else stream.cuda_stream
    rng = np.random.default_rng(0)
    session = target.open(model.parent, "unet", ENTRY, None, 0, address)
    with session:
        for batch in (2, 2, 2, 1, 2, 1):
            sample = rng.standard_normal((batch, 2, 3, 5), np.float32)
            states = rng.standard_normal((batch, 7, 3), np.float32)
            found = session(sample=sample, encoder_hidden_states=states)["sample"]
            assert_close(found, sample + 1 + states.mean(), rel_l2=1e-6)
