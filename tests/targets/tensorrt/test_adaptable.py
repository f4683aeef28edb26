"""Which weights of a plan LoRAs can update, as TensorRT folds and combines them; the file of their values."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from fastdiff.build.capture import CapturedModule
from fastdiff.build.onnx import export_onnx
from fastdiff.build.passes import run_passes
from fastdiff.config import Precision
from fastdiff.errors import OutputError
from fastdiff.targets.tensorrt import originals
from fastdiff.targets.tensorrt.adaptable import find_adaptable
from fastdiff.targets.tensorrt.interface import BuildRequest
from fastdiff.targets.tensorrt.progress import BuildProgress
from tests.lora.made_up import layers_of
from tests.published import captured_part
from tests.targets.tensorrt.conftest import Machine
from tests.targets.tensorrt.fake import FakeEngine


@pytest.fixture(scope="module")
def captured(tiny_checkpoint: Path) -> CapturedModule:
    module = captured_part(tiny_checkpoint, "text_encoder")
    assert module.program is not None
    return module.with_program(run_passes(module.program))


@pytest.fixture(scope="module")
def network(captured: CapturedModule, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("network") / "text_encoder.onnx"
    return export_onnx(captured, path, Precision.FP16)[0]


def engine_of(machine: Machine, network: Path, folder: Path, refittable: bool = True) -> FakeEngine:
    request = BuildRequest(({},), 1, refittable, b"", BuildProgress(lambda share: None))
    machine.api.build(network, folder / "text_encoder.plan", request)
    return machine.api.load(folder / "text_encoder.plan")


def test_every_layer(machine: Machine, captured: CapturedModule, network: Path, tmp_path: Path) -> None:
    """Stored as [in, out] in the file, whose names are those of the plan."""
    layers, values = find_adaptable(captured, network, engine_of(machine, network, tmp_path), "float16")
    assert {path: layer.shape for path, layer in layers.items()} == layers_of(captured.source)
    for path, layer in layers.items():
        ((name, transposed),) = layer.places
        weight = captured.source.get_submodule(path).weight.detach().half().numpy()
        assert transposed
        assert np.array_equal(values[name], weight.T)
    assert len(values) == len(layers)


def test_plans_without(machine: Machine, captured: CapturedModule, network: Path, tmp_path: Path) -> None:
    """Not built to be refitted, of another precision, or with nothing under a name that is known."""
    engine = engine_of(machine, network, tmp_path, refittable=False)
    assert find_adaptable(captured, network, engine, "float16") == ({}, {})
    engine = engine_of(machine, network, tmp_path)
    assert find_adaptable(captured, network, engine, "float32") == ({}, {})
    machine.api.folded = lambda name: True
    assert find_adaptable(captured, network, engine, "float16") == ({}, {})


def test_weights_that_are_folded_or_combined(
    machine: Machine, captured: CapturedModule, network: Path, tmp_path: Path
) -> None:
    engine = engine_of(machine, network, tmp_path)
    every, _ = find_adaptable(captured, network, engine, "float16")
    names = {path: layer.places[0][0] for path, layer in every.items()}
    first, second = (f"encoder.layers.{index}.mlp.fc1" for index in (0, 1))
    bias = next(name for name, (_, size) in engine.replaceable().items() if size == 64 and "bias" in name)

    machine.api.folded = lambda name: name == names[first]
    layers, values = find_adaptable(captured, network, engine, "float16")
    assert layers.keys() == every.keys() - {first}
    assert names[first] not in values

    machine.api.folded = lambda name: False
    machine.api.together = ((names[first], bias),)
    layers, values = find_adaptable(captured, network, engine, "float16")
    assert layers == every
    assert values[bias].shape == (64,), "what must be given with it is kept too"

    for unknown in ("", "made by the parser"):
        machine.api.together = ((names[first], unknown), (names[second], bias))
        layers, values = find_adaptable(captured, network, engine, "float16")
        assert layers.keys() == every.keys() - {first}
        assert bias in values


def test_file_of_values(tmp_path: Path) -> None:
    """As the safetensors library reads it, with halves behind floats so that all are aligned."""
    rng = np.random.default_rng(1)
    weights = {
        "half": rng.standard_normal((3, 5)).astype(np.float16),
        "float": rng.standard_normal((2, 3, 1, 1)).astype(np.float32),
        "one": np.asarray(0.5, np.float16),
    }
    name = originals.write(tmp_path, "unet", weights)
    library, found = load_file(tmp_path / name), originals.read(tmp_path, "unet")
    assert found.keys() == library.keys() == weights.keys()
    for key, wanted in weights.items():
        for read in (library[key], found[key]):
            assert (read.dtype, read.shape) == (wanted.dtype, wanted.shape)
            assert np.array_equal(read, wanted)
        assert found[key].ctypes.data % wanted.dtype.itemsize == 0
    with pytest.raises(OutputError, match=r"unet\.weights\.safetensors cannot be written: No such file"):
        originals.write(tmp_path / "none", "unet", weights)
