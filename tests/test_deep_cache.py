"""DeepCache against diffusers with the caching done anew: outputs of single layers kept and given again."""

from __future__ import annotations

import contextlib
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastdiff
from fastdiff.build.build import build_engine
from fastdiff.deep_cache import DeepCache, read_deep_cache
from fastdiff.engine_dir import open_engine
from fastdiff.errors import InputError
from tests.builds import build_native
from tests.checkpoints import make_checkpoint
from tests.compare import assert_close
from tests.controls import make_controlnet, make_t2i_adapter, picture
from tests.lora.made_up import add_to, layers_of, random_updates, write_lora
from tests.oracle import Oracle, psnr

PROMPT = "a red circle left of a blue square"
UNET = {"layers_per_block": 2, "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D")}


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two layers on each level, so that there are branches 0, 1 and 2."""
    return make_checkpoint(tmp_path_factory.mktemp("deep") / "checkpoint", seed=3, unet=UNET)


@pytest.fixture(scope="session")
def oracle(checkpoint: Path) -> Oracle:
    return Oracle(checkpoint)


@pytest.fixture(scope="session")
def native(checkpoint: Path) -> fastdiff.Pipeline:
    path = build_native(checkpoint, checkpoint.with_name("native.fd"), deep_cache=1)
    return fastdiff.load(path, threads=1)


@pytest.fixture(scope="session")
def reference(checkpoint: Path) -> fastdiff.Pipeline:
    """The torch target, outermost branch."""
    path = build_engine(checkpoint, checkpoint.with_name("torch.fd"), target="torch", deep_cache=0).path
    return fastdiff.load(path, threads=1)


@contextlib.contextmanager
def cached(unet: Any, branch: int, full: frozenset[int]) -> Iterator[None]:
    """The U-Net of a diffusers pipeline with DeepCache as its authors' package does it: a layer below the
    branch gives its output of the last full evaluation.
    """
    calls, kept = [-1], {}
    down, up = [], []
    for block in unet.down_blocks:
        down += [(block.resnets[i], *_attention(block, i)) for i in range(len(block.resnets))]
        down += [(sampler,) for sampler in block.downsamplers or ()]
    for block in unet.up_blocks:
        up += [(block.resnets[i], *_attention(block, i)) for i in range(len(block.resnets))]
    skipped = [layer for layers in down[branch:] for layer in layers]
    skipped += [layer for layers in up[: len(up) - branch - 1] for layer in layers]
    # a sampler on the way up is skipped where all that comes before it is
    position = 0
    for block in unet.up_blocks:
        position += len(block.resnets)
        if position <= len(up) - branch - 1:
            skipped += list(block.upsamplers or ())
    skipped.append(unet.mid_block)

    def counting(forward: Any) -> Any:
        def run(*args: Any, **kwargs: Any) -> Any:
            calls[0] += 1
            return forward(*args, **kwargs)

        return run

    def keeping(layer: Any, forward: Any) -> Any:
        def run(*args: Any, **kwargs: Any) -> Any:
            if calls[0] in full:
                kept[layer] = forward(*args, **kwargs)
            return kept[layer]

        return run

    changed = [unet, *skipped]
    for layer in skipped:
        layer.forward = keeping(layer, layer.forward)
    unet.forward = counting(unet.forward)
    try:
        yield
    finally:
        for layer in changed:
            del layer.forward


def _attention(block: Any, index: int) -> tuple[Any, ...]:
    return (block.attentions[index],) if hasattr(block, "attentions") else ()


@pytest.mark.parametrize(
    ("sampler", "cache"),
    [
        ("ddim", {"every": 2}),
        ("euler", {"every": 3}),
        ("dpmpp_2m", {"every": 5}),
        ("euler", {"every": 4, "center": 6, "power": 1.6}),
    ],
)
def test_pictures_equal_those_of_diffusers_with_cached_layers(
    native: fastdiff.Pipeline, oracle: Oracle, sampler: str, cache: dict[str, Any]
) -> None:
    call: dict[str, Any] = {"sampler": sampler, "steps": 12, "guidance": 4.0, "seed": 5, "num": 2}
    full = read_deep_cache(cache).full(12)
    _, exact = oracle._draw(PROMPT, **call)
    with cached(oracle.pipe.unet, 1, full):
        pictures, latents = oracle._draw(PROMPT, **call)
    ours = native(PROMPT, **call, deep_cache=cache)
    allowed = 3e-3 if sampler == "ddim" else 1e-4  # as tests/test_pipeline_diffusers.py has it
    assert_close(ours.latents, latents, rel_l2=allowed)
    assert min(psnr(our, their) for our, their in zip(ours.images, pictures, strict=True)) >= 45
    off = np.linalg.norm(exact - latents) / np.linalg.norm(latents)
    assert off > 10 * allowed, "an approximation that changes nothing compares nothing"


def test_the_outermost_branch_on_the_reference_target(reference: fastdiff.Pipeline, oracle: Oracle) -> None:
    call: dict[str, Any] = {"sampler": "euler", "steps": 6, "guidance": 1.0, "seed": 1}
    with cached(oracle.pipe.unet, 0, frozenset({0, 3})):
        pictures, latents = oracle._draw(PROMPT, **call)
    ours = reference(PROMPT, **call, deep_cache=3)
    assert_close(ours.latents, latents, rel_l2=1e-4)
    assert psnr(ours.images[0], pictures[0]) >= 45


def test_a_cache_of_one_step_is_exact(native: fastdiff.Pipeline) -> None:
    """Bit for bit, and the engine's own loop runs where nothing is cached."""
    assert native.modules["unet"].has_loop
    plain = native(PROMPT, steps=5, seed=2)
    cached_once = native(PROMPT, steps=5, seed=2, deep_cache=1)
    assert np.array_equal(plain.latents, cached_once.latents)
    assert np.array_equal(plain.images[0], cached_once.images[0])
    settings = native(PROMPT, steps=5, seed=2, deep_cache=2).metadata[0]["settings"]
    assert settings["deep_cache"] == 2
    assert "deep_cache" not in plain.metadata[0]["settings"]


