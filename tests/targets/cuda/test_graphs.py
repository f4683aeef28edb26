"""The cache of graphs, calls of plain modules, and the recording backend that both are tested on."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from fastdiff.errors import InputError
from fastdiff.targets.cuda.backend import EagerBackend
from fastdiff.targets.cuda.call import GraphedCall
from fastdiff.targets.cuda.captures import ended
from fastdiff.targets.cuda.graphs import Buffer, Captured, CudaBackend, GraphCache, capture
from fastdiff.targets.cuda.tune import graph_seconds
from tests.compare import assert_close
from tests.targets.cuda.recording import Misuse, RecordingBackend

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
HUGE = 1 << 40


def entry(cache: GraphCache, name: str, floats: int, temporary: int = 0) -> Captured:
    """The entry ``name`` with that many floats in static buffers and in temporaries."""

    def make() -> Captured:
        backend = cache.backend
        static = backend.zeros((floats,), torch.float32)

        def body() -> None:
            static.add_(torch.ones(temporary, device=static.device).sum())

        return Captured((name,), {"run": capture(backend, body)}, others=[static])

    return cache.get((name,), make)


def names(cache: GraphCache) -> list[object]:
    return [key[0] for key in cache.keys]


def test_the_least_recently_used_goes_first() -> None:
    cache = GraphCache(RecordingBackend(), 4 * 350)
    first = entry(cache, "a", 100)
    entry(cache, "b", 100)
    entry(cache, "c", 100)
    assert entry(cache, "a", 100) is first
    assert names(cache) == ["b", "c", "a"]
    entry(cache, "d", 100)
    assert names(cache) == ["c", "a", "d"]
    entry(cache, "e", 200)  # needs the room of two
    assert names(cache) == ["d", "e"]
    assert (cache.captures, cache.hits, cache.evictions) == (5, 1, 3)
    assert cache.bytes <= cache.limit_bytes


def test_eviction_frees_graphs_and_buffers() -> None:
    backend = RecordingBackend()
    cache = GraphCache(backend, 4 * 150)
    evicted = entry(cache, "a", 100)
    graph = evicted.graphs["run"]
    before = cache.bytes
    entry(cache, "b", 100)
    assert [graph.alive for graph in backend.graphs] == [False, True]
    assert cache.bytes == before
    assert (evicted.bytes, evicted.graphs) == (0, {})
    with pytest.raises(Misuse, match="replayed after it had been freed"):
        graph.replay()


def test_one_entry_over_the_bound_runs_alone() -> None:
    cache = GraphCache(RecordingBackend(), 4 * 150)
    entry(cache, "a", 100)
    large = entry(cache, "large", 1000)
    large.graphs["run"].replay()
    assert names(cache) == ["large"]
    assert entry(cache, "large", 1000) is large
    entry(cache, "b", 100)
    assert names(cache) == ["b"]


def test_entries_share_the_memory_of_temporaries() -> None:
    cache = GraphCache(RecordingBackend(), HUGE)
    for name, temporary in (("a", 1000), ("b", 2000), ("c", 500)):
        entry(cache, name, 1, temporary)
    assert cache.bytes < 4 * (3 + 2000 + 16)


def test_the_pool_of_evicted_graphs_is_given_back() -> None:
    """CUDA's pool never shrinks while a graph uses it, so that the last entry is captured again, alone."""
    backend = RecordingBackend()
    cache = GraphCache(backend, 4 * 600)
    entry(cache, "a", 1, 100)
    entry(cache, "large", 1, 1000)
    assert names(cache) == ["large"]
    assert cache.bytes > cache.limit_bytes
    captures = cache.captures
    entry(cache, "b", 1, 100)
    assert names(cache) == ["b"]
    assert cache.bytes < 4 * 150
    entry(cache, "c", 1, 100)
    assert cache.captures == captures + 2
    assert names(cache) == ["b", "c"], "both fit again"


