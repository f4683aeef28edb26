"""Modules compiled for CUDA: which operators they hold, and what these compute by their documentation."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn
from torch.nn.functional import gelu

from fastdiff.build import onnx as lowering
from fastdiff.build.capture import CapturedModule, capture, run_eager
from fastdiff.build.modules import ModuleSpec, random_inputs
from fastdiff.config import Precision, SizeRange, TensorSpec
from fastdiff.manifest import ModuleEntry
from fastdiff.targets import Compiled, CompileOptions, parameters
from fastdiff.targets import onnxruntime as target
from fastdiff.targets.onnxruntime import adapters_cuda
from fastdiff.targets.onnxruntime.contrib import SPLIT_GELU_WIDTHS
from tests.compare import assert_close, relative_l2
from tests.engines import TEXT_ENCODER
from tests.published import VOCABULARY, model, sizes_of
from tests.targets.onnxruntime.standard import only_standard

FUSED = {
    "clip": {"MultiHeadAttention": 2, "QuickGelu": 2, "SkipLayerNormalization": 4},
    "vae_decoder": {"GroupNorm": 15, "MultiHeadAttention": 1, "NhwcConv": 36, "SkipGroupNorm": 8},
    "scenes_unet": {
        "GroupNorm": 4,
        "MultiHeadAttention": 14,
        "NhwcConv": 50,
        "SkipGroupNorm": 11,
        "SkipLayerNormalization": 14,
    },
}
"""What a module's file holds. Norms with an odd number of channels in a group, 7 of the narrow decoder and
15 of the U-Net, are written out: the provider's kernel does not take them."""


@pytest.mark.parametrize("name", FUSED)
def test_compiled_for_cuda(name: str, compiled_for_cuda: Callable[[str], tuple[Path, Compiled]]) -> None:
    """The right operators, and an error within twice that of PyTorch in the same type."""
    module = model(name)
    folder, compiled = compiled_for_cuda(name)
    assert compiled.requires == {"device": "cuda"}
    assert {path.name for path in folder.iterdir()} == set(compiled.files), "nothing else is left"
    assert compiled.tactics["fused"] == FUSED[name]
    standard, found = only_standard(onnx.load(folder / compiled.files[0]))
    assert name.startswith("clip") or set(found) >= {"GroupNorm", "NhwcConv"}
    session = onnxruntime.InferenceSession(standard.SerializeToString(), providers=["CPUExecutionProvider"])
    half = copy.deepcopy(module.eager).half()
    arrays = random_inputs(module.spec, sizes_of(module, 0), 1, VOCABULARY)
    rounded = {
        key: x if x.ndim < 2 or x.dtype != np.float32 else x.astype(np.float16) for key, x in arrays.items()
    }
    wanted = run_eager(module.eager, module.spec.inputs, module.spec.outputs, arrays)
    yardstick = run_eager(half, module.spec.inputs, module.spec.outputs, rounded)
    feeds = dict(zip((item.name for item in session.get_inputs()), arrays.values(), strict=True))
    for result, (key, w) in zip(session.run(None, feeds), wanted.items(), strict=True):
        assert result.dtype == np.float32
        assert_close(result, w, rel_l2=2 * relative_l2(yardstick[key], w), label=key)


class Gated(nn.Module):
    """The feed-forward layer of a transformer, as wide as the kernel for gated GELUs wants."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.out = nn.Linear(6, SPLIT_GELU_WIDTHS[0]), nn.Linear(SPLIT_GELU_WIDTHS[0] // 2, 6)

    def forward(self, sample: Tensor) -> Any:
        left, right = self.into(sample).chunk(2, -1)
        return self.out(left * gelu(right))


def test_gated_gelu_takes_the_bias_along(tmp_path: Path) -> None:
    torch.manual_seed(0)
    shape = ("batch", "tokens", 6)
    tensor = TensorSpec("sample", "float32", shape)
    spec = ModuleSpec("unet", "unet", (tensor,), (tensor,), {"batch": SizeRange(), "tokens": SizeRange()})
    eager = Gated().eval()
    module = capture(CapturedModule(spec, eager, eager))
    compiled = target.compile(module, tmp_path, CompileOptions(Precision.FP16, device="cuda"))
    assert compiled.tactics["fused"] == {"BiasSplitGelu": 1}
    stored = onnx.load(tmp_path / compiled.files[0])
    (fused,) = [node for node in stored.graph.node if node.op_type == "BiasSplitGelu"]
    vectors = {item.name: numpy_helper.to_array(item) for item in stored.graph.initializer}
    np.testing.assert_array_equal(vectors[fused.input[1]], eager.into.bias.detach().half().numpy())
    session = onnxruntime.InferenceSession(
        only_standard(stored)[0].SerializeToString(), providers=["CPUExecutionProvider"]
    )
    x = np.random.default_rng(0).standard_normal((3, 5, 6), np.float32)
    (found,) = session.run(None, {"sample": x})
    assert_close(found, eager(torch.from_numpy(x)), rel_l2=2e-3)


def entry_of(files: tuple[str, ...]) -> ModuleEntry:
    return replace(TEXT_ENCODER, files=dict.fromkeys(files, ""))


def test_external_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As for SDXL's U-Net: weights in a second file under the name that the model refers to."""
    monkeypatch.setattr(lowering, "EXTERNAL_DATA_LIMIT", 1000)
    module = model("clip")
    compiled = target.compile(module, tmp_path, CompileOptions(Precision.FP16, device="cuda"))
    adaptable = ("text_encoder.lora.onnx", "text_encoder.parameters.json")
    assert compiled.files == ("text_encoder.onnx", "text_encoder.onnx.data", *adaptable)
    assert {path.name for path in tmp_path.iterdir()} == set(compiled.files)
    arrays = random_inputs(module.spec, {"batch": 2, "tokens": 7}, 1, VOCABULARY)
    wanted = run_eager(module.eager, module.spec.inputs, module.spec.outputs, arrays)
    layers = parameters.read(tmp_path, "text_encoder", entry_of(compiled.files), adapters_cuda.PLACE)
    none = adapters_cuda.matrices_of(layers, {}, 1)
    for file, more in ((compiled.files[0], {}), (compiled.files[2], none)):
        session = onnxruntime.InferenceSession(str(tmp_path / file), providers=["CPUExecutionProvider"])
        found = session.run(None, {**arrays, **more})
        for tensor, value in zip(module.spec.outputs, found, strict=True):
            assert_close(value, wanted[tensor.name], rel_l2=3e-3, label=tensor.name)
