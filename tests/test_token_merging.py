"""Token merging against diffusers' transformer blocks with the merging of the paper put around attn1."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import fastdiff
from fastdiff.build.build import build_engine
from fastdiff.build.capture import CapturedModule
from fastdiff.build.checkpoint import load_checkpoint
from fastdiff.build.modules import module_spec
from fastdiff.engine_dir import open_engine
from fastdiff.errors import InputError
from tests.builds import build_native
from tests.compare import assert_close
from tests.kernels.test_token_match import by_hand
from tests.oracle import Oracle, psnr

PROMPT = "a green star on a square"


@pytest.fixture(scope="session")
def native(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> fastdiff.Pipeline:
    """Half of the tokens merged, and DeepCache beside it."""
    path = tmp_path_factory.mktemp("merged") / "native.fd"
    return fastdiff.load(build_native(tiny_checkpoint, path, token_merging=0.5, deep_cache=0), threads=1)


@contextlib.contextmanager
def merging(unet: Any, level: int, share: float) -> Iterator[None]:
    """The transformer blocks of one level with merged tokens, destinations chosen without chance.

    In each block the input decides which tokens are alike; the normed tokens are merged, attended, unmerged.
    """
    blocks = (unet.down_blocks[level], unet.up_blocks[len(unet.up_blocks) - 1 - level])
    changed: list[Any] = []

    def change(module: Any, forward: Any) -> None:
        module.forward = forward
        changed.append(module)

    for transformer in (attention for block in blocks for attention in block.attentions):
        state: dict[str, Any] = {}

        def note(
            x: Tensor, *args: Any, state: Any = state, old: Any = transformer.forward, **kwargs: Any
        ) -> Any:
            state["size"] = x.shape[2:]
            return old(x, *args, **kwargs)

        change(transformer, note)
        for block in transformer.transformer_blocks:

            def plan(x: Tensor, state: Any = state, old: Any = block.norm1.forward) -> Tensor:
                height, width = state["size"]
                pictures = x.reshape(len(x), height, width, -1).numpy()
                merged = int(height * width * share)
                state["plan"] = [by_hand(picture, merged) for picture in pictures]
                return old(x)

            def attend(
                x: Tensor, *args: Any, state: Any = state, old: Any = block.attn1.forward, **kwargs: Any
            ) -> Tensor:
                rows = [
                    torch.stack([tokens[torch.from_numpy(plan == m)].mean(0) for m in range(plan.max() + 1)])
                    for tokens, plan in zip(x, state["plan"], strict=True)
                ]
                y = old(torch.stack(rows), *args, **kwargs)
                return torch.stack([part[plan] for part, plan in zip(y, state["plan"], strict=True)])

            change(block.norm1, plan)
            change(block.attn1, attend)
    try:
        yield
    finally:
        for module in changed:
            del module.forward


def test_pictures_equal_those_of_diffusers_with_merged_tokens(
    native: fastdiff.Pipeline, tiny_checkpoint: Path
) -> None:
    oracle = Oracle(tiny_checkpoint)
    call: dict[str, Any] = {"sampler": "euler", "steps": 6, "guidance": 4.0, "seed": 5, "num": 2}
    with merging(oracle.pipe.unet, 0, 0.5):
        pictures, latents = oracle._draw(PROMPT, **call)
    _, exact = oracle._draw(PROMPT, **call)
    assert native.modules["unet"].has_loop
    ours = native(PROMPT, **call)
    assert_close(ours.latents, latents, rel_l2=1e-3)
    assert min(psnr(our, their) for our, their in zip(ours.images, pictures, strict=True)) >= 45
    assert np.linalg.norm(exact - latents) > 5e-3 * np.linalg.norm(latents), "merging changes nothing"
    again = native(PROMPT, **call, deep_cache=1)
    assert np.array_equal(again.latents, ours.latents)


@pytest.mark.parametrize("target", ["onnxruntime", "torch"])
def test_module_on_other_targets(target: str, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Sizes that nobody captured; the build itself has compared it with PyTorch."""
    built = build_engine(
        tiny_checkpoint, tmp_path / "e.fd", target=target, modules=("unet",), token_merging=0.3
    )
    assert built.modules[0].relative_l2 <= 1e-5
    engine = open_engine(built.path)
    assert engine.manifest.model.token_merging == 30
    rng = np.random.default_rng(0)
    arrays = {
        "sample": rng.standard_normal((3, 4, 6, 10), np.float32),
        "timestep": np.array([3, 500, 900], np.float32),
        "encoder_hidden_states": rng.standard_normal((3, 5, 32), np.float32),
    }
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel.from_pretrained(tiny_checkpoint / "unet").eval()
    with torch.no_grad(), merging(unet, 0, 0.3):
        wanted = unet(*(torch.from_numpy(array) for array in arrays.values()), return_dict=False)[0]
    with engine.open_module("unet", 1) as session:
        assert_close(session(**arrays)["sample"], wanted.numpy(), rel_l2=1e-5)


