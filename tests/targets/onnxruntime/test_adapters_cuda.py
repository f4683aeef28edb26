"""LoRAs of modules for CUDA, computed on the CPU: against PyTorch with the updates in its weights."""

from __future__ import annotations

import copy
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from fastdiff.build.capture import CapturedModule, capture, run_eager
from fastdiff.build.modules import ModuleSpec, random_inputs
from fastdiff.config import Precision, SizeRange, TensorSpec
from fastdiff.errors import EngineDamagedError, InputError, NumericError, TargetError
from fastdiff.lora import LowRank
from fastdiff.manifest import ModuleEntry
from fastdiff.targets import Compiled, CompileOptions
from fastdiff.targets import onnxruntime as target
from fastdiff.targets.onnxruntime import CudaSession, cuda
from fastdiff.targets.onnxruntime.adapters_cuda import RANK_STEP, matrices_of
from fastdiff.targets.onnxruntime.contrib import SPLIT_GELU_WIDTHS
from fastdiff.targets.onnxruntime.optimise import FUSED
from fastdiff.targets.parameters import Layer
from tests.compare import assert_close, relative_l2
from tests.engines import TEXT_ENCODER
from tests.lora.made_up import add_to, layers_of, random_updates
from tests.published import VOCABULARY, model, sizes_of
from tests.targets.onnxruntime.standard import on_the_cpu

CompiledModules = Callable[[str], tuple[Path, Compiled]]
SOME = ("to_k", "to_v", "k_proj", "v_proj", "conv1", "fc2", "proj_in")
"""Ends of the names of layers that a LoRA may have alone: parts of merged ones, convolutions, others."""


def entry_of(module: CapturedModule, compiled: Compiled) -> ModuleEntry:
    spec = module.spec
    return replace(
        TEXT_ENCODER,
        precision=Precision.FP16,
        inputs=spec.inputs,
        outputs=spec.outputs,
        shapes=spec.shapes,
        files=dict.fromkeys(compiled.files, ""),
        requires=compiled.requires,
    )


def opened(module: CapturedModule, folder: Path, compiled: Compiled, log: list[str]) -> CudaSession:
    """The session of a module on the CPU, which notes what it opens."""

    def open_graph(file: str) -> cuda.Device:
        log.append(file)
        return on_the_cpu(folder / file)

    entry = entry_of(module, compiled)
    return CudaSession(folder, module.name, entry, compiled.files[0], open_graph, threads=2)


def merged(module: CapturedModule, updates: list[dict[str, LowRank]]) -> nn.Module:
    """PyTorch's module with updates in its weights."""
    source = copy.deepcopy(module.source)
    for each in updates:
        add_to(source, each)
    wrapped: nn.Module = module.spec.wrap(source)
    return wrapped


def check(
    module: CapturedModule, found: dict[str, Any], arrays: dict[str, Any], *updates: dict[str, LowRank]
) -> None:
    """The error is within twice that of PyTorch in halves with the updates in its weights."""
    eager = merged(module, list(updates))
    inputs, outputs = module.spec.inputs, module.spec.outputs
    rounded = {
        key: x if x.ndim < 2 or x.dtype != np.float32 else x.astype(np.float16) for key, x in arrays.items()
    }
    wanted = run_eager(eager, inputs, outputs, arrays)
    yardstick = run_eager(copy.deepcopy(eager).half(), inputs, outputs, rounded)
    for key, w in wanted.items():
        assert_close(found[key], w, rel_l2=2 * relative_l2(yardstick[key], w), label=key)


@pytest.mark.parametrize("name", ["clip", "scenes_unet"])
def test_switching(name: str, compiled_for_cuda: CompiledModules) -> None:
    """From none to some layers, to all with two updates of some, and back to the first results."""
    module, (folder, compiled) = model(name), compiled_for_cuda(name)
    log: list[str] = []
    plain_file, second = compiled.files[0], f"{module.name}.lora.onnx"
    arrays = random_inputs(module.spec, sizes_of(module, 0), 1, VOCABULARY)
    with opened(module, folder, compiled, log) as session:
        shapes = session.adaptable()
        assert dict(shapes) == layers_of(module.source)
        plain = session(**arrays)
        some = {path: shape for path, shape in shapes.items() if path.endswith(SOME)}
        first, other = random_updates(some, 3, seed=1), random_updates(shapes, 9, seed=2, alpha=4.0)
        smaller = {path: update.times(-0.5) for path, update in first.items()}
        for updates in ([first], [other, smaller]):
            session.set_adapters(
                {path: [each[path] for each in updates if path in each] for path in updates[0]}
            )
            found = session(**arrays)
            check(module, found, arrays, *updates)
            for key in plain:
                assert relative_l2(found[key], plain[key]) > 0.05, "it has an effect worth the name"
        session.set_adapters({})
        session.set_adapters({path: [update] for path, update in first.items()})
        assert log == [plain_file, second], "without a call in between nothing is opened again"
        session.set_adapters({})
        for key, wanted in plain.items():
            assert np.array_equal(session(**arrays)[key], wanted)
        assert log == [plain_file, second, plain_file]


