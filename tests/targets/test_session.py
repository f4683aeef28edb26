"""What a session accepts, converts and refuses, for any target."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fastdiff.config import SizeRange, TensorSpec
from fastdiff.errors import InputError
from fastdiff.targets.session import Array, Session

INPUTS = (
    TensorSpec("sample", "float32", ("batch", 4, "height", "width")),
    TensorSpec("timestep", "float32", ("batch",)),
    TensorSpec("encoder_hidden_states", "float32", ("batch", "tokens", 8)),
)
PICTURE = (TensorSpec("sample", "float32", ("batch", 3, "4*height", "4*width")),)
SHAPES = {
    "batch": SizeRange(),
    "height": SizeRange(4, None, 2),
    "width": SizeRange(4, None, 2),
    "tokens": SizeRange(1, 77),
}


class Echo(Session):
    """Returns what it is given, after the checks."""

    def _run(self, arrays: dict[str, Array]) -> dict[str, Array]:
        return arrays


@pytest.fixture
def unet() -> Session:
    return Echo("unet", INPUTS, INPUTS[:1], SHAPES)


def arguments(**changes: Any) -> dict[str, Any]:
    return {
        "sample": np.zeros((2, 4, 6, 8), np.float32),
        "timestep": np.array([5.0, 5.0], np.float32),
        "encoder_hidden_states": np.zeros((2, 77, 8), np.float32),
        **changes,
    }


def test_good_arguments_pass_unchanged(unet: Session) -> None:
    given = arguments()
    for name, array in unet(**given).items():
        assert array is given[name] or array.base is given[name]


@pytest.mark.parametrize(
    "timestep", [5, 5.0, np.float64(5), np.int64(5), [5], np.array([5.0], np.float32)], ids=repr
)
def test_one_timestep_serves_the_batch(unet: Session, timestep: Any) -> None:
    result = unet(**arguments(timestep=timestep))["timestep"]
    assert result.dtype == np.float32
    assert result.tolist() == [5.0, 5.0]


def test_converts_dtypes_and_makes_contiguous(unet: Session) -> None:
    sample = np.zeros((2, 6, 8, 4), np.float64).transpose(0, 3, 1, 2)
    result = unet(**arguments(sample=sample, timestep=np.array([1, 2])))
    assert result["sample"].dtype == np.float32
    assert result["sample"].flags.c_contiguous
    assert result["timestep"].tolist() == [1.0, 2.0]


def test_integers_are_not_made_of_floats() -> None:
    session = Echo("text_encoder", (TensorSpec("input_ids", "int64", ("batch", "tokens")),), (), SHAPES)
    assert session(input_ids=np.zeros((1, 5), np.int32))["input_ids"].dtype == np.int64
    with pytest.raises(InputError, match="input_ids has dtype float32: it must be int64"):
        session(input_ids=np.zeros((1, 5), np.float32))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"sample": np.zeros((2, 4, 6))},
            r"sample has shape \[2, 4, 6\]: it must be \[batch, 4, height, width\]",
        ),
        ({"sample": np.zeros((2, 3, 6, 8))}, r"\[2, 3, 6, 8\]: it must be \[batch, 4"),
        ({"sample": np.zeros((2, 4, 5, 8))}, "height of sample is 5: it must be 4 or more in multiples of 2"),
        ({"sample": np.zeros((2, 4, 6, 2))}, "width of sample is 2"),
        ({"encoder_hidden_states": np.zeros((3, 77, 8))}, r"batch is 2 in sample"),
        ({"encoder_hidden_states": np.zeros((2, 78, 8))}, "tokens of .* is 78: it must be 1 to 77"),
        ({"encoder_hidden_states": np.zeros((2, 0, 8))}, "tokens of .* is 0"),
        ({"timestep": np.zeros(3)}, "batch is 2 in sample"),
        ({"timestep": np.zeros((2, 1))}, r"timestep has shape \[2, 1\]"),
        ({"timestep": "now"}, "timestep has dtype"),
        ({"sample": np.zeros((2, 4, 6, 8), complex)}, "sample has dtype complex128: it must be float32"),
        ({"sample": None}, "sample has dtype object"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_refuses(unet: Session, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=f"unet.*{words}"):
        unet(**arguments(**changes))


def test_missing_and_unknown_names(unet: Session) -> None:
    with pytest.raises(InputError, match="unet needs sample, timestep, encoder_hidden_states: timestep"):
        unet(sample=0, encoder_hidden_states=0)
    with pytest.raises(InputError, match=r"unet takes .*: guidance is unknown"):
        unet(**arguments(guidance=1))


def test_picture_sizes_are_multiples_of_latent_ones() -> None:
    encoder = Echo("vae_encoder", PICTURE, (), {"height": SizeRange(2)})
    assert encoder(sample=np.zeros((1, 3, 8, 12), np.float32))
    with pytest.raises(
        InputError, match=r"10 is no multiple of 4, it must be \[batch, 3, 4\*height, 4\*width\]"
    ):
        encoder(sample=np.zeros((1, 3, 10, 12), np.float32))
    with pytest.raises(InputError, match="height of sample is 1: it must be 2 or more"):
        encoder(sample=np.zeros((1, 3, 4, 12), np.float32))