def test_an_engine_without_the_option_draws_the_same(
    native: fastdiff.Pipeline, checkpoint: Path, tmp_path: Path
) -> None:
    path = build_native(checkpoint, tmp_path / "plain.fd", modules=("unet",))
    engine = open_engine(path)
    assert "unet_shallow" not in engine.manifest.modules
    assert engine.manifest.model.deep_features == 0
    rng = np.random.default_rng(0)
    inputs = {
        "sample": rng.standard_normal((2, 4, 8, 12), np.float32),
        "timestep": np.float32(500),
        "encoder_hidden_states": rng.standard_normal((2, 7, 32), np.float32),
    }
    with engine.open_module("unet", 1) as unet:
        alone = unet(**inputs)["sample"]
    # the graphs sum in another order: this one is for sides of any length
    assert_close(native.modules["unet"](**inputs)["sample"], alone, rel_l2=3e-6)


@pytest.mark.parametrize("name", ["native", "reference"])
def test_a_shallow_evaluation_from_the_same_steps_features_is_the_whole(
    name: str, request: pytest.FixtureRequest
) -> None:
    pipe: fastdiff.Pipeline = request.getfixturevalue(name)
    rng = np.random.default_rng(1)
    for batch, height, width, tokens in ((1, 8, 8, 77), (3, 4, 12, 5)):
        inputs = {
            "sample": rng.standard_normal((batch, 4, height, width), np.float32),
            "timestep": np.float32(321),
            "encoder_hidden_states": rng.standard_normal((batch, tokens, 32), np.float32),
        }
        whole = pipe.modules["unet"](**inputs)
        shallow = pipe.modules["unet_shallow"](**inputs, deep_features=whole["deep_features"])
        assert_close(shallow["sample"], whole["sample"], rel_l2=1e-5)


