"""Compiled kernels that travel with an engine: what identifies them, and how they are launched."""

from __future__ import annotations

import ctypes
import json
from typing import Any

import pytest
import torch

from fastdiff.errors import EngineDamagedError
from fastdiff.kernels.triton import aot, binaries, geglu, launch
from tests.compare import assert_close

_CONSTANTS: dict[str, Any] = {"C": 1280, "num_warps": 4}


def key(*arguments: Any, arch: int = 90, **constants: Any) -> str:
    return binaries.key_of(geglu._geglu_kernel, arch, arguments, {**_CONSTANTS, **constants})


def test_a_key_tells_apart_what_the_compiler_does() -> None:
    x, out = torch.zeros(4, 2560), torch.zeros(4, 1280)
    first = key(x, out, 4, 2560, 1280)
    assert key(x, out, 77, 2560, 1280) == first  # rows are not specialised on
    assert key(x, out, 1, 2560, 1280) == first
    assert key(x.clone(), out, 4, 2560, 1280) == first
    others = [
        key(x.half(), out.half(), 4, 2560, 1280),
        key(x.flatten()[1:], out, 4, 2560, 1280),  # 4 bytes off
        key(x, out, 4, 2561, 1280),
        key(x, out, 4, 1, 1280),
        key(x, out, 4, 2560, 1280, C=640),
        key(x, out, 4, 2560, 1280, arch=80),
    ]
    assert len({first, *others}) == 7


@pytest.fixture(scope="module")
def compiled() -> Any:
    return aot.compile_build(next(geglu.builds(torch.float16, 90)), 90)


def test_a_compiled_kernel_becomes_a_binary_and_back(compiled: Any) -> None:
    binary = binaries.binary_of("k", compiled)
    assert binary.signature == ("*fp16", "*fp16", "i32", "i32", "i32")
    assert binary.code.numpy().tobytes()[:4] == b"\x7fELF"
    again = binaries.Binary.from_json(json.loads(json.dumps(binary.to_json())), binary.code)
    assert again == binary


def test_arguments_have_the_types_of_the_signature(compiled: Any) -> None:
    x, out = torch.zeros(4, 2560), torch.zeros(4, 1280)
    values = binaries.binary_of("k", compiled).arguments([x, out, 4, 2560, 1280])
    assert values[0] is x
    assert values[1] is out
    assert [value.value for value in values[2:5]] == [4, 2560, 1280]
    assert all(isinstance(value, ctypes.c_int32) for value in values[2:5])
    assert values[5:] == [None, None]  # Triton's scratch memory, of which there is none


def test_what_is_taken_for_a_constant_is_not_passed() -> None:
    binary = binaries.Binary("k", "f", ("*fp16", "constexpr", "i64"), 4, 0, torch.zeros(1, dtype=torch.uint8))
    values = binary.arguments([torch.zeros(1), 1, 2**40])
    assert len(values) == 4
    assert values[1].value == 2**40


@pytest.mark.parametrize(
    "wrong", [{"signature": ["*fp16", "tensordesc"]}, {"num_warps": "many"}, {"name": None}]
)
def test_a_damaged_description_is_refused(compiled: Any, wrong: dict[str, Any]) -> None:
    binary = binaries.binary_of("k", compiled)
    document = {**binary.to_json(), **wrong}
    if wrong.get("name", "") is None:
        del document["name"]
    with pytest.raises(EngineDamagedError, match="build the engine again"):
        binaries.Binary.from_json(document, binary.code)


def test_recording_keeps_each_binary_once(compiled: Any) -> None:
    with binaries.recording() as outer:
        binaries.record("a", compiled)
        with binaries.recording() as inner:
            binaries.record("b", compiled)
        binaries.record("a", compiled)
    binaries.record("c", compiled)  # nobody listens
    assert list(outer) == ["a"]
    assert list(inner) == ["b"]


@pytest.mark.gpu
def test_a_launch_takes_the_binary_in_place_of_the_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(77, 2560, device="cuda", dtype=torch.float16)
    with binaries.recording() as recorded:
        wanted = geglu.geglu(x)
    assert len(recorded) == 1
    again = [binaries.Binary.from_json(b.to_json(), b.code) for b in recorded.values()]
    binaries.register(again)

    class Refusing:
        params = geglu._geglu_kernel.params
        fn = geglu._geglu_kernel.fn
        cache_key = geglu._geglu_kernel.cache_key

        def __getitem__(self, grid: Any) -> Any:
            raise AssertionError("compiled again")

    monkeypatch.setattr(geglu, "_geglu_kernel", Refusing())
    try:
        found = geglu.geglu(x)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = geglu.geglu(x)
        graph.replay()
    finally:
        binaries._known.clear()
    assert_close(found, wanted, max_abs=0.0)
    assert_close(captured, wanted, max_abs=0.0)


def test_no_binary_no_find() -> None:
    assert binaries.find("nothing") is None
    assert launch.Config().num_warps == 4