@pytest.mark.parametrize("name", ["clip", "scenes_unet"])
def test_second_graph(name: str, compiled_for_cuda: CompiledModules) -> None:
    """The same operators, branches beside the products, and no weight of its own."""
    module, (folder, compiled) = model(name), compiled_for_cuda(name)
    first = onnx.load(folder / compiled.files[0], load_external_data=False).graph
    second = onnx.load(folder / f"{module.name}.lora.onnx", load_external_data=False).graph
    counts = [Counter(node.op_type for node in graph.node) for graph in (first, second)]
    branches = (len(second.input) - len(first.input)) // 2
    convolutions = counts[0]["NhwcConv"]
    assert counts[1] - counts[0] == Counter(
        Add=branches, MatMul=2 * branches - convolutions, Conv=convolutions, Transpose=2 * convolutions
    )
    for operator in FUSED:
        assert counts[0][operator] == counts[1][operator]
    together = {"clip": 2 * 2, "scenes_unet": 7 * 2}[name]  # of 7 self-attentions
    assert branches == len(layers_of(module.source)) - together, "projections of one input share a branch"
    for tensor in second.initializer:
        if tensor.data_type in (1, 10) and len(tensor.dims) > 1:
            location = {item.key: item.value for item in tensor.external_data}["location"]
            assert location == compiled.files[0], tensor.name


def test_zeros_change_nothing(compiled_for_cuda: CompiledModules) -> None:
    module, (folder, compiled) = model("scenes_unet"), compiled_for_cuda("scenes_unet")
    arrays = random_inputs(module.spec, sizes_of(module, 1), 2, VOCABULARY)
    with opened(module, folder, compiled, []) as session:
        plain = session(**arrays)
        nothing = {path: [update.times(0.0)] for path, update in updates_of(session, 1).items()}
        session.set_adapters(nothing)
        for key, wanted in plain.items():  # the CPU rounds to halves in other places
            assert_close(session(**arrays)[key], wanted, rel_l2=2e-3)


def updates_of(session: CudaSession, rank: int, seed: int = 1) -> dict[str, LowRank]:
    return random_updates(session.adaptable(), rank, seed)


