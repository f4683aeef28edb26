"""Weights with their updates by the network that TensorRT merges them with, against NumPy in float64."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fastdiff.errors import NumericError
from fastdiff.lora import LowRank
from fastdiff.targets.tensorrt.interface import BuildRequest, DeviceMemoryError, TensorRtError
from fastdiff.targets.tensorrt.memory import SharedMemory
from fastdiff.targets.tensorrt.merge_network import matrix_of, merge_shapes, write_merge
from fastdiff.targets.tensorrt.merger import Job, Merger
from fastdiff.targets.tensorrt.progress import BuildProgress
from tests.compare import assert_close
from tests.lora.made_up import random_updates
from tests.targets.tensorrt.conftest import Machine

SHAPES = {"linear": (5, 7), "square": (6, 6), "convolution": (4, 3, 3, 3), "narrow": (9, 2)}


def merger_of(machine: Machine, folder: Path, halves: bool) -> Merger:
    network, plan = folder / "unet.merge.onnx", folder / "unet.merge.plan"
    write_merge(network, halves)
    matrices = [matrix_of(shape) for shape in SHAPES.values()]
    profiles = (merge_shapes([*matrices, *(matrix[::-1] for matrix in matrices)]),)
    request = BuildRequest(profiles, 1, False, b"", BuildProgress(lambda share: None))
    machine.api.build(network, plan, request)
    return Merger(machine.api.load(plan), SharedMemory(machine.device))


def weights_of(dtype: str) -> dict[str, NDArray[Any]]:
    rng = np.random.default_rng(1)
    return {name: rng.standard_normal(shape).astype(dtype) for name, shape in SHAPES.items()}


def merged(
    machine: Machine,
    merger: Merger,
    stored: dict[str, NDArray[Any]],
    updates: dict[str, list[LowRank]],
    turned: bool,
) -> dict[str, NDArray[Any]]:
    """Weights, as they are stored, with updates added to them."""
    device = machine.device
    with device.active():
        stream, jobs = device.create_stream(), []
        for name, weight in stored.items():
            address = device.allocate(weight.nbytes)
            device.upload(address, np.ascontiguousarray(weight), stream)
            matrix = matrix_of(weight.shape)
            jobs.append(Job(name, address, weight.dtype, matrix, turned, updates[name]))
        with merger.merged(jobs, stream) as places:
            return {
                job.path: device.read(place, stored[job.path].shape, job.dtype.name)
                for job, place in zip(jobs, places, strict=True)
            }


@pytest.mark.parametrize("ranks", [(1,), (3,), (2, 1), (4, 40)], ids=str)
@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("turned", [False, True], ids=["as in PyTorch", "stored as in, out"])
def test_sums(machine: Machine, tmp_path: Path, dtype: str, turned: bool, ranks: tuple[int, ...]) -> None:
    """Also of more than the full rank, which is written with that."""
    merger, weights = merger_of(machine, tmp_path, dtype == "float16"), weights_of(dtype)
    if turned:
        weights = {name: weight for name, weight in weights.items() if weight.ndim == 2}
    updates = {
        name: [random_updates({name: SHAPES[name]}, rank, 7 * rank)[name].times(-0.5) for rank in ranks]
        for name in weights
    }
    stored = {name: weight.T if turned else weight for name, weight in weights.items()}
    found = merged(machine, merger, stored, updates, turned)
    for name, weight in weights.items():
        wanted = weight.astype(np.float64)
        for part in updates[name]:
            flat = part.down.reshape(part.rank, -1).astype(np.float64)
            wanted += part.scale * (part.up.astype(np.float64) @ flat).reshape(weight.shape)
        result = found[name].T if turned else found[name]
        assert_close(result, wanted, rel_l2=3e-4 if dtype == "float16" else 1e-6, label=name)
        assert not np.array_equal(result, weight)
    assert len(machine.device.blocks) == len(weights) + 1, (
        "but for the memory that modules share, all is free"
    )


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("value", [math.inf, math.nan, 3e38])
def test_out_of_range(machine: Machine, tmp_path: Path, dtype: str, value: float) -> None:
    merger, weights = merger_of(machine, tmp_path, dtype == "float16"), weights_of(dtype)
    updates = {name: [part.times(10)] for name, part in random_updates(SHAPES, 2, 1).items()}
    updates["square"][0].up[2, 1] = value
    with pytest.raises(NumericError, match=f"the weight of square out of the range of {dtype}: give"):
        merged(machine, merger, weights, updates, False)


def test_halves_up_to_the_largest(machine: Machine, tmp_path: Path) -> None:
    merger = merger_of(machine, tmp_path, True)
    one = np.ones((1, 1), np.float32)
    for value, fits in ((65504.0, True), (65519.0, True), (65520.0, False)):
        part = LowRank(one, one * value, 1.0)
        stored = {"one": np.zeros((1, 1), np.float16)}
        if fits:
            assert merged(machine, merger, stored, {"one": [part]}, False)["one"] == 65504
        else:
            with pytest.raises(NumericError):
                merged(machine, merger, stored, {"one": [part]}, False)


def test_failures_leave_no_memory(machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    merger, weights = merger_of(machine, tmp_path, True), weights_of("float16")
    updates = {name: [part] for name, part in random_updates(SHAPES, 2, 1).items()}
    machine.device.capacity = sum(weight.nbytes for weight in weights.values()) + 100
    with pytest.raises(DeviceMemoryError):
        merged(machine, merger, weights, updates, False)
    assert len(machine.device.blocks) == len(weights)
    machine.device.capacity = 1 << 40

    def fail(*args: object) -> None:
        raise TensorRtError("the run failed")

    monkeypatch.setattr(machine.device, "put", fail)
    with pytest.raises(TensorRtError, match="the run failed"):
        merged(machine, merger, weights, updates, False)
    assert len(machine.device.blocks) == 2 * len(weights) + 1
