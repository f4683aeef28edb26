"""The block that modules share: found by engine and GPU, grown, ordered between streams, given back."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastdiff.targets.tensorrt.interface import DeviceMemoryError
from fastdiff.targets.tensorrt.memory import SharedMemory, shared_memory
from tests.targets.tensorrt.fake import FakeDevice


@pytest.fixture
def device() -> FakeDevice:
    return FakeDevice()


def test_one_block_for_each_engine_and_gpu(device: FakeDevice, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    first = shared_memory(tmp_path / "a", 0, device)
    assert shared_memory(tmp_path / "b" / ".." / "a", 0, device) is first
    assert shared_memory(tmp_path / "b", 0, device) is not first
    assert shared_memory(tmp_path / "a", 1, device) is not first


def test_grows_to_the_largest_and_not_to_the_sum(device: FakeDevice) -> None:
    memory = SharedMemory(device)
    with device.active():
        for size in (1000, 5000, 3000):
            memory.reserve(size)
        assert memory.size == device.used() == 5000
        assert memory.generation == 1
        memory.free()
    assert device.used() == 0


def test_old_block_goes_before_the_new_one_comes(device: FakeDevice) -> None:
    device.capacity = 5000
    memory = SharedMemory(device)
    with device.active():
        memory.reserve(3000)
        memory.reserve(4000)
        with pytest.raises(DeviceMemoryError):
            memory.reserve(6000)
        assert (memory.size, device.used()) == (0, 0)
        memory.reserve(2000)


def test_streams_wait_for_each_other_only_while_a_run_is_under_way(device: FakeDevice) -> None:
    memory = SharedMemory(device)
    memory.use(256)
    memory.use(256)
    assert device.log == []
    memory.use(512)
    assert device.log == [("order", 256, 512)]
    memory.settled(256)  # not the last one: 512 may still run
    memory.use(768)
    assert device.log[1:] == [("order", 512, 768)]
    memory.settled(768)
    memory.use(256)
    assert len(device.log) == 2
