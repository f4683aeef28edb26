"""The configurations of fastdiff.published have the published numbers of parameters."""

from __future__ import annotations

import pytest

from fastdiff.published import PARAMETERS, SOURCES, config_files, part_config
from tests.full.families import UNET_PARAMETERS, files_of
from tests.random_weights import meta_part

PARTS = (
    ("sd15", "text_encoder"),
    ("sd15-inpainting", "unet"),
    ("lcm-sd15", "unet"),
    ("sd21", "text_encoder"),
    ("sd21", "unet"),
    ("sdxl", "text_encoder_2"),
)
"""What is left of those that tests/bench/test_models.py counts, each once."""


@pytest.mark.parametrize(("model", "part"), PARTS)
def test_parameters(model: str, part: str) -> None:
    found = sum(tensor.numel() for tensor in meta_part(part_config(model, part)).parameters())
    assert found == PARAMETERS[model][part]


@pytest.mark.parametrize("model", UNET_PARAMETERS)
def test_other_families(model: str) -> None:
    """The full-size tests' own structures."""
    unet = meta_part(files_of(model)["unet/config.json"])
    assert sum(tensor.numel() for tensor in unet.parameters()) == UNET_PARAMETERS[model]


@pytest.mark.parametrize("model", SOURCES)
def test_files(model: str) -> None:
    """Of every part that the model index names, and of no other."""
    files = config_files(model)
    index = files.pop("model_index.json")
    named = {part for part, entry in index.items() if isinstance(entry, list) and all(entry)}
    named = {part for part in named if not part.startswith("tokenizer")}
    assert {path.partition("/")[0] for path in files} == named
    assert set(PARAMETERS[model]) == named - {"scheduler"}
