"""Published configurations, what a request measures, and counted operations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fastdiff.bench.case import Case, Job
from fastdiff.bench.configs import PUBLISHED
from fastdiff.bench.flops import count_flops
from fastdiff.bench.models import find_models
from fastdiff.bench.parts import mapped_part, meta_part
from fastdiff.bench.suite import Request
from fastdiff.build.checkpoint import load_checkpoint
from fastdiff.build.weights import load_part
from fastdiff.errors import EngineMismatchError, InputError
from tests.checkpoints import make_checkpoint, write_json
from tests.compare import assert_close


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configurations_have_the_published_size(name: str, tmp_path: Path) -> None:
    published = PUBLISHED[name]
    (tmp_path / published.part).mkdir()
    write_json(tmp_path / published.part / "config.json", published.config)
    part = meta_part(tmp_path, published.part)
    assert sum(tensor.numel() for tensor in part.parameters()) == published.parameters


def test_flops_of_the_text_encoder_by_hand(tiny_checkpoint: Path) -> None:
    """Width 32, inner width 64, 2 layers, 77 tokens, batch 3; one multiplication and addition is two."""
    model = load_checkpoint(tiny_checkpoint).spec
    case = Case("tiny", "run", "text_encoder", 3, 32, 32)
    projections = 4 * 32 * 32 + 2 * 32 * 64
    attention = 2 * 77 * 32
    assert count_flops(tiny_checkpoint, "text_encoder", model, case) == 2 * 2 * 3 * 77 * (
        projections + attention
    )


@pytest.mark.parametrize(
    ("name", "height", "batch", "gflop"),
    # 343 without attention, which adds 17 at 256²; 620 with the attention of the decoder's middle; SDXL's are
    # the 13.5 TFLOP of a guided step and the 10.5 of a picture that its published times are divided by
    [
        ("sd15-unet", 256, 2, 360.2),
        ("sd15-vae-decoder", 256, 1, 622.2),
        ("sdxl-unet", 1024, 2, 13522.5),
        ("sdxl-vae-decoder", 1024, 1, 10470.4),
    ],
)
def test_flops_of_published_models(name: str, height: int, batch: int, gflop: float, tmp_path: Path) -> None:
    published = PUBLISHED[name]
    (tmp_path / published.part).mkdir()
    write_json(tmp_path / published.part / "config.json", published.config)
    case = Case(name, "run", published.module, batch, height, height)
    assert count_flops(tmp_path, published.module, published.model, case) / 1e9 == pytest.approx(
        gflop, abs=0.1
    )


@pytest.mark.parametrize("part", ["text_encoder", "unet", "vae"])
def test_mapped_weights_are_the_weights(tiny_checkpoint: Path, part: str) -> None:
    mapped = mapped_part(tiny_checkpoint, part).state_dict()
    loaded = load_part(tiny_checkpoint / part, part).state_dict()
    assert mapped.keys() == loaded.keys()
    for name, tensor in loaded.items():
        assert_close(mapped[name], tensor, max_abs=0.0, label=name)


def test_half_precision_weights_are_widened(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "half", fp16=True)
    part = mapped_part(checkpoint, "vae")
    assert {tensor.dtype for tensor in part.parameters()} == {torch.float32}


def cases(checkpoint: Path, tmp_path: Path, **request: Any) -> list[str]:
    wanted = Request((str(checkpoint),), **request)
    (model,) = find_models(wanted, tmp_path)
    return [f"{case.kind} {case.module} {case.batch} {case.height}" for case in model.cases(wanted)]


def test_default_cases(tiny_checkpoint: Path, tmp_path: Path) -> None:
    assert cases(tiny_checkpoint, tmp_path) == [
        "run unet 2 32",
        "run vae_decoder 1 32",
        "run text_encoder 2 32",
        "picture  1 32",
        "cold  1 32",
    ]
    assert cases(
        tiny_checkpoint, tmp_path, modules=("unet",), sizes=((16, 24), (48, 48)), batch=3, kinds=("open",)
    ) == ["open unet 3 16", "open unet 3 48"]


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        ({"modules": ("decoder",)}, "unknown module 'decoder'"),
        ({"kinds": ("speed",)}, "unknown measurement 'speed'"),
        ({"sizes": ((36, 32),)}, "multiple of 8 and at least 16"),
        ({"sizes": ((32, 8),)}, "width 8"),
    ],
)
def test_cases_that_cannot_be(
    tiny_checkpoint: Path, tmp_path: Path, request_: dict[str, Any], says: str
) -> None:
    with pytest.raises(InputError, match=says):
        cases(tiny_checkpoint, tmp_path, **request_)


@pytest.mark.parametrize(
    ("request_", "says"),
    [({"modules": ("unet",)}, "is vae_decoder alone"), ({"kinds": ("cold",)}, "makes no pictures")],
)
def test_published_models_are_one_module(tmp_path: Path, request_: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        cases(Path("sd15-vae-decoder"), tmp_path, **request_)


def test_engines_find_their_checkpoint(tiny_engine: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    request = Request((str(tiny_engine), str(tiny_checkpoint)))
    (model,) = find_models(request, tmp_path)
    assert model.engines == [("engine:tiny.fd", tiny_engine.resolve())]
    assert model.targets(request) == (), "ratios refer to the engine that was given"
    with pytest.raises(EngineMismatchError, match="give its folder as well"):
        find_models(Request((str(tiny_engine),)), tmp_path)
    other = make_checkpoint(tmp_path / "other", seed=1)
    with pytest.raises(EngineMismatchError, match="'checkpoint'"):
        find_models(Request((str(tiny_engine), str(other))), tmp_path)


def test_an_engine_of_a_shipped_model_brings_it(scenes_engine: Path, tmp_path: Path) -> None:
    (model,) = find_models(Request((str(scenes_engine),)), tmp_path)
    assert model.name == "scenes"
    assert model.engines == [("engine:scenes.fd", scenes_engine.resolve())]


def test_nothing_to_measure() -> None:
    with pytest.raises(InputError, match="give an engine, scenes, or one of sd15-unet"):
        find_models(Request(()), Path())


def test_jobs_survive_json(tiny_checkpoint: Path) -> None:
    import json

    model = load_checkpoint(tiny_checkpoint).spec
    job = Job("torch", Case("t", "run", "unet", 2, 32, 48), model, "c", "i", "e", 2, vocab_size=9)
    assert Job.from_json(json.loads(json.dumps(job.to_json()))) == job
    assert job.case.sizes(model) == {"batch": 2, "height": 8, "width": 12, "tokens": 77}
