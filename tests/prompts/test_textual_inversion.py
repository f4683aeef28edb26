"""Files of textual inversion: the layouts that are read, and one line for each that cannot be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_tensors

from fastdiff.errors import InputError
from fastdiff.prompts.textual_inversion import Inversion, Inversions, read_inversion

pytestmark = pytest.mark.smoke

WIDTHS = (6, 8)


def vectors(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def saved(path: Path, **tensors: Any) -> Path:
    save_file(tensors, path)
    return path


@pytest.mark.parametrize(
    ("tensors", "widths", "token", "shapes"),
    [
        ({"<cat>": vectors(6)}, (6,), "<cat>", {0: (1, 6)}),
        ({"<cat>": vectors(3, 6)}, (6,), "<cat>", {0: (3, 6)}),
        ({"emb_params": vectors(2, 6)}, (6,), "toy", {0: (2, 6)}),
        ({"emb_params": vectors(2, 8)}, WIDTHS, "toy", {1: (2, 8)}),
        ({"clip_l": vectors(2, 6), "clip_g": vectors(2, 8)}, WIDTHS, "toy", {0: (2, 6), 1: (2, 8)}),
        ({"clip_l": vectors(2, 6), "clip_g": vectors(2, 8)}, (8,), "toy", {0: (2, 8)}),
    ],
)
def test_layouts(
    tmp_path: Path, tensors: Any, widths: tuple[int, ...], token: str, shapes: dict[int, tuple[int, int]]
) -> None:
    found = read_inversion(saved(tmp_path / "toy.safetensors", **tensors), None, widths)
    assert found.token == token
    assert {number: array.shape for number, array in found.vectors.items()} == shapes
    assert found.count == next(iter(shapes.values()))[0]
    renamed = read_inversion(tmp_path / "toy.safetensors", "sks", widths)
    assert (renamed.token, renamed.digest) == ("sks", found.digest)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_precisions(tmp_path: Path, dtype: torch.dtype) -> None:
    tensor = torch.from_numpy(vectors(2, 6)).to(dtype)
    save_tensors({"emb_params": tensor}, tmp_path / "toy.safetensors")
    found = read_inversion(tmp_path / "toy.safetensors", None, (6,))
    np.testing.assert_array_equal(found.vectors[0], tensor.float().numpy())


def with_nan(*shape: int) -> np.ndarray:
    array = vectors(*shape)
    array.flat[-1] = np.nan
    return array


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ({"emb_params": vectors(2, 7)}, "has vectors of 7, this engine's text encoder takes 6 or 8: use an"),
        ({"emb_params": with_nan(2, 6)}, "emb_params holds NaN or infinity; download it again"),
        ({"emb_params": np.full((1, 6), np.inf)}, "emb_params holds NaN or infinity"),
        ({"emb_params": vectors(1, 2, 6)}, r"shape \[1, 2, 6\], wanted \[hidden\] or"),
        ({"emb_params": vectors(76, 6)}, r"shape \[76, 6\], wanted .* up to 75 vectors"),
        ({"emb_params": vectors(0, 6)}, r"shape \[0, 6\]"),
        ({"emb_params": np.zeros((2, 6), np.int64)}, "has dtype I64, wanted F64, F32, F16, BF16; give a"),
        ({"a": vectors(6), "b": vectors(6)}, "holds a, b: an embedding has one tensor, or clip_l and clip_g"),
        ({}, "holds no tensors: an embedding has one"),
        ({"clip_l": vectors(2, 6)}, r"holds clip_l \[2, 6\]: it must have as many vectors in clip_l as in"),
        ({"clip_l": vectors(1, 6), "clip_g": vectors(2, 8)}, r"clip_g \[2, 8\], clip_l \[1, 6\]: it must"),
        ({"clip_l": vectors(2, 8), "clip_g": vectors(2, 8)}, "clip_l has vectors of 8, text encoder 1 of"),
        ({"clip_l": vectors(2, 6), "clip_g": vectors(2, 6)}, "clip_g has vectors of 6, text encoder 2 of"),
    ],
)
def test_files_that_are_no_embedding(tmp_path: Path, tensors: Any, says: str) -> None:
    with pytest.raises(InputError, match=says) as caught:
        read_inversion(saved(tmp_path / "toy.safetensors", **tensors), None, WIDTHS)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("damage", [b"", b"\x08", b"no safetensors at all", "truncated"])
def test_damaged_files(tmp_path: Path, damage: bytes | str) -> None:
    file = saved(tmp_path / "toy.safetensors", emb_params=vectors(2, 6))
    file.write_bytes(damage if isinstance(damage, bytes) else file.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"is no safetensors file, or damaged .*: give a") as caught:
        read_inversion(file, None, WIDTHS)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("ending", ["pt", "bin", "PT", "ckpt", "pth"])
def test_pickles_are_not_read(tmp_path: Path, ending: str) -> None:
    file = tmp_path / f"toy.{ending}"
    torch.save({"string_to_param": {"*": torch.zeros(2, 6)}}, file)
    with pytest.raises(InputError, match=r"is a pickle, which can run code .* safetensors\.torch\.save_file"):
        read_inversion(file, None, WIDTHS)


def test_the_way_out_for_pickles(tmp_path: Path) -> None:
    """What the message says, done."""
    save_tensors({"emb_params": torch.from_numpy(vectors(2, 6))}, tmp_path / "name.safetensors")
    assert read_inversion(tmp_path / "name.safetensors", None, WIDTHS).token == "name"


def test_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no\.safetensors does not exist: give a \.safetensors file"):
        read_inversion(tmp_path / "no.safetensors", None, WIDTHS)
    with pytest.raises(InputError, match=r"is not a file: give a \.safetensors file"):
        read_inversion(tmp_path, None, WIDTHS)
    with pytest.raises(InputError, match="embedding is 5: it must be the name of a"):
        read_inversion(5, None, WIDTHS)  # type: ignore[arg-type]


@pytest.mark.parametrize("token", ["", " ", " cat", 5, "(cat)", "v[2]", r"\cat", "BREAK", "a BREAK b"])
def test_tokens_that_cannot_be(tmp_path: Path, token: Any) -> None:
    file = saved(tmp_path / "toy.safetensors", emb_params=vectors(2, 6))
    with pytest.raises(InputError, match=r"embedding token .* it must be a word without brackets, such as"):
        read_inversion(file, token, WIDTHS)


def test_a_file_name_with_brackets_needs_a_token(tmp_path: Path) -> None:
    """As browsers name a second download."""
    file = saved(tmp_path / "toy (1).safetensors", emb_params=vectors(2, 6))
    with pytest.raises(InputError, match=r"embedding token 'toy \(1\)' of .*give it another token"):
        read_inversion(file, None, WIDTHS)
    assert read_inversion(file, "toy", WIDTHS).token == "toy"


def test_words_that_are_taken() -> None:
    def inversion(token: str) -> Inversion:
        return Inversion(token, Path(f"{token}.safetensors"), {0: vectors(1, 6)}, token)

    loaded = Inversions()
    loaded.add(inversion("Cat"))
    with pytest.raises(InputError, match=r"'cat' is loaded already, from Cat\.safetensors: unload it first"):
        loaded.add(inversion("cat"))
    with pytest.raises(InputError, match="'dog' is not loaded: loaded are Cat"):
        loaded.remove("dog")
    with pytest.raises(InputError, match="5 is not loaded: loaded are Cat"):
        loaded.remove(5)  # type: ignore[arg-type]
    loaded.remove("CAT")
    assert len(loaded) == 0
    with pytest.raises(InputError, match="'cat' is not loaded: loaded are none"):
        loaded.remove("cat")
