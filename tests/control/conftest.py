"""A tiny checkpoint with everything that can control its U-Net, built once for each target."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import fastdiff
from fastdiff.build import build
from fastdiff.build.capture import CapturedModule
from fastdiff.targets.native import compiler
from tests.controls import make_controlnet, make_image_encoder, make_ip_adapter, make_t2i_adapter


@dataclass(frozen=True)
class Sources:
    """Where the parts of an engine come from: two ControlNets, the second for pooled residuals and pictures
    in the order blue, green, red; two T2I-Adapters, the second for grey pictures; an IP-Adapter."""

    checkpoint: Path
    controlnets: tuple[Path, ...]
    t2i_adapters: tuple[Path, ...]
    ip_adapter: Path
    image_encoder: Path

    def options(self) -> dict[str, Any]:
        """Arguments of ``build_engine`` and ``add_control``."""
        names = ("controlnets", "t2i_adapters", "ip_adapter", "image_encoder")
        return {name: getattr(self, name) for name in names}


@pytest.fixture(scope="session")
def sources(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Sources:
    folder = tmp_path_factory.mktemp("control")
    order = {"global_pool_conditions": True, "controlnet_conditioning_channel_order": "bgr"}
    return Sources(
        tiny_checkpoint,
        (
            make_controlnet(folder / "edges", tiny_checkpoint),
            make_controlnet(folder / "shuffle", tiny_checkpoint, seed=9, **order),
        ),
        (
            make_t2i_adapter(folder / "depth"),
            make_t2i_adapter(folder / "sketch", seed=8, in_channels=1),
        ),
        make_ip_adapter(folder / "ip-adapter.safetensors", tiny_checkpoint),
        make_image_encoder(folder / "image_encoder"),
    )


@pytest.fixture(scope="session")
def captures() -> dict[str, CapturedModule]:
    """Graphs of the modules, captured once for all targets."""
    return {}


def build_control(
    checkpoint: Path,
    output: Path,
    target: str,
    captures: dict[str, CapturedModule],
    **options: Any,
) -> fastdiff.Pipeline:
    """An engine with control. Times of layers on the native target are made up, as in tests/builds.py."""

    def made_up(work: object, algorithm: str) -> float:
        return (1 + zlib.crc32(f"{work} {algorithm}".encode()) % 1000) * 1e-6

    def capture(module: CapturedModule) -> CapturedModule:
        if module.name not in captures:
            captures[module.name] = original(module)
        program = captures[module.name].program
        assert program is not None
        return module.with_program(program)

    original = build.capture
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiler, "_measure", lambda options: made_up)
        patch.setattr(build, "capture", capture)
        summary = build.build_engine(checkpoint, output, target=target, **options)
    assert max(module.relative_l2 for module in summary.modules) < 2e-6
    return fastdiff.load(output, threads=1)


@pytest.fixture(scope="session")
def native(
    sources: Sources, captures: dict[str, CapturedModule], tmp_path_factory: pytest.TempPathFactory
) -> fastdiff.Pipeline:
    output = tmp_path_factory.mktemp("native") / "control.fd"
    return build_control(sources.checkpoint, output, "native", captures, **sources.options())
