"""Simplified graphs are those that torch's exporter makes with all of its rules."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

from fastdiff.build import onnx as lowering
from fastdiff.build.onnx import export_onnx
from fastdiff.build.passes import run_passes
from fastdiff.config import Precision
from tests.build.conftest import Captured


def operators(path: Path) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(path).graph.node)


@pytest.mark.parametrize(
    ("name", "precision"),
    # a U-Net's reshapes, in halves with transposed products; the encoder's padding before a stride of 2
    [("unet", Precision.FP16), ("vae_encoder", Precision.FP16)],
)
def test_few_rules_do_what_all_do(
    captured: Captured, name: str, precision: Precision, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export = torch.onnx.export

    def with_all_rules(*arguments: Any, **options: Any) -> Any:
        return export(*arguments, **{**options, "optimize": True})

    module = captured(name)
    assert module.program is not None
    module = module.with_program(run_passes(module.program))
    export_onnx(module, tmp_path / "few.onnx", precision)
    with monkeypatch.context() as patch:
        patch.setattr(lowering, "simplify", lambda model: None)
        export_onnx(module, tmp_path / "none.onnx", precision)
        patch.setattr(torch.onnx, "export", with_all_rules)
        export_onnx(module, tmp_path / "all.onnx", precision)
    few, none, every = (operators(tmp_path / f"{kind}.onnx") for kind in ("few", "none", "all"))
    assert few == every
    assert few.total() < none.total(), "there was something to simplify"
