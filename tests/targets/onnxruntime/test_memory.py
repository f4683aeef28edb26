"""Sessions of one file with the same number of threads have one copy of the weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from fastdiff.build.memory import release
from fastdiff.config import SizeRange, TensorSpec
from fastdiff.targets import onnxruntime
from fastdiff.targets.session import Session
from tests.engines import TEXT_ENCODER
from tests.memory import resident

WIDTH = 4096
WEIGHTS = WIDTH * WIDTH * 4

ENTRY = replace(
    TEXT_ENCODER,
    inputs=(TensorSpec("x", "float32", ("batch", WIDTH)),),
    outputs=(TensorSpec("y", "float32", ("batch", WIDTH)),),
    shapes={"batch": SizeRange()},
    files={"wide.onnx": ""},
    tactics={"optimisation": "basic, at build"},
)


@pytest.fixture
def folder(tmp_path: Path, rng: np.random.Generator) -> Path:
    """A module of one large product, 67 MB."""
    weight = numpy_helper.from_array(rng.standard_normal((WIDTH, WIDTH), np.float32), "w")
    shape = ["batch", WIDTH]
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "wide",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, tmp_path / "wide.onnx")
    return tmp_path


def open_session(folder: Path, threads: int) -> Session:
    return onnxruntime.open(folder, "wide", ENTRY, threads)


def test_sessions_share_their_weights(folder: Path, rng: np.random.Generator) -> None:
    x = rng.standard_normal((2, WIDTH), np.float32)
    release()
    empty = resident().anonymous
    first = open_session(folder, 1)
    expected = first(x=x)["y"]
    release()
    before = resident().anonymous
    assert before - empty > 0.9 * WEIGHTS, "the first has a copy"
    sessions = [open_session(folder, 1) for _ in range(3)]
    for session in sessions:
        np.testing.assert_array_equal(session(x=x)["y"], expected)
    release()
    grown = resident().anonymous - before
    assert grown < WEIGHTS / 4, f"{grown} bytes for three sessions of {WEIGHTS} bytes of weights"
    first.close()
    np.testing.assert_array_equal(sessions[0](x=x)["y"], expected)  # closing one leaves the others
    for session in sessions:
        session.close()
    del session
    release()
    assert resident().anonymous - empty < WEIGHTS / 2, "the copy goes with the last of them"


def test_sessions_with_other_threads_are_their_own(folder: Path, rng: np.random.Generator) -> None:
    x = rng.standard_normal((2, WIDTH), np.float32)
    one, two = open_session(folder, 1), open_session(folder, 2)
    assert one._session is not two._session  # type: ignore[attr-defined]
    np.testing.assert_allclose(one(x=x)["y"], two(x=x)["y"], rtol=1e-4, atol=1e-3)


def test_weights_beside_the_model_stay_there(folder: Path, rng: np.random.Generator) -> None:
    """They are mapped: no session has a copy of them."""
    model = onnx.load(folder / "wide.onnx")
    onnx.save(model, folder / "wide.onnx", save_as_external_data=True, location="wide.onnx.data")
    del model
    x = rng.standard_normal((2, WIDTH), np.float32)
    found = []
    beside = {**ENTRY.files, "wide.onnx.data": ""}
    for files, optimised in (
        (ENTRY.files, "basic, at build"),
        (beside, "basic, at build"),
        (beside, "basic, when opened"),
    ):
        release()
        before = resident().anonymous
        entry = replace(ENTRY, files=files, tactics={"optimisation": optimised})
        with onnxruntime.open(folder, "wide", entry, 1) as session:
            y = session(x=x)["y"]
            release()
            found.append((resident().anonymous - before) / WEIGHTS)
    assert found[0] > 0.9, "the comparison means nothing"
    assert max(found[1:]) < 0.25
    weight = numpy_helper.to_array(onnx.load(folder / "wide.onnx").graph.initializer[0], str(folder))
    np.testing.assert_allclose(y, x @ weight, rtol=1e-4, atol=1e-3)