class Gated(nn.Module):
    """A feed-forward layer whose bias moves into the gated GELU behind it, and two layers of one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.out = nn.Linear(6, SPLIT_GELU_WIDTHS[0]), nn.Linear(SPLIT_GELU_WIDTHS[0] // 2, 6)
        self.twin, self.other_twin = nn.Linear(6, 6), nn.Linear(6, 6)
        self.other_twin.weight = self.twin.weight

    def forward(self, sample: Tensor) -> Any:
        left, right = self.into(sample).chunk(2, -1)
        return self.twin(self.other_twin(self.out(left * nn.functional.gelu(right))).tanh())


@pytest.fixture(scope="module")
def gated(tmp_path_factory: pytest.TempPathFactory) -> tuple[CapturedModule, Path, Compiled]:
    torch.manual_seed(0)
    tensor = TensorSpec("sample", "float32", ("batch", "tokens", 6))
    spec = ModuleSpec("unet", "unet", (tensor,), (tensor,), {"batch": SizeRange(), "tokens": SizeRange()})
    eager = Gated().eval()
    module, folder = capture(CapturedModule(spec, eager, eager)), tmp_path_factory.mktemp("gated")
    compiled = target.compile(module, folder, CompileOptions(Precision.FP16, device="cuda"))
    assert compiled.tactics["fused"] == {"BiasSplitGelu": 1}
    return module, folder, compiled


def test_in_front_of_a_moved_bias(gated: tuple[CapturedModule, Path, Compiled]) -> None:
    module, folder, compiled = gated
    x = np.random.default_rng(0).standard_normal((3, 5, 6), np.float32)
    with opened(module, folder, compiled, []) as session:
        plain = session(sample=x)["sample"]
        updates = random_updates({"into": session.adaptable()["into"]}, 2, seed=1)
        session.set_adapters({path: [update] for path, update in updates.items()})
        found = session(sample=x)["sample"]
        source = copy.deepcopy(module.source)
        add_to(source, updates)
        assert_close(found, source(torch.from_numpy(x)), rel_l2=2e-3)
        assert relative_l2(found, plain) > 0.02


def test_layers_without_a_place_are_refused(gated: tuple[CapturedModule, Path, Compiled]) -> None:
    module, folder, compiled = gated
    log: list[str] = []
    with opened(module, folder, compiled, log) as session:
        assert set(session.adaptable()) == {"into", "out"}, "which of the twins an update is for has no place"
        update = random_updates({"twin": (6, 6)}, 1, seed=1)["twin"]
        with pytest.raises(InputError, match="unet has no layer twin that takes updates"):
            session.set_adapters({"twin": [update]})
        assert len(log) == 1


def test_engines_without_places(gated: tuple[CapturedModule, Path, Compiled]) -> None:
    """Such as were built before there were LoRAs on CUDA."""
    module, folder, compiled = gated
    old = replace(compiled, files=compiled.files[:1])
    with opened(module, folder, old, []) as session:
        with pytest.raises(TargetError, match=r"built without the places of its weights.* build it again"):
            session.adaptable()
        session.set_adapters({})


class Faulty:
    """A device for a graph's place in a session's order of things."""

    def __init__(self, log: list[str], file: str, names: list[str], fails: str = "") -> None:
        self.names, self._log, self._file, self._fails = names, log, file, fails

    def value(self, shape: tuple[int, ...], dtype: str) -> Any:
        if self._fails == "value":
            raise RuntimeError("no memory")
        return np.zeros(shape, dtype)

    def write(self, value: Any, array: Any) -> None:
        value[...] = array

    def read(self, value: Any) -> Any:
        return np.array(value)

    def bind(self, inputs: list[Any], outputs: list[Any]) -> Any:
        return inputs, outputs

    def run(self, binding: Any, graph: int | None) -> None:
        self._log.append(f"run {self._file}")

    def forget(self, graph: int) -> None:
        pass

    def close(self) -> None:
        self._log.append(f"close {self._file}")


@pytest.mark.parametrize(
    ("fails", "words"),
    [
        ("open", "cannot be opened"),
        ("value", "no memory"),
        ("names", "are not of one build .*build it again"),
    ],
)
def test_second_graphs_that_fail(
    fails: str, words: str, gated: tuple[CapturedModule, Path, Compiled]
) -> None:
    """The first is closed before the second opens, and back afterwards; one is open at any time."""
    module, folder, compiled = gated
    log: list[str] = []
    broken = True

    def open_graph(file: str) -> cuda.Device:
        log.append(f"open {file}")
        if file == "unet.onnx":
            return Faulty(log, file, ["sample"])
        if broken and fails == "open":
            raise EngineDamagedError("cannot be opened")
        names = [f"{path}/{which}" for path in ("into", "out") for which in ("down", "up")]
        wrong = broken and fails == "names"
        return Faulty(log, file, ["sample", *names[wrong:]], fails if broken else "")

    entry = entry_of(module, compiled)
    session = CudaSession(folder, "unet", entry, "unet.onnx", open_graph)
    updates = {path: [update] for path, update in updates_of(session, 1).items()}
    for _ in range(2):
        with pytest.raises((RuntimeError, EngineDamagedError), match=words):
            session.set_adapters(updates)
    x = np.zeros((1, 1, 6), np.float32)
    session(sample=x)
    closed = [] if fails == "open" else ["close unet.lora.onnx"]
    turn = ["close unet.onnx", "open unet.lora.onnx", *closed, "open unet.onnx"]
    assert log == ["open unet.onnx", *turn, *turn, "run unet.onnx"]
    del log[:]
    broken = False
    session.set_adapters(updates)
    with pytest.raises(NumericError):
        session.set_adapters({"out": [updates["out"][0].times(1e9)]})
    session(sample=x)
    session.set_adapters({})
    session(sample=x)
    session.close()
    assert log == [
        "close unet.onnx",
        "open unet.lora.onnx",
        "run unet.lora.onnx",
        "close unet.lora.onnx",
        "open unet.onnx",
        "run unet.onnx",
        "close unet.onnx",
    ]


LAYERS = {
    "q": Layer((6, 10), (("q", "float16", "linear", 0, 14),)),
    "v": Layer((8, 10), (("q", "float16", "linear", 6, 14),)),
    "conv": Layer((5, 4, 3, 3), (("conv", "float16", "NHWC", 0, 5),)),
    "plain": Layer((5, 4, 3, 3), (("plain", "float32", "NCHW", 0, 5),)),
}


def product_of(matrices: dict[str, Any], name: str, order: str) -> Any:
    """What a branch adds to a weight [out, ...], in double precision."""
    down, up = (matrices[f"{name}/{which}"].astype(np.float64) for which in ("down", "up"))
    if order == "NCHW":
        return np.einsum("orhw,rabc->oabc", up, down)
    return np.einsum("rihw,ro->oihw", down, up) if order == "NHWC" else (down @ up).T


def test_matrices() -> None:
    """Shapes, types and products of each form; parts of a merged layer reach their own outputs alone."""
    shapes = {path: layer.shape for path, layer in LAYERS.items()}
    first, second = random_updates(shapes, 3, seed=1), random_updates(shapes, 6, seed=2, alpha=3.0)
    updates = {path: [first[path], second[path].times(-0.3)] for path in ("v", "conv", "plain")}
    found = matrices_of(LAYERS, updates, 2)
    assert {name: (array.shape, str(array.dtype)) for name, array in found.items()} == {
        "q/down": ((10, 16), "float16"),
        "q/up": ((16, 14), "float16"),
        "conv/down": ((16, 4, 3, 3), "float16"),
        "conv/up": ((16, 5), "float16"),
        "plain/down": ((16, 4, 3, 3), "float32"),
        "plain/up": ((5, 16, 1, 1), "float32"),
    }
    assert all(array.flags.c_contiguous for array in found.values())
    wanted = {path: sum(part.matrix() for part in parts) for path, parts in updates.items()}
    together = product_of(found, "q", "linear")
    assert not together[:6].any()
    assert_close(together[6:], wanted["v"], rel_l2=1e-3)
    assert_close(product_of(found, "conv", "NHWC"), wanted["conv"], rel_l2=1e-3)
    assert_close(product_of(found, "plain", "NCHW"), wanted["plain"], rel_l2=1e-6)
    both = matrices_of(LAYERS, {"q": [first["q"]], "v": [first["v"]]}, 1)
    assert_close(product_of(both, "q", "linear")[:6], first["q"].matrix(), rel_l2=1e-3)
    assert_close(product_of(both, "q", "linear")[6:], first["v"].matrix(), rel_l2=1e-3)
    assert both["conv/down"].shape[0] == RANK_STEP
    assert not any(both[name].any() for name in ("conv/down", "conv/up", "plain/down", "plain/up"))


def test_small_scales_keep_their_digits() -> None:
    """Halves have few digits below 6e-5: ``down`` takes a share of the scale."""
    shapes = {path: layer.shape for path, layer in LAYERS.items()}
    update = random_updates(shapes, 3, seed=1)["conv"]
    small = LowRank(update.down, update.up * np.float32(1e-2), 1e-4)
    found = matrices_of(LAYERS, {"conv": [small]}, 1)
    assert_close(product_of(found, "conv", "NHWC"), small.matrix(), rel_l2=1e-3)


@pytest.mark.parametrize("factor", [1e9, -1e38, float("nan")])
def test_out_of_range(factor: float) -> None:
    """In one line, by the layer's name; in float32 there is room for the first."""
    shapes = {path: layer.shape for path, layer in LAYERS.items()}
    updates = random_updates(shapes, 3, seed=1)
    with pytest.raises(NumericError, match="out of the range of float16 at v: give it a smaller scale"):
        matrices_of(LAYERS, {"v": [updates["v"].times(factor)]}, 1)
    if factor == 1e9:
        matrices_of(LAYERS, {"plain": [updates["plain"].times(factor)]}, 1)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["clip", "scenes_unet"])
def test_gpu_switching(name: str, compiled_for_cuda: CompiledModules) -> None:
    """The first picture bit for bit after two LoRAs; one of the same ranks reaches the captured graph."""
    if cuda.PROVIDER not in onnxruntime.get_available_providers():
        pytest.skip("onnxruntime-gpu is not installed")
    module, (folder, compiled) = model(name), compiled_for_cuda(name)
    arrays = random_inputs(module.spec, sizes_of(module, 0), 1, VOCABULARY)
    session = target.open(folder, module.name, entry_of(module, compiled), None)
    with session:
        plain = [session(**arrays) for _ in range(3)][-1]
        shapes = session.adaptable()
        seconds: list[float] = []
        for seed in (1, 2, 1):
            updates = random_updates(shapes, 9, seed)
            begin = time.perf_counter()
            session.set_adapters({path: [update] for path, update in updates.items()})
            seconds.append(time.perf_counter() - begin)
            for _ in range(3):
                check(module, session(**arrays), arrays, updates)
        assert max(seconds[1:]) <= 0.1, "the first opens the second graph"
        session.set_adapters({})
        for _ in range(3):
            for key, found in session(**arrays).items():
                assert np.array_equal(found, plain[key])