@pytest.mark.parametrize("name", ["native", "reference"])
def test_a_lora_reaches_the_shallow_part(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Of a LoRA for every layer, the shallow part takes the updates of the weights that it has."""
    pipe: fastdiff.Pipeline = request.getfixturevalue(name)
    unet, shallow = pipe.modules["unet"], pipe.modules["unet_shallow"]
    assert shallow.adaptable().items() <= unet.adaptable().items()
    lora = write_lora(tmp_path / "lora.safetensors", {"unet": random_updates(unet.adaptable(), 2, seed=1)})
    rng = np.random.default_rng(1)
    inputs = {
        "sample": rng.standard_normal((2, 4, 8, 8), np.float32),
        "timestep": np.float32(321),
        "encoder_hidden_states": rng.standard_normal((2, 7, 32), np.float32),
    }
    before = unet(**inputs)
    pipe.load_lora(lora)
    try:
        whole = unet(**inputs)
        assert np.linalg.norm(whole["sample"] - before["sample"]) > 0.1 * np.linalg.norm(before["sample"])
        found = shallow(**inputs, deep_features=whole["deep_features"])["sample"]
        assert_close(found, whole["sample"], rel_l2=1e-5)
    finally:
        pipe.unload_loras()
    again = shallow(**inputs, deep_features=before["deep_features"])["sample"]
    assert_close(again, before["sample"], rel_l2=1e-5)


def test_pictures_with_a_lora_are_those_of_merged_weights(
    native: fastdiff.Pipeline, checkpoint: Path, tmp_path: Path
) -> None:
    """Full and shallow evaluations in turn, against an engine of a checkpoint that the LoRA was added to."""
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextModel

    merged = tmp_path / "merged"
    shutil.copytree(checkpoint, merged)
    updates = {}
    for index, (name, kind) in enumerate(
        {"unet": UNet2DConditionModel, "text_encoder": CLIPTextModel}.items()
    ):
        part: Any = kind.from_pretrained(merged / name, local_files_only=True)
        updates[name] = random_updates(layers_of(part), 2, seed=index, size=0.3)
        add_to(part, updates[name], 0.8)
        part.save_pretrained(merged / name)
    engine = build_engine(merged, tmp_path / "merged.fd", target="torch", deep_cache=1).path
    call: dict[str, Any] = {"sampler": "euler", "steps": 9, "guidance": 4.0, "seed": 5, "num": 2}
    before = native(PROMPT, **call, deep_cache=3)
    native.load_lora(write_lora(tmp_path / "lora.safetensors", updates), 0.8)
    try:
        found = native(PROMPT, **call, deep_cache=3)
        exact = native(PROMPT, **call)
    finally:
        native.unload_loras()
    wanted = fastdiff.load(engine, threads=1)(PROMPT, **call, deep_cache=3)
    for picture_found, picture_wanted, other, whole in zip(
        found.images, wanted.images, before.images, exact.images, strict=True
    ):
        assert psnr(picture_found, picture_wanted) >= 60
        assert psnr(picture_found, other) < 30, "the LoRA changes nothing that one could see"
        assert psnr(picture_found, whole) < 60, "the cache changes nothing"
    assert_close(found.latents, wanted.latents, rel_l2=1e-4)
    assert np.array_equal(native(PROMPT, **call, deep_cache=3).latents, before.latents)


def test_control_that_reaches_the_shallow_part_or_does_not(checkpoint: Path, tmp_path: Path) -> None:
    """A T2I-Adapter adds behind the layers of a level, which branch 2 computes; a ControlNet everywhere."""
    adapter, controlnet = make_t2i_adapter(tmp_path / "a"), make_controlnet(tmp_path / "c", checkpoint)
    both: dict[str, Any] = {"target": "torch", "t2i_adapters": [adapter], "controlnets": [controlnet]}
    with pytest.raises(InputError, match=r"deep_cache is 2 with a T2I-Adapter, .*: use 1 or less"):
        build_engine(checkpoint, tmp_path / "e.fd", deep_cache=2, **both)
    pipe = fastdiff.load(build_engine(checkpoint, tmp_path / "e.fd", deep_cache=1, **both).path, threads=1)
    call: dict[str, Any] = {"steps": 4, "seed": 1, "sampler": "euler", "adapter_image": picture(3)}
    exact = pipe(PROMPT, **call).latents
    assert np.array_equal(pipe(PROMPT, **call, deep_cache=1).latents, exact)
    assert not np.array_equal(pipe(PROMPT, **call, deep_cache=2).latents, exact)
    names = {tensor.name.rstrip("0123456789") for tensor in pipe.modules["unet"].inputs}
    assert {"adapter_feature_", "down_residual_", "mid_residual"} <= names
    with pytest.raises(InputError, match="deep_cache with a control_image"):
        pipe(PROMPT, steps=2, control_image=picture(4), deep_cache=2)


def test_the_batch_may_change_within_a_picture(native: fastdiff.Pipeline) -> None:
    """Outside of a guidance interval there is one half only; where it begins and ends, all is computed."""
    guidance = {
        "scale": 3.0,
        "method": {"name": "cfg"},
        "interval": {"low": 0.3, "high": 0.7, "unit": "share"},
    }
    counted: list[str] = []
    unet, shallow = native.modules["unet"], native.modules["unet_shallow"]
    run = {"unet": unet._run, "unet_shallow": shallow._run}
    with pytest.MonkeyPatch.context() as patch:
        for name, session in (("unet", unet), ("unet_shallow", shallow)):

            def note(arrays: Any, name: str = name) -> Any:
                counted.append(f"{name} {len(arrays['sample'])}")
                return run[name](arrays)

            patch.setattr(session, "_run", note)
        native(PROMPT, steps=10, seed=2, sampler="euler", guidance=guidance, deep_cache=100)
    assert [name for name in counted if name.startswith("unet ")] == ["unet 1", "unet 2", "unet 1"]
    assert len(counted) == 10


@pytest.mark.parametrize("every", [1, 2, 3, 7, 50])
@pytest.mark.parametrize("total", [1, 2, 20, 50])
def test_uniform_evaluations(every: int, total: int) -> None:
    assert DeepCache(every).full(total) == set(range(0, total, every))


def test_uneven_evaluations() -> None:
    even = DeepCache(5, center=0, power=1.0).full(50)
    assert even == set(range(0, 50, 5)), "a power of 1 spaces them evenly"
    around = sorted(DeepCache(5, center=20, power=1.5).full(50))
    assert around[0] == 0
    assert len(around) <= math.ceil(50 / 5) + 1
    gaps = np.diff(around)
    nearest = min(range(len(gaps)), key=lambda i: abs(around[i] - 20))
    assert gaps[nearest] == gaps.min() < gaps[-1]
    assert gaps[nearest] < gaps[0]
    # worked out by hand: l is -3, -1.59, -0.18, 1.23, its squares with signs -9, -2.5, -0.03, 1.5 around 9
    assert DeepCache(4, center=9, power=2.0).full(16) == {0, 6, 8, 10}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (0, "deep_cache is 0: it must be a whole number, 1 or more"),
        (-3, "deep_cache is -3: it must be"),
        (True, "deep_cache is True: it must be"),
        (2.5, "deep_cache is 2.5: it must be"),
        ("3", "deep_cache is '3': it must be"),
        (float("nan"), "deep_cache is nan: it must be"),
        ({"every": 3, "centre": 4}, "deep_cache has 'centre': give"),
        ({"center": 4}, "deep_cache lacks 'every'"),
        ({"every": 3, "center": -1}, "center of deep_cache is -1: it must be"),
        ({"every": 3, "center": float("nan")}, "center of deep_cache is nan"),
        ({"every": 3, "center": 2, "power": 0.5}, "power of deep_cache is 0.5: it must be"),
        ({"every": 3, "power": 2.0}, "deep_cache has a power of 2 and no center"),
    ],
)
def test_refuses(native: fastdiff.Pipeline, value: object, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        native(PROMPT, steps=2, deep_cache=value)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_refuses_what_it_does_not_go_with(native: fastdiff.Pipeline, tiny_native_engine: Path) -> None:
    with pytest.raises(InputError, match="sampler 'dpm_adaptive', which chooses its own steps"):
        native(PROMPT, sampler="dpm_adaptive", deep_cache=2)
    without = fastdiff.load(tiny_native_engine, threads=1)
    with pytest.raises(
        InputError, match="was built without it; build it with fastdiff build CHECKPOINT --deep"
    ):
        without(PROMPT, steps=2, deep_cache=2)
    two = fastdiff.load(native.engine.path, 2, "cpu", "cpu")
    with pytest.raises(InputError, match="deep_cache with a guidance_device"):
        two(PROMPT, steps=2, deep_cache=2)
    two.close()


@pytest.mark.parametrize("branch", [-1, 3, 1.5, True])
def test_refuses_a_branch_that_is_not_there(checkpoint: Path, tmp_path: Path, branch: Any) -> None:
    with pytest.raises(InputError, match="give a branch of the outermost level, a whole number from 0 to 2"):
        build_engine(checkpoint, tmp_path / "e.fd", target="torch", deep_cache=branch)
    assert not (tmp_path / "e.fd").exists()
