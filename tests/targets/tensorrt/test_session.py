"""Sessions: runs, graphs, shapes that come and go, memory that moves, the caller's stream and memory."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastdiff.errors import FastdiffWarning, InputError, TargetError
from fastdiff.targets.tensorrt import session as module
from fastdiff.targets.tensorrt.memory import SharedMemory
from fastdiff.targets.tensorrt.session import TensorRtSession
from tests.compare import assert_close
from tests.targets.tensorrt.conftest import Machine
from tests.targets.tensorrt.models import arrays, expected, open_session, write_plan


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_plan(tmp_path_factory.mktemp("plan") / "unet.plan")


@pytest.fixture
def memory(machine: Machine) -> SharedMemory:
    return SharedMemory(machine.device)


@pytest.fixture
def session(machine: Machine, plan: Path, memory: SharedMemory) -> Iterator[TensorRtSession]:
    with open_session(machine.api, plan, memory) as session:
        yield session
    assert machine.device.used() == 0
    assert not machine.device.streams
    assert not machine.device.graphs


def check(session: TensorRtSession, given: dict[str, Any]) -> None:
    found = session(**given)
    for name, wanted in expected(given).items():
        assert_close(found[name], wanted, rel_l2=1e-6, label=name)


def kinds(machine: Machine) -> list[str]:
    found = [event[0] for event in machine.device.log]
    machine.device.log.clear()
    return found


def test_second_run_of_a_shape_is_captured_and_further_ones_replay(
    machine: Machine, session: TensorRtSession
) -> None:
    for seed in range(4):
        check(session, arrays(seed))
    assert kinds(machine) == ["run", "capture", "launch", "launch", "launch"]
    check(session, arrays(batch=1, height=3, width=5))
    assert kinds(machine) == ["run"]
    check(session, arrays(9))
    assert kinds(machine) == ["launch"], "the first shape's graph is still good"


def test_results_are_the_callers(session: TensorRtSession) -> None:
    first = session(**arrays(1))["sample"]
    kept = first.copy()
    session(**arrays(2))
    np.testing.assert_array_equal(first, kept)


def test_least_recently_used_shape_goes_first(
    machine: Machine, session: TensorRtSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_SHAPES", 2)
    for width in (4, 5, 4, 6):  # 5 goes when 6 comes: 4 has been used since
        check(session, arrays(width=width))
    kinds(machine)
    used = machine.device.used()
    check(session, arrays(width=4))
    assert kinds(machine) == ["launch"]
    check(session, arrays(width=5))
    assert kinds(machine) == ["run"]
    assert machine.device.used() <= used, "what went has been freed"
    assert len(machine.device.graphs) == 1


def test_usual_size_runs_in_the_memory_that_opening_reserved(
    session: TensorRtSession, memory: SharedMemory
) -> None:
    size = memory.size
    assert size > 0
    check(session, arrays())
    assert (memory.size, memory.generation) == (size, 0)


def test_graphs_are_captured_again_when_the_memory_has_moved(
    machine: Machine, session: TensorRtSession, memory: SharedMemory
) -> None:
    for seed in range(2):
        check(session, arrays(seed))
    kinds(machine)
    check(session, arrays(batch=4, height=8, width=12))
    assert session.memory_generation == 1
    assert kinds(machine) == ["run"]
    for seed in range(3):
        check(session, arrays(seed))
    assert kinds(machine) == ["run", "capture", "launch", "launch"]


def test_modules_share_one_block(machine: Machine, plan: Path, memory: SharedMemory) -> None:
    with open_session(machine.api, plan, memory) as first, open_session(machine.api, plan, memory) as second:
        alone = memory.size
        for seed in range(3):
            check(first, arrays(seed))
            check(second, arrays(seed + 10, width=5))
        assert memory.size == alone
    assert machine.device.used() == 0


def test_block_stays_until_the_last_module_closes(machine: Machine, plan: Path, memory: SharedMemory) -> None:
    first, second = (open_session(machine.api, plan, memory) for _ in range(2))
    first.close()
    first.close()  # twice is once
    check(second, arrays())
    second.close()
    assert machine.device.used() == 0


def test_closed_session_says_so(machine: Machine, plan: Path, memory: SharedMemory) -> None:
    session = open_session(machine.api, plan, memory)
    session.close()
    with pytest.raises(TargetError, match="unet: the session was closed"):
        session(**arrays())


def test_layer_that_cannot_be_captured_runs_without_a_graph(
    machine: Machine, session: TensorRtSession
) -> None:
    machine.device.fail_capture = True
    check(session, arrays(0))
    with pytest.warns(FastdiffWarning, match=r"unet: runs without a CUDA graph.*cannot be captured"):
        check(session, arrays(1))
    check(session, arrays(2))
    assert kinds(machine) == ["run", "run", "run"]
    assert not machine.device.capturing


def test_full_memory_leaves_the_session_usable(machine: Machine, session: TensorRtSession) -> None:
    check(session, arrays(0))
    machine.device.capacity = machine.device.used()
    with pytest.raises(TargetError, match=r"unet: GPU 0 has no .* left: ask for smaller or fewer pictures"):
        session(**arrays(batch=4, height=8, width=12))
    machine.device.capacity = 1 << 30
    for seed in range(3):
        check(session, arrays(seed))


def test_threads_take_turns(session: TensorRtSession) -> None:
    """Two pipelines may use one engine; one's activations never land in the other's run."""
    failures: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            for step in range(10):
                check(session, arrays(seed * 100 + step, width=4 + seed))
        except BaseException as error:  # noqa: BLE001 (reported below)
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures


def test_size_beyond_the_engine(session: TensorRtSession) -> None:
    with pytest.raises(InputError, match="height of sample is 9: it must be 2 to 8"):
        session(**arrays(height=9))


def on_device(machine: Machine, given: dict[str, Any]) -> tuple[dict[str, int], dict[str, int], int]:
    """The caller's own buffers, and a stream."""
    device = machine.device
    with device.active():
        stream = device.create_stream()
        inputs = {name: device.allocate(array.nbytes) for name, array in given.items()}
        outputs = {name: device.allocate(array.nbytes) for name, array in expected(given).items()}
        for name, array in given.items():
            device.upload(inputs[name], array, stream)
    return inputs, outputs, stream


