"""LoRAs under CUDA graphs, on the recording backend: weights change where they are, and go back."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastdiff.build.capture import run_eager
from fastdiff.build.modules import module_wrapper
from fastdiff.config import Precision
from fastdiff.errors import InputError, NumericError, TargetError
from fastdiff.samplers import Generator, NoiseSchedule, make_table
from fastdiff.targets import CompileOptions
from fastdiff.targets.cuda import compiler, session
from fastdiff.targets.cuda.adapters import Adapters
from fastdiff.targets.cuda.calls import Call
from fastdiff.targets.cuda.choices import Choices
from fastdiff.targets.cuda.graphs import GraphCache
from fastdiff.targets.cuda.implementations import Option, implementation
from fastdiff.targets.cuda.ranges import measure_ranges, plan_scales, scaled
from fastdiff.targets.cuda.session import CudaSession, open_session
from tests.compare import assert_close, relative_l2
from tests.lora.made_up import add_to, random_updates
from tests.targets.cuda.models import CPU, arrays_of, executor_of, graph_of, lowered, model, outputs
from tests.targets.cuda.recording import RecordingBackend
from tests.targets.cuda.test_target import compiled, entry_of

NAME = "sd15"


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> CudaSession:
    folder = tmp_path_factory.mktemp("sd15")
    entry, _ = compiled(NAME, folder)
    cache = GraphCache(RecordingBackend(lazy=False), 1 << 60)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session, "_graphs", lambda device: cache)
        return open_session(folder, model(NAME).name, entry, CPU)


def expected(updates: dict[str, Any], arrays: dict[str, Any]) -> dict[str, Any]:
    source = copy.deepcopy(model(NAME).source)
    add_to(source, updates)
    spec = model(NAME).spec
    return run_eager(module_wrapper("unet", source), spec.inputs, spec.outputs, arrays)


def addresses(opened: CudaSession) -> list[int]:
    executor = opened._adapters._executor
    return [weight.data_ptr() for weight in (*executor.weights, *executor._prepared.values())]


def test_captured_graphs_go_on_with_updated_weights(opened: CudaSession) -> None:
    arrays = arrays_of(NAME)
    plain = opened(**arrays)["sample"]
    cache = opened._graphs
    before = cache.captures, addresses(opened)
    shapes = opened.adaptable()
    first, second = random_updates(shapes, 3, seed=1), random_updates(shapes, 2, seed=2)
    for updates in (first, second):
        opened.set_adapters({path: [update] for path, update in updates.items()})
        found = opened(**arrays)["sample"]
        assert_close(found, expected(updates, arrays)["sample"], rel_l2=1e-5)
        assert relative_l2(found, plain) > 0.1
    opened.set_adapters({})
    assert np.array_equal(opened(**arrays)["sample"], plain)
    assert before == (cache.captures, addresses(opened))


def test_the_loop_sees_them(opened: CudaSession) -> None:
    arrays = arrays_of(NAME, 0)
    schedule = NoiseSchedule.from_config({"beta_schedule": "scaled_linear", "beta_end": 0.012})
    table = make_table("euler", schedule, 3)
    latents = arrays["sample"]
    inputs = {"encoder_hidden_states": arrays["encoder_hidden_states"]}

    def draw() -> Any:
        return opened.sample(table, latents, inputs, 1.0, Generator(1), None)

    shapes = opened.adaptable()
    prompt = {path: shape for path, shape in shapes.items() if path.endswith(("attn2.to_k", "attn2.to_v"))}
    time = {path: shape for path, shape in shapes.items() if "time_emb" in path}
    plain, drawn = draw(), []
    for some in (prompt, time):
        opened.set_adapters({path: [u] for path, u in random_updates(some, 2, seed=3, size=2.0).items()})
        drawn.append(draw())
        assert relative_l2(drawn[-1], plain) > 1e-3
    opened.set_adapters({})
    assert np.array_equal(draw(), plain)


def test_not_from_a_callback(opened: CudaSession) -> None:
    arrays = arrays_of(NAME, 0)
    table = make_table("euler", NoiseSchedule.from_config({}), 2)
    updates = random_updates({"conv_in": opened.adaptable()["conv_in"]}, 1, seed=1)

    def callback(step: int, total: int, latents: Any) -> None:
        opened.set_adapters({"conv_in": [updates["conv_in"]]})

    inputs = {"encoder_hidden_states": arrays["encoder_hidden_states"]}
    with pytest.raises(InputError, match="weights cannot change from the callback of a loop"):
        opened.sample(table, arrays["sample"], inputs, 1.0, Generator(1), callback)


def test_scaled_layers_and_prepared_weights() -> None:
    """In an engine of halves layers may hold their weights times a power of two; some have them twice."""
    graph, spec = graph_of(NAME), model(NAME).spec
    exact = executor_of(graph)
    ranges = measure_ranges(exact, [arrays_of(NAME)], [tensor.name for tensor in spec.inputs])
    smaller = scaled(graph, plan_scales(graph, ranges, 2.0**-3))
    places = compiler._places(model(NAME), lowered(NAME), smaller)
    assert {exponent for layer in places.values() for _, _, exponent in layer.places} > {0}

    def choose(call: Call) -> Option:
        takes = call.node.op == "conv2d" and implementation("conv2d", "phases").applies(call)
        return Option("phases") if takes else Choices()(call)

    executor = executor_of(smaller, choose=choose)
    executor.weights = [weight.clone() for weight in executor.weights]  # some are the model's own memory
    arrays = arrays_of(NAME)
    plain = outputs(executor, NAME, arrays)["sample"]
    assert executor._prepared
    adapters = Adapters(executor, places)
    updates = random_updates({path: layer.shape for path, layer in places.items()}, 3, seed=4)
    adapters.set({path: [update] for path, update in updates.items()})
    found = outputs(executor, NAME, arrays)["sample"]
    assert_close(found, expected(updates, arrays)["sample"], rel_l2=1e-5)
    adapters.set({})
    assert np.array_equal(outputs(executor, NAME, arrays)["sample"], plain)


def test_halves_that_overflow(tmp_path: Path) -> None:
    """The layer is named, and nothing has changed."""
    entry, _ = compiled(NAME, tmp_path, Precision.FP16)
    with open_session(tmp_path, "unet", entry, CPU) as opened:
        arrays = arrays_of(NAME)
        plain = opened(**arrays)["sample"]
        small = random_updates({"conv_out": opened.adaptable()["conv_out"]}, 1, seed=1)["conv_out"]
        with pytest.raises(NumericError, match="takes the weight of conv_out out of the range"):
            opened.set_adapters({"conv_out": [small.times(1e9)]})
        assert np.array_equal(opened(**arrays)["sample"], plain)
        opened.set_adapters({"conv_out": [small]})
        found = opened(**arrays)["sample"]
        assert relative_l2(found, expected({"conv_out": small}, arrays)["sample"]) < 0.02
        opened.set_adapters({})
        assert np.array_equal(opened(**arrays)["sample"], plain)
        assert torch.is_tensor(opened._adapters._executor.weights[0])


def test_engines_without_places(tmp_path: Path) -> None:
    entry, _ = compiled(NAME, tmp_path)
    bare = {name: digest for name, digest in entry.files.items() if "parameters" not in name}
    old = type(entry)(**{**vars(entry), "files": bare})
    with open_session(tmp_path, "unet", old, CPU) as opened:
        with pytest.raises(TargetError, match="build it again"):
            opened.adaptable()
        opened.set_adapters({})


@pytest.mark.gpu
def test_gpu_captured_graphs_go_on_with_updated_weights(tmp_path: Path) -> None:
    device = torch.device("cuda", 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiler, "lower_module", lambda module: lowered(NAME))
        result = compiler.compile_module(model(NAME), tmp_path, CompileOptions(Precision.FP16))
    entry = entry_of(NAME, result.files, Precision.FP16)
    with open_session(tmp_path, model(NAME).name, entry, device) as opened:
        arrays = arrays_of(NAME)
        plain = opened(**arrays)["sample"]
        captures = opened._graphs.captures
        updates = random_updates(opened.adaptable(), 3, seed=1)
        opened.set_adapters({path: [update] for path, update in updates.items()})
        found = opened(**arrays)["sample"]
        assert_close(found, expected(updates, arrays)["sample"], rel_l2=0.02)
        assert relative_l2(found, plain) > 0.1
        opened.set_adapters({})
        assert np.array_equal(opened(**arrays)["sample"], plain)
        assert opened._graphs.captures == captures
