"""What a build refers to once a module is compiled: nothing of it may be left when an engine opens."""

from __future__ import annotations

import weakref
from pathlib import Path

import pytest

from fastdiff.build.build import captured_module
from fastdiff.build.checkpoint import load_checkpoint
from fastdiff.build.memory import release
from fastdiff.build.modules import module_spec
from fastdiff.targets import CompileOptions, get_target


@pytest.mark.parametrize("target", ["native", "onnxruntime", "torch"])
def test_a_compiled_module_s_weights_go_with_it(tiny_checkpoint: Path, tmp_path: Path, target: str) -> None:
    """Libraries keep what they made last; that must not hold the weights that it was made of."""
    source = load_checkpoint(tiny_checkpoint)
    spec = module_spec("text_encoder", source.spec)
    module = captured_module(source, spec, get_target(target).NEEDS_GRAPH, lambda stage: None)
    weights = [weakref.ref(parameter.untyped_storage()) for parameter in module.eager.parameters()]
    get_target(target).compile(module, tmp_path, CompileOptions())
    assert all(weight() is not None for weight in weights)
    del module
    release()
    assert [weight() for weight in weights if weight() is not None] == []
