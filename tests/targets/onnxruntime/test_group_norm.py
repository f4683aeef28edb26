"""Group norm as ONNX Runtime's CPU computes it: as exact for a large picture as for a small one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from fastdiff.build.weights import quiet
from fastdiff.targets.onnxruntime.group_norm import translations
from tests.compare import assert_close


def exported(norm: nn.Module, x: torch.Tensor, path: Path) -> Any:
    size = torch.export.Dim.AUTO
    dynamic = {0: size, **dict.fromkeys(range(2, x.dim()), size)}
    program = torch.export.export(norm, (x,), dynamic_shapes=({**dynamic},))
    with quiet():
        torch.onnx.export(
            program,
            f=str(path),
            dynamo=True,
            opset_version=20,
            verbose=False,
            custom_translation_table=translations(),
        )
    assert "InstanceNormalization" not in {node.op_type for node in onnx.load(path).graph.node}
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def reference(norm: nn.GroupNorm, x: np.ndarray) -> np.ndarray:
    """In double precision."""
    wide = nn.GroupNorm(norm.num_groups, norm.num_channels, norm.eps, norm.affine).double()
    wide.load_state_dict(norm.state_dict())
    with torch.no_grad():
        return np.asarray(wide(torch.from_numpy(x).double()))


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("sides", [(9, 14), (5,)], ids=["picture", "tokens"])
def test_values(sides: tuple[int, ...], affine: bool, tmp_path: Path, rng: np.random.Generator) -> None:
    """Of other sizes and another batch than it was exported with."""
    norm = nn.GroupNorm(3, 12, eps=1e-3, affine=affine)
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    session = exported(norm, torch.zeros(2, 12, *(4 for _ in sides)), tmp_path / "norm.onnx")
    x = rng.standard_normal((3, 12, *sides), np.float32) * 0.1 + 2
    found = session.run(None, {session.get_inputs()[0].name: x})[0]
    assert_close(found, reference(norm, x), rel_l2=2e-6)


def test_a_large_group(tmp_path: Path, rng: np.random.Generator) -> None:
    """Two million values, as of a decoder at 700²; InstanceNormalization is 3e-5 off here."""
    norm = nn.GroupNorm(2, 8, eps=1e-6)
    session = exported(norm, torch.zeros(2, 8, 4, 4), tmp_path / "norm.onnx")
    x = rng.standard_normal((1, 8, 701, 699), np.float32) * 1.5 + 0.7
    found = session.run(None, {session.get_inputs()[0].name: x})[0]
    assert_close(found, reference(norm, x), rel_l2=5e-7)