def test_the_last_of_several_does_not_inherit_what_the_others_took() -> None:
    cache = GraphCache(RecordingBackend(), 4 * 600)
    entry(cache, "a", 1, 500)
    last = entry(cache, "b", 300, 100)
    assert names(cache) == ["b"]
    assert cache.bytes <= cache.limit_bytes
    assert cache.get(("b",), lambda: pytest.fail("is there")) is last
    last.graphs["run"].replay()


def test_what_runs_is_not_evicted() -> None:
    cache = GraphCache(RecordingBackend(), 4 * 150)
    entry(cache, "a", 100)
    with cache.running(("a",), lambda: pytest.fail("is there")) as running:
        entry(cache, "b", 100)
        entry(cache, "c", 100)
        assert names(cache) == ["a", "c"]
        running.graphs["run"].replay()
        with (
            pytest.raises(InputError, match="own callback"),
            cache.running(("a",), lambda: pytest.fail("is there")),
        ):
            pass
        with pytest.raises(InputError, match="own callback"):
            cache.close()
    entry(cache, "d", 100)
    assert names(cache) == ["d"]


def test_an_entry_that_does_not_fit_is_replaced() -> None:
    cache = GraphCache(RecordingBackend(), HUGE)
    old = entry(cache, "a", 10)

    def larger() -> Captured:
        assert old.bytes == 0, "freed before the new one takes memory"
        return Captured(("a",), {}, others=[torch.zeros(20)])

    new = cache.get(("a",), larger, lambda found: found.bytes >= 80)
    assert cache.get(("a",), larger, lambda found: found.bytes >= 80) is new
    assert (cache.captures, cache.hits, cache.evictions) == (2, 1, 0)


def test_close_frees_what_one_owner_has() -> None:
    cache = GraphCache(RecordingBackend(), HUGE)
    for name in ("a", "b"):
        entry(cache, name, 10)
    cache.close("a")
    assert names(cache) == ["b"]
    cache.close()
    assert (names(cache), cache.bytes) == ([], 0)


def test_running_out_of_memory_evicts_all_and_tries_once_more() -> None:
    backend = RecordingBackend()
    cache = GraphCache(backend, HUGE)
    entry(cache, "a", 10)
    backend.full = 1
    entry(cache, "b", 10)
    assert names(cache) == ["b"]
    backend.full = 2
    with pytest.raises(torch.OutOfMemoryError):
        entry(cache, "c", 10)
    assert names(cache) == []
    backend.full = 1
    with pytest.raises(torch.OutOfMemoryError):  # nothing to evict
        entry(cache, "d", 10)
    assert entry(cache, "d", 10).bytes == 40


def test_a_capture_that_fails_leaves_the_cache_as_it_was() -> None:
    cache = GraphCache(RecordingBackend(), HUGE)
    kept = entry(cache, "a", 10)

    def fail() -> Captured:
        raise ValueError("no such kernel")

    with pytest.raises(ValueError, match="no such kernel"), cache.running(("b",), fail):
        pass
    assert (names(cache), cache.captures) == (["a"], 1)
    assert entry(cache, "a", 10) is kept


def test_another_thread_waits_until_a_run_has_ended() -> None:
    cache = GraphCache(RecordingBackend(), HUGE)
    entry(cache, "a", 10)
    order = []
    started = threading.Event()

    def other() -> None:
        started.set()
        with cache.running(("a",), lambda: pytest.fail("is there")):
            order.append("other")

    thread = threading.Thread(target=other)
    with cache.running(("a",), lambda: pytest.fail("is there")):
        thread.start()
        assert started.wait(10)
        thread.join(0.05)
        order.append("first")
    thread.join(10)
    assert order == ["first", "other"]


def test_buffers_may_be_filled_in_part() -> None:
    buffer = Buffer(EagerBackend(), (4, 2), torch.float32)
    buffer.upload(np.ones((4, 2)))
    buffer.upload(np.full((2, 2), 3.0, np.float32))
    assert buffer.tensor.tolist() == [[3, 3], [3, 3], [1, 1], [1, 1]]
    buffer.tensor.mul_(2)
    buffer.fetch()
    assert buffer.array.tolist() == [[6, 6], [6, 6], [2, 2], [2, 2]]


