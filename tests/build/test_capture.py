"""The captured graphs at sizes that differ from the example's: no size may have become a constant."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fastdiff.build.capture import CapturedModule, capture, run_eager
from fastdiff.build.checkpoint import Checkpoint
from fastdiff.build.modules import ModuleSpec, module_spec, random_inputs
from fastdiff.config import MODULES, SizeRange, TensorSpec
from fastdiff.errors import CaptureError
from tests.build.conftest import Captured

SIZES = [
    {"batch": 1, "height": 8, "width": 8, "tokens": 77},  # one picture without guidance
    {"batch": 2, "height": 8, "width": 8, "tokens": 77},  # the same with guidance
    {"batch": 3, "height": 6, "width": 14, "tokens": 1},  # odd multiples, not square, one token
    {"batch": 5, "height": 4, "width": 22, "tokens": 76},  # least height, an even token count
]


def test_specs_name_what_the_pipeline_uses(checkpoint: Checkpoint) -> None:
    def names(tensors: tuple[TensorSpec, ...]) -> list[str]:
        return [tensor.name for tensor in tensors]

    specs = {name: module_spec(name, checkpoint.spec) for name in MODULES}
    assert {name: (names(spec.inputs), names(spec.outputs)) for name, spec in specs.items()} == {
        "text_encoder": (["input_ids", "added_embeds"], ["last_hidden_state", "hidden_states"]),
        "unet": (["sample", "timestep", "encoder_hidden_states"], ["sample"]),
        "vae_decoder": (["latent_sample"], ["sample"]),
        "vae_encoder": (["sample"], ["mean", "logvar"]),
    }
    assert specs["unet"].shapes["height"] == SizeRange(4, None, 2)
    assert specs["unet"].shapes["batch"].maximum is None
    assert specs["text_encoder"].shapes["tokens"].maximum == 77
    assert specs["vae_decoder"].outputs[0].shape == ("batch", 3, "4*height", "4*width")


@pytest.mark.parametrize("name", MODULES)
def test_graph_equals_eager_at_other_sizes(captured: Captured, name: str) -> None:
    module = captured(name)
    assert module.program is not None
    spec, graph = module.spec, module.program.module()
    for seed, sizes in enumerate(SIZES):
        arrays = random_inputs(spec, sizes, seed, vocab_size=100)
        expected = run_eager(module.eager, spec.inputs, spec.outputs, arrays)
        results = run_eager(graph, spec.inputs, spec.outputs, arrays)
        for tensor in spec.outputs:
            shape = [factor * sizes.get(str(symbol), 1) for factor, symbol in tensor.factors()]
            assert list(results[tensor.name].shape) == shape
            np.testing.assert_array_equal(results[tensor.name], expected[tensor.name], err_msg=str(sizes))


@pytest.mark.parametrize("name", MODULES)
def test_every_size_is_symbolic(captured: Captured, name: str) -> None:
    module = captured(name)
    assert module.program is not None
    inputs = [
        node for node in module.program.graph.nodes if node.name in module.program.graph_signature.user_inputs
    ]
    for tensor, node in zip(module.spec.inputs, inputs, strict=True):
        for (_, symbol), size in zip(tensor.factors(), node.meta["val"].shape, strict=True):
            assert isinstance(size, torch.SymInt) == (symbol is not None), (tensor.name, symbol)


def test_modules_match_the_library(checkpoint: Checkpoint, captured: Captured) -> None:
    """The wrappers against the calls that a diffusers pipeline makes."""
    sizes = SIZES[0]
    vae = checkpoint.load("vae")
    latent = random_inputs(captured("vae_decoder").spec, sizes, seed=2)["latent_sample"]
    picture = random_inputs(captured("vae_encoder").spec, sizes, seed=2)["sample"]
    with torch.inference_mode():
        decoded = vae.decode(torch.from_numpy(latent)).sample.numpy()
        posterior = vae.encode(torch.from_numpy(picture)).latent_dist
    for name, arrays, expected in (
        ("vae_decoder", {"latent_sample": latent}, {"sample": decoded}),
        (
            "vae_encoder",
            {"sample": picture},
            {"mean": posterior.mean.numpy(), "logvar": posterior.logvar.numpy()},
        ),
    ):
        module = captured(name)
        results = run_eager(module.eager, module.spec.inputs, module.spec.outputs, arrays)
        for key, value in expected.items():
            np.testing.assert_array_equal(results[key], value)


class Branching(nn.Module):
    """Depends on its input's values, which no graph can."""

    def forward(self, sample: Tensor) -> Tensor:
        return sample + 1 if sample.sum() > 0 else sample


def test_what_cannot_be_captured_is_a_capture_error() -> None:
    tensor = TensorSpec("sample", "float32", ("batch", 3))
    spec = ModuleSpec("branching", "unet", (tensor,), (tensor,), {"batch": SizeRange()})
    module = Branching()
    with pytest.raises(CaptureError, match="branching cannot be captured") as caught:
        capture(CapturedModule(spec, module, module))
    assert "\n" not in str(caught.value)
