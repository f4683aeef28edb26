"""U-Nets for sides of any length against PyTorch, on the targets that compile them."""

from __future__ import annotations

import copy
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel

from fastdiff.build import plain
from fastdiff.build.build import build_engine
from fastdiff.build.capture import CapturedModule, capture, run_eager
from fastdiff.build.checkpoint import load_checkpoint
from fastdiff.build.modules import module_spec, random_inputs
from fastdiff.build.passes import run_passes
from fastdiff.build.sides import takes_any_sides, with_any_sides
from fastdiff.build.verify import verification_sizes
from fastdiff.config import ModelSpec, Precision
from fastdiff.engine_dir import open_engine
from fastdiff.errors import InputError
from fastdiff.lora.update import LowRank
from fastdiff.manifest import ModuleEntry
from fastdiff.targets import CompileOptions, get_target
from tests.builds import targets_of
from tests.compare import assert_close

UNET = {
    "block_out_channels": (16, 32, 32, 32),
    "layers_per_block": 1,
    "attention_head_dim": 2,
    "cross_attention_dim": 24,
    "norm_num_groups": 8,
}
MODEL = ModelSpec("any", 4, 8, 1.0, 0.0, 128, 136, 1, 8, 77, 24, shortest_side=128)

# Four levels, three halvings
SIDES = [
    pytest.param(16, 16, id="the shortest"),
    pytest.param(17, 33, id="odd on every level"),
    pytest.param(18, 20, id="odd on the second, on the third"),
    pytest.param(23, 31, id="odd, then multiples of eight"),
    pytest.param(24, 40, id="multiples of eight"),
]


def inputs(module: CapturedModule, height: int, width: int, batch: int = 1) -> dict[str, Any]:
    return random_inputs(module.spec, {"batch": batch, "height": height, "width": width, "tokens": 5}, height)


@cache
def unet(library: Any) -> CapturedModule:
    """The U-Net of diffusers or of build/plain, with the same weights, captured for any sides."""
    torch.manual_seed(0)
    theirs = UNet2DConditionModel(**UNET).eval()
    model: Any = theirs if library is UNet2DConditionModel else plain.UNet2DConditionModel(**UNET)
    model.load_state_dict(theirs.state_dict())
    spec = module_spec("unet", MODEL)
    captured = capture(CapturedModule(spec, spec.wrap(model.eval()), theirs))
    assert captured.program is not None
    return captured.with_program(run_passes(captured.program))


def operators(library: Any) -> Counter[str]:
    program = unet(library).program
    assert program is not None
    targets = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    return Counter(target for target in targets if target.startswith("aten.") and "sym_" not in target)


@pytest.fixture(scope="module", params=["native", "onnxruntime"])
def session(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    module, target, folder = (
        unet(UNet2DConditionModel),
        get_target(request.param),
        tmp_path_factory.mktemp("any"),
    )
    compiled = target.compile(module, folder, CompileOptions())
    spec = module.spec
    entry = ModuleEntry(
        *(request.param, Precision.FP32, spec.inputs, spec.outputs, spec.shapes),
        files=dict.fromkeys(compiled.files, ""),
        bytes=0,
        error={},
        seconds=0.0,
        tactics=compiled.tactics,
        requires=compiled.requires,
    )
    with target.open(folder, "unet", entry, 2) as opened:
        yield opened


@pytest.mark.parametrize(("height", "width"), SIDES)
def test_targets_compute_what_diffusers_does(session: Any, height: int, width: int) -> None:
    module = unet(UNet2DConditionModel)
    arrays = inputs(module, height, width, batch=2)
    with torch.no_grad():
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        wanted = module.source(**tensors, return_dict=False)[0]
    assert_close(session(**arrays)["sample"], wanted, rel_l2=1e-5, label=f"{height} x {width}")


@pytest.mark.parametrize(("height", "width"), SIDES)
@pytest.mark.parametrize("library", [UNet2DConditionModel, plain.UNet2DConditionModel])
def test_what_is_captured_computes_what_diffusers_does(library: Any, height: int, width: int) -> None:
    module = unet(library)
    arrays = inputs(module, height, width)
    with torch.no_grad():
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        wanted = module.source(**tensors, return_dict=False)[0]
    found = run_eager(module.eager, module.spec.inputs, module.spec.outputs, arrays)
    assert_close(found["sample"], wanted, rel_l2=1e-6)


def test_the_library_and_the_plain_model_are_captured_as_the_same_graph() -> None:
    ours, theirs = (operators(library) for library in (plain.UNet2DConditionModel, UNet2DConditionModel))
    assert ours == theirs
    assert ours["aten.upsample_nearest2d.vec"] == 3


def test_the_model_that_was_wrapped_is_left_as_it_was() -> None:
    model = unet(UNet2DConditionModel).source
    assert model.num_upsamplers == 3
    assert type(model.up_blocks[0].upsamplers[0]).__name__ == "Upsample2D"


def test_verified_where_every_level_is_odd() -> None:
    sizes = verification_sizes(module_spec("unet", MODEL), MODEL)
    assert [(each["height"], each["width"]) for each in sizes] == [(16, 17), (17, 33)]


@pytest.mark.parametrize(
    ("changes", "taken"),
    [
        ({}, True),
        ({"downsample_padding": 1}, True),
        ({"downsample_padding": 0}, False),
        ({"down_block_types": ("AttnDownBlock2D",)}, False),
        ({"up_block_types": ("ResnetUpsampleBlock2D",)}, False),
        ({"down_block_types": (), "up_block_types": ()}, False),
    ],
)
def test_which_unets_take_any_sides(changes: dict[str, Any], taken: bool) -> None:
    blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("CrossAttnUpBlock2D",)}
    assert takes_any_sides({**blocks, **changes}) is taken