def double(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    x = tensors["x"]
    half = (2 * x).to(torch.bfloat16)
    return {"double": half, "sums": tensors["ids"].sum(1), "same": x}


def call_arguments(rows: int = 3) -> dict[str, np.ndarray]:
    x = np.arange(rows * 5, dtype=np.float32).reshape(rows, 5)
    return {"x": x, "ids": np.arange(rows * 7).reshape(rows, 7)}


def check_call(call: GraphedCall, rows: int) -> None:
    arrays = call_arguments(rows)
    found = call(arrays)
    assert {name: array.dtype.name for name, array in found.items()} == {
        "double": "float32",  # NumPy has no bfloat16
        "sums": "int64",
        "same": "float32",
    }
    np.testing.assert_array_equal(found["double"], 2 * arrays["x"])  # whole numbers below 256: exact
    np.testing.assert_array_equal(found["sums"], arrays["ids"].sum(1))
    np.testing.assert_array_equal(found["same"], arrays["x"])


@pytest.mark.parametrize("lazy", [True, False], ids=["device behind", "device ahead"])
def test_calls_of_plain_modules(lazy: bool) -> None:
    backend = RecordingBackend(lazy=lazy)
    call = GraphedCall(GraphCache(backend, HUGE), double)
    for captures, rows in ((1, 3), (2, 1), (2, 3), (2, 1)):
        check_call(call, rows)
        assert Counter(backend.log)["capture"] == captures
    first = call(call_arguments())
    kept = first["double"].copy()
    call({name: array + 1 for name, array in call_arguments().items()})
    np.testing.assert_array_equal(first["double"], kept)  # results are the caller's
    call.close()
    assert not any(graph.alive for graph in backend.graphs)
    check_call(call, 3)


def test_calls_keep_to_the_dtype_of_an_array() -> None:
    cache = GraphCache(RecordingBackend(), HUGE)
    call = GraphedCall(cache, lambda tensors: {"y": tensors["x"] + 1})
    assert call({"x": np.array([2**40])})["y"].tolist() == [2**40 + 1]
    assert call({"x": np.array([0.5], np.float32)})["y"].tolist() == [1.5]
    assert cache.captures == 2


def test_two_calls_of_one_shape_do_not_meet() -> None:
    cache = GraphCache(RecordingBackend(), HUGE)
    plus, minus = (GraphedCall(cache, lambda tensors, s=s: {"y": tensors["x"] + s}) for s in (1, -1))
    x = np.zeros(3, np.float32)
    for _ in range(2):
        assert plus({"x": x})["y"].tolist() == [1, 1, 1]
        assert minus({"x": x})["y"].tolist() == [-1, -1, -1]
    plus.close()
    assert minus({"x": x})["y"].tolist() == [-1, -1, -1]


STATIC = torch.ones(3)


def item() -> None:
    STATIC.mul_(float(STATIC.sum()))


def branch() -> None:
    if STATIC[0] > 0:
        STATIC.add_(1)


def to_host() -> None:
    STATIC.copy_(STATIC.cpu() * 2)


def to_numpy() -> None:
    STATIC.mul_(float(STATIC.numpy().sum()))


def to_list() -> None:
    STATIC.mul_(STATIC.tolist()[0])


def sizes_from_values() -> None:
    STATIC.add_(STATIC.nonzero().sum())


def other_device() -> None:
    torch.empty(3, device="meta").copy_(STATIC.to("meta"))


KEPT: list[Tensor] = []


def keeps_a_result() -> None:
    KEPT.append(STATIC * 2)


def keeps_a_view() -> None:
    KEPT.append((STATIC * 2)[1:])


@pytest.mark.parametrize(
    "body",
    [item, branch, to_host, to_numpy, to_list, sizes_from_values, other_device, keeps_a_result, keeps_a_view],
)
def test_the_recording_backend_finds_what_a_graph_cannot_do(body: Callable[[], None]) -> None:
    with pytest.raises(Misuse):
        RecordingBackend().capture(body)
    KEPT.clear()


def test_the_recording_backend_finds_what_differs_between_replays() -> None:
    numbers = iter(range(100))
    tensors = [torch.ones(3), torch.ones(3)]
    bodies: list[Callable[[], object]] = [
        lambda: STATIC.add_(next(numbers)),  # a number from the host
        lambda: tensors[next(numbers) % 2].add_(1),  # another address
        lambda: [STATIC.add_(1) for _ in range(next(numbers))],  # another number of operations
    ]
    for body in bodies:

        def run(body: Callable[[], object] = body) -> None:
            body()

        graph = RecordingBackend(lazy=False).capture(run)
        with pytest.raises(Misuse, match="a replay of graph 0"):
            graph.replay()


def test_a_lazy_recording_does_nothing_before_somebody_waits() -> None:
    backend = RecordingBackend()
    static = backend.zeros((1,), torch.float32)

    def body() -> None:
        static.add_(1)

    graph = backend.capture(body)
    graph.replay()
    middle = backend.record()
    graph.replay()
    assert static.item() == 1  # of the capture
    middle.synchronize()
    assert static.item() == 2
    backend.record().synchronize()
    assert static.item() == 3
    graph.replay()
    graph.free()
    with pytest.raises(Misuse, match="freed before a replay of it had ended"):
        backend.record().synchronize()


@pytest.fixture
def gpu() -> CudaBackend:
    return CudaBackend()


@pytest.mark.gpu
@needs_gpu
def test_calls_on_a_gpu(gpu: CudaBackend) -> None:
    call = GraphedCall(GraphCache(gpu, HUGE), double)
    for rows in (3, 1, 3, 1):
        check_call(call, rows)
    call.close()


@pytest.mark.gpu
@needs_gpu
def test_a_gpu_pool_is_shared_and_comes_back(gpu: CudaBackend) -> None:
    mebi = 1 << 18  # floats in a MiB
    cache = GraphCache(gpu, HUGE)
    allocated = torch.cuda.memory_allocated()
    for name in ("a", "b", "c"):
        entry(cache, name, mebi, 40 * mebi)
    # 40 MiB of temporaries at once, not three times that; the allocator rounds its segments up.
    assert 40 << 20 <= gpu.pool_bytes() <= 64 << 20
    assert cache.bytes == gpu.pool_bytes() + (3 << 20)
    reserved = torch.cuda.memory_reserved()
    cache.close()
    assert gpu.pool_bytes() == 0
    assert torch.cuda.memory_allocated() == allocated
    assert torch.cuda.memory_reserved() <= reserved - (40 << 20)
    replayed = entry(cache, "d", 8, 16)  # PyTorch refuses a pool that has lost all graphs: this is a new one
    replayed.graphs["run"].replay()
    gpu.record().synchronize()
    cache.close()


@pytest.mark.gpu
@needs_gpu
def test_a_bound_on_a_gpu(gpu: CudaBackend) -> None:
    mebi = 1 << 18
    cache = GraphCache(gpu, 85 << 20)  # two of 30 MiB, with a segment of 20 MiB in the pool
    entry(cache, "a", 30 * mebi, mebi)
    entry(cache, "b", 30 * mebi, mebi)
    entry(cache, "a", 30 * mebi, mebi)
    entry(cache, "c", 30 * mebi, mebi)
    assert names(cache) == ["a", "c"]
    entry(cache, "large", mebi, 200 * mebi)
    assert names(cache) == ["large"]
    entry(cache, "d", mebi, mebi)
    assert names(cache) == ["d"]
    assert cache.bytes < 30 << 20, "the large one's temporaries are gone"
    cache.close()


@pytest.mark.gpu
@needs_gpu
def test_a_gpu_graph_repeats_with_matrix_products_and_convolutions(gpu: CudaBackend) -> None:
    """Both libraries choose and allocate workspaces, which must not be the pool's."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(8, 3, 3, 3, generator=generator)
    matrix = torch.randn(64, 64, generator=generator)
    on_gpu = weight.cuda(), matrix.cuda()

    def function(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        x = torch.nn.functional.conv2d(tensors["x"], on_gpu[0], padding=1)
        return {"y": x.flatten(2) @ on_gpu[1]}

    call = GraphedCall(GraphCache(gpu, HUGE), function)
    for seed in range(3):
        x = np.random.default_rng(seed).standard_normal((2, 3, 8, 8)).astype(np.float32)
        inner = torch.nn.functional.conv2d(torch.from_numpy(x).double(), weight.double(), padding=1)
        wanted = inner.flatten(2) @ matrix.double()
        assert_close(call({"x": x})["y"], wanted, rel_l2=2e-3)  # TensorFloat-32 in cuDNN's convolutions
    call.close()


@pytest.mark.gpu
@needs_gpu
def test_a_gpu_graph_that_was_freed_is_refused(gpu: CudaBackend) -> None:
    static = gpu.zeros((1,), torch.float32)

    def body() -> None:
        static.add_(1)

    graph = capture(gpu, body)
    graph.replay()
    gpu.record().synchronize()
    assert static.item() == 3  # two runs to warm up, none at capture
    graph.free()
    with pytest.raises(RuntimeError, match="freed"):
        graph.replay()


@pytest.mark.parametrize("over", [False, True], ids=["CUDA refused", "the capture had ended"])
def test_the_allocator_is_told_of_a_capture_that_failed(over: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[str, int, tuple[int, int]]] = []

    def end(device: int, pool: tuple[int, int]) -> None:
        if over:
            raise RuntimeError("endAllocatePool: not currently recording to mempool_id")
        told.append(("end", device, pool))

    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", end, raising=False)
    monkeypatch.setattr(
        torch._C, "_cuda_releasePool", lambda *where: told.append(("release", *where)), raising=False
    )
    with ended(1, (0, 7)):
        pass
    assert told == []
    with pytest.raises(ValueError, match="refused"), ended(1, (0, 7)):
        raise ValueError("refused")
    assert told == ([] if over else [("end", 1, (0, 7)), ("release", 1, (0, 7))])


@pytest.mark.gpu
@needs_gpu
def test_a_gpu_goes_on_after_a_capture_that_cuda_refused(gpu: CudaBackend) -> None:
    """To wait for the device ends a capture; PyTorch's allocator must not wait for its end ever after."""
    static = gpu.zeros((1,), torch.float32)
    with pytest.raises(RuntimeError):
        gpu.capture(lambda: static.add_(static.item()))
    with pytest.raises(RuntimeError):
        graph_seconds(_waits_in_a_capture(static))
    torch.cuda.empty_cache()
    graph = capture(gpu, lambda: static.add_(1))
    graph.replay()
    gpu.record().synchronize()
    assert static.item() == 3
    assert graph_seconds(lambda: static.add_(1)) > 0
    graph.free()


def _waits_in_a_capture(static: Tensor) -> Callable[[], object]:
    return lambda: static.item() if torch.cuda.is_current_stream_capturing() else None


@pytest.mark.gpu
@needs_gpu
def test_a_gpu_goes_on_after_a_capture_that_failed(gpu: CudaBackend) -> None:
    static = gpu.zeros((1,), torch.float32)
    stream = torch.cuda.current_stream()

    def fail() -> None:
        static.add_(torch.ones(1, device=static.device))
        raise ValueError("no such kernel")

    with pytest.raises(ValueError, match="no such kernel"):
        gpu.capture(fail)
    assert torch.cuda.current_stream() == stream

    def body() -> None:
        static.add_(1)

    before = static.item()
    graph = capture(gpu, body)
    graph.replay()
    gpu.record().synchronize()
    assert static.item() == before + 3
    graph.free()
