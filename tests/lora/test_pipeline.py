"""LoRAs of whole pipelines: diffusers' pictures, names and scales, what pictures record, workers, the CLI."""

from __future__ import annotations

import gc
import json
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import fastdiff
from fastdiff.engine_dir import open_engine
from fastdiff.errors import InputError, NumericError
from fastdiff.lora import LowRank
from fastdiff.pipeline import Pipeline
from fastdiff.workers.pool import PipelinePool
from tests.cli.run import run_here
from tests.compare import assert_close, relative_l2
from tests.lora.made_up import LAYOUTS, add_to, layers_of, random_updates, write_lora
from tests.oracle import Oracle, psnr

MIN_PSNR = 45.0
CALL: dict[str, Any] = {"steps": 3, "sampler": "euler", "guidance": 4.0, "seed": 7}
PROMPT = "a red circle"


@pytest.fixture(scope="module")
def oracle(tiny_checkpoint: Path) -> Oracle:
    return Oracle(tiny_checkpoint)


@pytest.fixture(scope="module")
def modules(oracle: Oracle) -> dict[str, dict[str, dict[str, LowRank]]]:
    """Two LoRAs: ``a`` of the attention in both modules, ``b`` of everything."""
    shapes = {name: layers_of(getattr(oracle.pipe, name)) for name in ("unet", "text_encoder")}
    attention = {
        name: {path: shape for path, shape in layers.items() if ".attn" in path or "_attn" in path}
        for name, layers in shapes.items()
    }
    return {
        "a": {name: random_updates(layers, 4, 1, alpha=2.0) for name, layers in attention.items()},
        "b": {name: random_updates(layers, 1, 2, size=0.1) for name, layers in shapes.items()},
    }


