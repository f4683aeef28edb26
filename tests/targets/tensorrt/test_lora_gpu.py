"""LoRAs on TensorRT itself: that weights are found in its plans, merged, replaced and put back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fastdiff.build.build import build_engine
from fastdiff.build.modules import module_spec, random_inputs
from fastdiff.engine_dir import open_engine
from fastdiff.targets.tensorrt import availability
from tests.compare import assert_close, relative_l2
from tests.lora.made_up import layers_of, random_updates
from tests.targets.tensorrt.test_lora import MODULES, expected, part

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not availability().ok, reason=f"no TensorRT: {availability().reason}"),
]


@pytest.fixture(scope="module")
def engine(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("tensorrt") / "lora.fd"
    options = {"target": "tensorrt", "precision": "fp16", "modules": MODULES}
    return build_engine(tiny_checkpoint, output, refit=True, **options).path  # type: ignore[arg-type]


@pytest.mark.parametrize("name", MODULES)
def test_gpu_one_then_another_then_none(engine: Path, tiny_checkpoint: Path, name: str) -> None:
    """Of every layer: the plan has all of them under the names of the file."""
    opened = open_engine(engine)
    sizes = {"batch": 2, "tokens": 77, "height": 8, "width": 8}
    spec = module_spec(name, opened.manifest.model)
    given = random_inputs(spec, {key: sizes[key] for key in spec.shapes}, seed=3, vocab_size=100)
    output = "sample" if name == "unet" else "last_hidden_state"
    with opened.open_module(name) as session:
        shapes = session.adaptable()
        assert dict(shapes) == layers_of(part(tiny_checkpoint, name))
        plain = [session(**given)[output] for _ in range(3)][-1]
        for seed in (1, 2):
            updates = random_updates(shapes, 4, seed, size=0.3)
            session.set_adapters({path: [update] for path, update in updates.items()})
            wanted = expected(tiny_checkpoint, name, [updates], given)[output]
            for _ in range(3):  # an ordinary run, a captured one, a replay
                found = session(**given)[output]
                assert_close(found, wanted, rel_l2=1e-2, label=name)
                assert relative_l2(found, plain) > 0.1
        session.set_adapters({})
        for _ in range(3):
            assert np.array_equal(session(**given)[output], plain)