def test_sizes_by_default_are_the_checkpoints_own(tiny_checkpoint: Path) -> None:
    source = load_checkpoint(tiny_checkpoint)
    source.configs["unet"]["sample_size"] = (9, 14)
    model = with_any_sides(source, source.spec)
    assert (model.default_height, model.default_width) == (9 * 4, 14 * 4)
    assert (model.size_multiple, model.shortest_side) == (4, 2 * source.spec.size_multiple)


def test_approximations_and_tensorrt_keep_whole_multiples(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """What is built for them has features that fit each level."""
    multiple = load_checkpoint(tiny_checkpoint).spec.size_multiple
    for index, (options, wanted) in enumerate(
        (
            ({}, 4),
            ({"token_merging": 0.5}, multiple),
            ({"deep_cache": 0}, multiple),
        )
    ):
        path = tmp_path / f"{index}.fd"
        with targets_of({}):  # PyTorch's modules, which cost no capture
            build_engine(tiny_checkpoint, path, target="torch", **options)  # type: ignore[arg-type]
        assert open_engine(path).manifest.model.size_multiple == wanted
    assert not getattr(get_target("tensorrt"), "ANY_SIDES", False)


def test_a_size_that_cannot_be(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="height is 30: it must be a multiple of 4 and at least 16; try 28"):
        build_engine(tiny_checkpoint, tmp_path / "no.fd", target="torch", height=30)
    with pytest.raises(InputError, match="width is 12: it must be a multiple of 4 and at least 16; try 16"):
        build_engine(tiny_checkpoint, tmp_path / "no.fd", target="torch", width=12)


def test_a_lora_of_the_upsamplers(session: Any) -> None:
    """Its branch sees the same part of the enlarged picture as the layer."""
    module = unet(UNet2DConditionModel)
    rng = np.random.default_rng(3)
    updates = {}
    for path, shape in session.adaptable().items():
        if "upsamplers" in path:
            down = rng.standard_normal((2, *shape[1:])).astype(np.float32)
            updates[path] = [LowRank(down, rng.standard_normal((shape[0], 2)).astype(np.float32), 0.05)]
    assert len(updates) == 3
    arrays = inputs(module, 17, 23)
    plain_result = session(**arrays)["sample"]
    session.set_adapters(updates)
    found = session(**arrays)["sample"]
    session.set_adapters({})
    assert np.array_equal(session(**arrays)["sample"], plain_result)
    merged = copy.deepcopy(module.source)
    with torch.no_grad():
        for path, (update,) in updates.items():
            merged.get_submodule(path).weight += torch.from_numpy(update.matrix())
        wanted = merged(**{name: torch.from_numpy(array) for name, array in arrays.items()})[0]
    assert_close(found, wanted, rel_l2=1e-5)
    assert np.linalg.norm(found - plain_result) > 0.01 * np.linalg.norm(plain_result)
