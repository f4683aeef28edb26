"""The files of a module: all that was written is read, all that is damaged is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from fastdiff.config import Precision
from fastdiff.errors import EngineDamagedError, OutputError
from fastdiff.targets.cuda import file
from fastdiff.targets.cuda.choices import Choices
from fastdiff.targets.cuda.executor import Executor
from tests.compare import assert_close
from tests.targets.cuda.models import MODELS, arrays_of, executor_of, graph_of, outputs

CPU = torch.device("cpu")
CODE = torch.arange(100, dtype=torch.uint8)


def write(folder: Path, name: str, precision: Precision = Precision.FP32) -> Executor:
    executor = executor_of(graph_of(name), precision)
    kernels = [{"key": "k", "code": "0"}]
    module = file.Module(
        executor.graph, executor.dtypes, executor.weights, Choices().to_json(), kernels, {"0": CODE}
    )
    assert file.write(folder, name, module) == (f"{name}.cuda.json", f"{name}.cuda.safetensors")
    return executor


@pytest.mark.parametrize("name", MODELS)
def test_a_module_that_is_read_computes_the_same(tmp_path: Path, name: str) -> None:
    executor = write(tmp_path, name)
    module = file.read(tmp_path, name, CPU)
    again = Executor(module.graph, module.weights, module.dtypes, Choices())
    arrays = arrays_of(name)
    found = outputs(again, name, arrays)
    for output, wanted in outputs(executor, name, arrays).items():
        # read weights lie at other addresses, for which a BLAS may take another path
        assert_close(found[output], wanted, rel_l2=1e-6, label=output)
    assert module.kernels == [{"key": "k", "code": "0"}]
    assert torch.equal(module.code["0"], CODE)


@pytest.mark.parametrize("precision", [Precision.FP16, Precision.BF16])
def test_weights_keep_their_dtypes_and_layouts(tmp_path: Path, precision: Precision) -> None:
    executor = write(tmp_path, "sd15", precision)
    module = file.read(tmp_path, "sd15", CPU)
    for found, wanted in zip(module.weights, executor.weights, strict=True):
        assert found.dtype == wanted.dtype
        assert found.stride() == wanted.stride()
        assert torch.equal(found, wanted)
    assert module.dtypes == executor.dtypes


def damage(document: dict[str, Any], how: str) -> None:
    match how:
        case "version":
            document["format_version"] = 99
        case "node":
            document["graph"]["nodes"][3]["inputs"][0] = 10**6
        case "order":
            nodes = document["graph"]["nodes"]
            nodes[2], nodes[-2] = nodes[-2], nodes[2]
        case "weight":
            document["graph"]["nodes"][3]["weights"] = {"layer": 10**6}
        case "dtypes":
            document["dtypes"].pop()
        case "dtype":
            document["dtypes"][0] = "float8"
        case "key":
            del document["graph"]


@pytest.mark.parametrize("how", ["version", "node", "order", "weight", "dtypes", "dtype", "key"])
def test_a_damaged_graph_is_refused(tmp_path: Path, how: str) -> None:
    write(tmp_path, "vae_decoder")
    path = tmp_path / "vae_decoder.cuda.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    damage(document, how)
    path.write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(EngineDamagedError, match="build the engine again") as raised:
        file.read(tmp_path, "vae_decoder", CPU)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("size", [0, 7, 5000])
def test_cut_weights_are_refused(tmp_path: Path, size: int) -> None:
    write(tmp_path, "vae_decoder")
    path = tmp_path / "vae_decoder.cuda.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(EngineDamagedError, match="cannot be read"):
        file.read(tmp_path, "vae_decoder", CPU)


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot be written"):
        write(tmp_path / "missing", "clip")
