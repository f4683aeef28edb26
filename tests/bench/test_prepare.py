"""Published configurations are checkpoints of one part: weights are written, engines built of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest

from fastdiff.bench import prepare
from fastdiff.bench.configs import PUBLISHED
from fastdiff.engine_dir import open_engine

NARROW: dict[str, dict[str, Any]] = {
    "sd15-unet": {"block_out_channels": (32, 32, 64, 64), "attention_head_dim": 4},
    "sdxl-unet": {
        "block_out_channels": (32, 32, 64),
        "attention_head_dim": (2, 2, 4),
        "transformer_layers_per_block": (1, 1, 2),
    },
    "sd15-vae-decoder": {"block_out_channels": (32, 32, 64, 64)},
    "sdxl-vae-decoder": {"block_out_channels": (32, 32, 64, 64)},
}
"""What is smaller than published: all of the structure stays, and group norm's 32 groups."""


def write_narrow(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights of a published configuration of few channels, which stands for the published one."""
    published = PUBLISHED[name]
    narrow = replace(published, config={**published.config, **NARROW[name]})
    monkeypatch.setattr(prepare, "PUBLISHED", {**PUBLISHED, name: narrow})
    prepare.write_weights(name, str(folder))


@pytest.mark.parametrize("name", PUBLISHED)
def test_engines_of_published_parts(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``build`` verifies them; a U-Net is one for sides of any length, as in an engine of the whole model."""
    write_narrow(name, tmp_path, monkeypatch)
    module, multiple = PUBLISHED[name].module, PUBLISHED[name].model.size_multiple
    output = str(tmp_path / "part.fd")
    any_sides = module == "unet"
    side = 2 * multiple
    assert prepare.build(name, str(tmp_path), [module], "native", output, side, side + 8 * any_sides)
    manifest = open_engine(Path(output)).manifest
    assert tuple(manifest.modules) == (module,)
    assert manifest.model.size_multiple == (8 if any_sides else multiple)


def test_onnx_of_a_published_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "sdxl-vae-decoder"
    write_narrow(name, tmp_path, monkeypatch)
    path = prepare.export(name, str(tmp_path), PUBLISHED[name].module, str(tmp_path / "part.onnx"))
    onnx.checker.check_model(path)