@pytest.fixture(scope="module")
def files(modules: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("loras")
    return {
        "a": write_lora(folder / "a.safetensors", modules["a"]),
        "b": write_lora(folder / "b.safetensors", modules["b"], "peft"),
    }


@pytest.fixture(scope="module", params=["tiny_native_engine", "tiny_engine", "torch_engine"])
def pipe(request: pytest.FixtureRequest) -> Iterator[Pipeline]:
    pipe = fastdiff.load(request.getfixturevalue(request.param), threads=1)
    yield pipe
    pipe.close()


def merged(oracle: Oracle, modules: dict[str, Any], scales: dict[str, float], **call: Any) -> Any:
    """diffusers' picture with LoRAs added to the weights, which are put back afterwards."""
    parts = [oracle.pipe.unet, oracle.pipe.text_encoder]
    kept = [{key: value.clone() for key, value in part.state_dict().items()} for part in parts]
    try:
        for name, scale in scales.items():
            for module, layers in modules[name].items():
                add_to(getattr(oracle.pipe, module), layers, scale)
        return oracle._draw(PROMPT, **call)
    finally:
        for part, state in zip(parts, kept, strict=True):
            part.load_state_dict(state)


def assert_pictures(pipe: Pipeline, wanted: Any, **call: Any) -> None:
    found = pipe(PROMPT, **call)
    images, latents = wanted
    error = np.linalg.norm(found.latents - latents) / np.linalg.norm(latents)
    assert error < 1e-3
    for ours, theirs in zip(found.images, images, strict=True):
        assert psnr(ours, theirs) >= MIN_PSNR
        assert np.asarray(theirs).std() > 1


def test_one_then_both_then_the_other_then_none(
    pipe: Pipeline, oracle: Oracle, modules: dict[str, Any], files: dict[str, Path]
) -> None:
    """Through the loop, on a prompt whose embedding is known, at another size and batch as well."""
    others: tuple[dict[str, Any], ...] = (CALL, {**CALL, "height": 48, "width": 40, "num": 2, "steps": 2})
    before = [pipe(PROMPT, **call) for call in others]
    assert pipe.load_lora(files["a"], 0.8) == "a"
    assert pipe.load_lora(files["b"], -0.5, name="second") == "second"
    for scales in ({"a": 0.8, "b": -0.5}, {"b": 1.0}, {"a": 0.3}):
        pipe.set_loras({("second" if name == "b" else name): scale for name, scale in scales.items()})
        for call in others:
            assert_pictures(pipe, merged(oracle, modules, scales, **call), **call)
    pipe.unload_loras("a")
    assert pipe.loras == {"second": 0.0}
    pipe.unload_loras()
    for call, wanted in zip(others, before, strict=True):
        found = pipe(PROMPT, **call)
        assert np.array_equal(found.latents, wanted.latents)
        assert [image.tobytes() for image in found.images] == [image.tobytes() for image in wanted.images]


def test_order_and_shares(pipe: Pipeline, files: dict[str, Path]) -> None:
    """In which order LoRAs were loaded is rounding, and so is loading one twice at shares of its scale."""

    def draw(*loras: tuple[str, float]) -> Any:
        for index, (name, scale) in enumerate(loras):
            pipe.load_lora(files[name], scale, f"number {index}")
        latents = pipe(PROMPT, **CALL).latents
        pipe.unload_loras()
        return latents

    first, last, apart = draw(("a", 0.5), ("b", 1.0)), draw(("b", 1.0), ("a", 0.5)), draw(("a", 0.5))
    assert_close(last, first, rel_l2=1e-5)
    assert relative_l2(apart, first) > 1e-2
    assert_close(draw(("a", 0.2), ("b", 1.0), ("a", 0.3)), first, rel_l2=1e-4)


def test_guidance_on_two_devices(tiny_native_engine: Path, files: dict[str, Path]) -> None:
    """The halves of guidance have the same LoRAs."""
    both = fastdiff.load(tiny_native_engine, threads=2, device="cpu", guidance_device="cpu")
    alone = fastdiff.load(tiny_native_engine, threads=1)
    before = both(PROMPT, **CALL).latents
    for pipe in (both, alone):
        pipe.load_lora(files["a"])
    wanted = alone(PROMPT, **CALL).latents
    assert_close(both(PROMPT, **CALL).latents, wanted, rel_l2=1e-4)
    assert relative_l2(wanted, before) > 1e-2
    both.unload_loras()
    assert np.array_equal(both(PROMPT, **CALL).latents, before)
    both.close()
    alone.close()


def test_pictures_from_pictures(pipe: Pipeline, files: dict[str, Path]) -> None:
    """And what made them is written into them."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8))
    call: dict[str, Any] = {**CALL, "strength": 0.7, "steps": 4}
    before = pipe.img2img(image, PROMPT, **call)
    pipe.load_lora(files["a"])
    found = pipe.img2img(image, PROMPT, **call)
    assert found.metadata[0]["loras"][0]["file"] == "a.safetensors"
    pipe.unload_loras()
    again = pipe.img2img(image, PROMPT, **call)
    assert relative_l2(found.latents, before.latents) > 1e-2
    assert np.array_equal(again.latents, before.latents)
    assert again.images[0].tobytes() == before.images[0].tobytes()


def test_freed_with_the_last_reference(tiny_native_engine: Path, files: dict[str, Path]) -> None:
    """Without the garbage collector: weights of gigabytes wait for nobody."""
    gc.collect()
    gc.disable()
    try:
        pipe = fastdiff.load(tiny_native_engine, threads=1)
        pipe.load_lora(files["a"])
        pipe(PROMPT, **CALL)
        gone = weakref.ref(pipe)
        unet = weakref.ref(pipe.modules["unet"])
        del pipe
        assert gone() is None
        assert unet() is None
    finally:
        gc.enable()


def test_layouts_draw_the_same(tiny_native_engine: Path, modules: dict[str, Any], tmp_path: Path) -> None:
    pipe = fastdiff.load(tiny_native_engine, threads=1)
    latents = {}
    for layout in LAYOUTS:
        pipe.load_lora(write_lora(tmp_path / f"{layout}.safetensors", modules["a"], layout))
        latents[layout] = pipe(PROMPT, **CALL).latents
        pipe.unload_loras()
    for layout, found in latents.items():
        error = np.linalg.norm(found - latents["kohya"]) / np.linalg.norm(found)
        assert error < 1e-5, layout
    pipe.close()


def test_records(pipe: Pipeline, files: dict[str, Path], tmp_path: Path) -> None:
    """What had an effect is in the picture, what had none is not; all stays when the modules are freed."""
    pipe.load_lora(files["a"], 0.5)
    pipe.load_lora(files["b"])
    pipe.set_loras({"a": 0.25})
    first = pipe(PROMPT, **CALL)
    (record,) = first.metadata[0]["loras"]
    assert record["file"] == "a.safetensors"
    assert record["scale"] == 0.25
    assert len(record["sha256"]) == 64
    first.save(tmp_path / "out.png")
    with Image.open(tmp_path / "out.png") as image:
        assert any("a.safetensors" in str(value) for value in image.info.values())
    pipe.close()
    assert pipe.loras == {"a": 0.25, "b": 0.0}
    assert np.array_equal(pipe(PROMPT, **CALL).latents, first.latents)
    pipe.unload_loras()
    plain = pipe(PROMPT, **CALL)
    assert "loras" not in plain.metadata[0]
    assert not np.array_equal(plain.latents, first.latents)


def test_refusals(pipe: Pipeline, files: dict[str, Path], tmp_path: Path) -> None:
    """Nothing changes where something is refused."""
    pipe.load_lora(files["a"])
    wanted = pipe(PROMPT, **CALL).latents
    for call, message in (
        (lambda: pipe.load_lora(files["a"]), "a LoRA called 'a' is loaded"),
        (lambda: pipe.load_lora(files["a"], name=""), "name of a LoRA is ''"),
        (lambda: pipe.load_lora(files["b"], float("nan")), "scale of a LoRA is nan"),
        (lambda: pipe.load_lora(files["b"], True), "scale of a LoRA is True"),
        (lambda: pipe.load_lora(files["b"], 1e30), r"scale of a LoRA is 1e\+30: it must be from -1e\+06"),
        (lambda: pipe.load_lora("."), r"path of a LoRA is '\.'"),
        (lambda: pipe.load_lora(None), "path of a LoRA is None"),  # type: ignore[arg-type]
        (lambda: pipe.load_lora(tmp_path / "none.safetensors"), "No such file"),
        (lambda: pipe.set_loras({"b": 1.0}), "no LoRA called 'b': loaded are a"),
        (lambda: pipe.set_loras({"a": "much"}), "scale of a LoRA is 'much'"),  # type: ignore[dict-item]
        (lambda: pipe.set_loras(["a"]), "must map names"),  # type: ignore[arg-type]
        (lambda: pipe.unload_loras("b"), "no LoRA called 'b'"),
    ):
        with pytest.raises(InputError, match=message):
            call()  # type: ignore[no-untyped-call, unused-ignore]
    assert pipe.loras == {"a": 1.0}
    assert np.array_equal(pipe(PROMPT, **CALL).latents, wanted)
    pipe.unload_loras()


def test_an_overflow_names_the_lora(pipe: Pipeline, files: dict[str, Path], tmp_path: Path) -> None:
    """Not guidance, which is an ordinary one. A file of matrices that are far too large is finite itself."""
    from safetensors.numpy import load_file, save_file

    large = tmp_path / "large.safetensors"
    save_file({name: array * np.float32(1e12) for name, array in load_file(files["a"]).items()}, large)
    pipe.load_lora(large, 0.5)
    with pytest.raises(NumericError, match=r"^NaN .*, with LoRA 'large' at 0.5: give scales nearer"):
        pipe(PROMPT, **CALL)
    pipe.unload_loras()
    assert np.isfinite(pipe(PROMPT, **CALL).latents).all()


def test_none_changes_while_a_picture_is_made(pipe: Pipeline, files: dict[str, Path]) -> None:
    """From a callback it would be another model's steps; the picture goes on as it began."""
    expected = pipe(PROMPT, **CALL).latents

    def change(step: int, *_: Any) -> None:
        for act in (lambda: pipe.load_lora(files["a"]), lambda: pipe.set_loras({})):
            with pytest.raises(InputError, match="while a picture is made: change them between two calls"):
                act()

    assert np.array_equal(pipe(PROMPT, callback=change, **CALL).latents, expected)
    assert not pipe.loras
    pipe.load_lora(files["a"])
    pipe.unload_loras()


def test_workers(tiny_native_engine: Path, files: dict[str, Path], tmp_path: Path) -> None:
    """Every process has what the pool has, also one that starts again; a file that changes is refused."""
    with PipelinePool(open_engine(tiny_native_engine), ("cpu", "cpu"), 2) as pool:
        pipe = fastdiff.load(tiny_native_engine, threads=1)
        copied = tmp_path / "a.safetensors"
        copied.write_bytes(files["a"].read_bytes())
        for each in (pool, pipe):
            each.load_lora(copied, 0.7)
        wanted, found = (each(PROMPT, num=3, **CALL) for each in (pipe, pool))
        for ours, theirs in zip(found.images, wanted.images, strict=True):
            assert psnr(ours, theirs) >= MIN_PSNR
        assert found.metadata == wanted.metadata
        with pytest.raises(InputError, match=r"^CPU worker [12]: .*matches no layer"):
            pool.load_lora(_foreign(tmp_path))
        assert pool.loras == {"a": 0.7}
        copied.write_bytes(files["b"].read_bytes())
        with pytest.raises(InputError, match="has changed since it was loaded"):
            pool(PROMPT, **CALL)
        pool.unload_loras()
        pipe.unload_loras()
        assert np.array_equal(pool(PROMPT, **CALL).latents, pipe(PROMPT, **CALL).latents)
        pipe.close()


def _foreign(folder: Path) -> Path:
    from safetensors.numpy import save_file

    save_file({"lora_unet_nowhere.lora_down.weight": np.ones((1, 1), np.float32)}, folder / "x.safetensors")
    return folder / "x.safetensors"


def test_command_line(
    tiny_native_engine: Path, files: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.png"
    words = ("generate", tiny_native_engine, PROMPT, "-o", out, "--steps", 2, "--seed", 1)
    loras = ("--lora", f"{files['a']}:0.5", "--lora", files["b"])
    assert run_here(capfd, *words, *loras).status == 0
    with Image.open(out) as image:
        (text,) = [value for value in image.info.values() if "sha256" in str(value)]
    records = json.loads(text)["loras"]
    assert [(record["file"], record["scale"]) for record in records] == [
        ("a.safetensors", 0.5),
        ("b.safetensors", 1.0),
    ]
    out.unlink()
    run_here(capfd, *words, "--lora", f"{files['a']}:0").assert_refused("has no effect")
    run_here(capfd, *words, "--lora", f"{files['a']}:nan").assert_refused("it must be a finite number")
    run_here(capfd, *words, "--lora", _foreign(tmp_path)).assert_refused("matches no layer")
    run_here(capfd, *words, "--lora", files["a"], "--lora", files["a"]).assert_refused("is loaded")
    assert not out.exists()
