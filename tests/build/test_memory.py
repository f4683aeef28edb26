"""What a build holds in memory, stage by stage: one copy of the weights, and what a compiler needs for itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.build_memory import BuildMemory, build_in_process
from tests.checkpoints import make_checkpoint, read_json, write_json
from tests.random_weights import fp32_bytes, write_checkpoint

UNET = {"block_out_channels": [384, 768], "attention_head_dim": 8, "norm_num_groups": 32}
"""240 MB, most of it in the layers of 768 channels, as in the U-Nets whose structure it has."""


@pytest.fixture(scope="module")
def wide(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    files = {
        path.relative_to(tiny_checkpoint).as_posix(): read_json(path)
        for path in tiny_checkpoint.rglob("*.json")
        if "tokenizer" not in path.parts
    }
    files["unet/config.json"] |= UNET
    return write_checkpoint(tmp_path_factory.mktemp("wide") / "checkpoint", files)


def test_native(wide: Path) -> None:
    from tests.checkpoints import make_checkpoint
    found = build_in_process(wide, wide.with_name("n.fd"), Path("/tmp/mem/tiny"), target="native", modules=["unet"], tune=False)
    weights = fp32_bytes(wide)
    print(weights/1e6, found.base, found.errors, found.bytes, found.seconds)
    for s in found.stages:
        p = found.above_base(s); print(s, p.resident/weights, p.anonymous/weights)
    assert 0
