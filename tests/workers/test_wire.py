"""Messages between processes: what is written is read, and what is cut short is noticed."""

from __future__ import annotations

import io
import os
import threading

import numpy as np
import pytest

from fastdiff.workers.wire import receive, send

pytestmark = pytest.mark.smoke

BODY = {
    "text": "a red circle, ünïcode \ud800",
    "seed": 2**64 - 1,
    "guidance": 0.1,
    "none": None,
    "list": [1, []],
}


def written(body: dict[str, object], arrays: dict[str, np.ndarray] | None = None) -> bytes:
    stream = io.BytesIO()
    send(stream, body, arrays)
    return stream.getvalue()


@pytest.mark.parametrize(
    "array",
    [
        pytest.param(np.arange(30, dtype=np.float32).reshape(2, 3, 5), id="plain"),
        pytest.param(np.arange(30, dtype=np.uint8).reshape(5, 6)[::2, 1:4], id="parts of rows"),
        pytest.param(np.arange(24, dtype=np.float32).reshape(4, 6).T, id="transposed"),
        pytest.param(np.zeros((0, 4), np.float32), id="empty"),
        pytest.param(np.float32(3.5).reshape(()), id="a single number"),
        pytest.param(np.array([np.nan, np.inf, -0.0], np.float32), id="odd numbers"),
    ],
)
def test_what_is_written_is_read(array: np.ndarray) -> None:
    stream = io.BytesIO(written(BODY, {"first": array, "other": np.ones(3, np.uint8)}) + written({"n": 2}))
    message = receive(stream)
    assert message is not None
    body, arrays = message
    assert body == BODY
    assert list(arrays) == ["first", "other"]
    assert arrays["first"].dtype == array.dtype
    assert arrays["first"].shape == array.shape
    assert arrays["first"].tobytes() == array.tobytes()
    assert arrays["first"].flags.writeable
    assert receive(stream) == ({"n": 2}, {})
    assert receive(stream) is None


def test_through_a_pipe_that_is_smaller_than_the_message() -> None:
    read, write = os.pipe()
    array = np.random.default_rng(0).standard_normal((3, 111, 989)).astype(np.float32)
    with os.fdopen(read, "rb") as reader, os.fdopen(write, "wb") as writer:
        thread = threading.Thread(target=send, args=(writer, {}, {"large": array}))
        thread.start()
        message = receive(reader)
        thread.join()
    assert message is not None
    np.testing.assert_array_equal(message[1]["large"], array)


def test_every_cut_is_the_end() -> None:
    whole = written({"a": 1}, {"x": np.arange(7, dtype=np.float32)})
    for length in range(len(whole)):
        assert receive(io.BytesIO(whole[:length])) is None, length
    assert receive(io.BytesIO(whole)) is not None


def test_dtypes_that_nobody_sends() -> None:
    with pytest.raises(ValueError, match="float64"):
        written({}, {"x": np.zeros(2)})
    with pytest.raises(ValueError, match="object"):
        written({}, {"x": np.array([{}], dtype=object)})
    forged = written({}, {"x": np.zeros(2, np.float32)}).replace(b'"float32"', b'"object_"')
    with pytest.raises(ValueError, match="object_"):
        receive(io.BytesIO(forged))