def test_runs_on_the_callers_stream_and_memory(machine: Machine, plan: Path, memory: SharedMemory) -> None:
    given = arrays(5)
    inputs, outputs, stream = on_device(machine, given)
    with open_session(machine.api, plan, memory) as session:
        for _ in range(3):
            session.enqueue(inputs, outputs, {"batch": 2, "height": 4, "width": 6}, stream)
        assert kinds(machine) == ["run", "run", "run"], "whether to capture is the caller's to say"
        for name, wanted in expected(given).items():
            found = machine.device.read(outputs[name], wanted.shape, "float32")
            assert_close(found, wanted, rel_l2=1e-6, label=name)


def test_caller_may_capture(machine: Machine, plan: Path, memory: SharedMemory) -> None:
    given, device = arrays(5), machine.device
    inputs, outputs, stream = on_device(machine, given)
    sizes = {"batch": 2, "height": 4, "width": 6}
    with open_session(machine.api, plan, memory) as session:
        session.enqueue(inputs, outputs, sizes, stream)
        device.begin_capture(stream)
        session.enqueue(inputs, outputs, sizes, stream)
        with device.active():
            graph = device.end_capture(stream)
            other = arrays(6)
            for name, array in other.items():
                device.upload(inputs[name], array, stream)
        device.launch(graph, stream)
        wanted = expected(other)["sample"]
        assert_close(device.read(outputs["sample"], wanted.shape, "float32"), wanted, rel_l2=1e-6)


def test_runs_on_different_streams_wait_for_each_other(
    machine: Machine, plan: Path, memory: SharedMemory
) -> None:
    given = arrays(5)
    inputs, outputs, stream = on_device(machine, given)
    with open_session(machine.api, plan, memory) as session:
        session(**given)
        assert kinds(machine) == ["run"], "it has ended: nobody waits for it"
        session.enqueue(inputs, outputs, {"batch": 2, "height": 4, "width": 6}, stream)
        session(**given)
        log = machine.device.log
        assert [event[0] for event in log] == ["run", "order", "capture", "launch"]
        assert log[1][1] == stream


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sizes": {"batch": 2, "height": 9, "width": 6}}, "height is 9: it must be 2 to 8"),
        ({"sizes": {"batch": 2, "height": 4}}, "width is None: it must be"),
        ({"inputs": {"sample": 1}}, "takes the inputs sample and timestep and the outputs sample and total"),
    ],
)
def test_enqueue_checks_names_and_sizes(
    session: TensorRtSession, changes: dict[str, Any], words: str
) -> None:
    options: dict[str, Any] = {
        "inputs": {"sample": 1, "timestep": 2},
        "outputs": {"sample": 3, "total": 4},
        "sizes": {"batch": 2, "height": 4, "width": 6},
        "stream": 5,
    }
    with pytest.raises(InputError, match=words):
        session.enqueue(**{**options, **changes})