def test_a_share_of_none_is_the_plain_module(tiny_checkpoint: Path) -> None:
    from fastdiff.build.approximations import with_token_merging

    source = load_checkpoint(tiny_checkpoint)
    model = with_token_merging(source, source.spec, 0.0)
    assert model == source.spec
    assert module_spec("unet", model).options == {}


def test_sdxl_merges_on_its_second_level_and_caches_without_attention() -> None:
    """Its outermost level has no attention: tokens are merged on the next, features cached all the same."""
    from diffusers import UNet2DConditionModel

    from fastdiff.build.modules.approximate import approximate_unet
    from fastdiff.build.modules.unet import wrap_unet
    from tests.published import model

    source = model("sdxl").source
    assert isinstance(source, UNet2DConditionModel)
    wrapper = wrap_unet(source)
    generator = torch.Generator().manual_seed(0)
    inputs = (
        torch.randn(2, 4, 16, 24, generator=generator),
        torch.tensor([10.0, 700.0]),
        torch.randn(2, 7, 24, generator=generator),
        torch.randn(2, 20, generator=generator),
        torch.tensor([[1024.0, 1024, 0, 0, 1024, 1024]] * 2),
    )
    options = {"token_merging": 50, "deep_cache_branch": 1}
    with torch.no_grad():
        plain = wrapper(*inputs)
        sample, features = approximate_unet("unet", wrapper, options)(*inputs)
        shallow = approximate_unet("unet_shallow", wrapper, options)(*inputs, features)
        assert torch.equal(plain, wrapper(*inputs)), "the model that it was made of has changed"
        with merging(source, 1, 0.5):
            wanted = wrapper(*inputs)
    assert_close(sample, wanted, rel_l2=1e-5)
    assert torch.equal(shallow, sample)
    assert (plain - sample).norm() > 1e-3 * sample.norm()


def test_weights_keep_their_names() -> None:
    from fastdiff.build.modules.approximate import approximate_unet
    from fastdiff.build.modules.unet import wrap_unet
    from tests.published import model

    wrapper = wrap_unet(model("sd15").source)
    names = dict(wrapper.named_parameters())
    options = {"token_merging": 50, "deep_cache_branch": 2}
    changed = approximate_unet("unet", wrapper, options)
    assert dict(changed.named_parameters()).keys() == names.keys()
    shallow = dict(approximate_unet("unet_shallow", wrapper, options).named_parameters())
    assert all(names[name] is parameter for name, parameter in shallow.items())
    assert len(shallow) < len(names) / 3


def test_lowered_graph_computes_the_same() -> None:
    """SD 1.5's structure, at sizes that differ from those of the capture."""
    from fastdiff.build.capture import capture, run_eager
    from fastdiff.build.lower import lower_module
    from fastdiff.build.modules import random_inputs
    from fastdiff.build.modules.token_merging import with_merged_tokens
    from fastdiff.build.modules.unet import wrap_unet
    from fastdiff.build.passes import run_passes
    from tests.published import model, sizes_of
    from tests.targets.native.interpreter import interpret

    plain = model("sd15")
    module = with_merged_tokens(wrap_unet(plain.source), 25)
    captured = capture(CapturedModule(plain.spec, module, plain.source))
    assert captured.program is not None
    lowered = lower_module(captured.with_program(run_passes(captured.program)))
    assert sum(node.op == "token_match" for node in lowered.graph.nodes) == 5
    for step in range(2):
        arrays = random_inputs(plain.spec, sizes_of(plain, step), step)
        wanted = run_eager(module, plain.spec.inputs, plain.spec.outputs, arrays)
        assert_close(
            interpret(lowered, arrays, sizes_of(plain, step))["sample"], wanted["sample"], rel_l2=1e-5
        )


@pytest.mark.parametrize("ratio", [-0.1, 0.76, 0.505, float("nan"), True, "0.5"])
def test_refuses_a_share(tiny_checkpoint: Path, tmp_path: Path, ratio: Any) -> None:
    with pytest.raises(
        InputError, match=r"token_merging is .*: it must be the share of merged tokens"
    ) as caught:
        build_engine(tiny_checkpoint, tmp_path / "e.fd", target="torch", token_merging=ratio)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "e.fd").exists()


def test_refuses_a_unet_without_transformers() -> None:
    from fastdiff.build.modules.token_merging import check_token_merging

    config = {"down_block_types": ("DownBlock2D", "DownBlock2D")}
    assert check_token_merging(config, 0) == 0
    with pytest.raises(InputError, match="no transformer blocks"):
        check_token_merging(config, 0.5)
    assert Fraction(
        check_token_merging({"down_block_types": ("CrossAttnDownBlock2D",)}, 0.29), 100
    ) == Fraction(29, 100)
