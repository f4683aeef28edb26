"""The models of tests/published.py as graphs of the cuda target, on the CPU."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fastdiff.build.capture import run_eager
from fastdiff.build.modules import random_inputs
from fastdiff.config import Precision
from fastdiff.targets.cuda.choices import Choices
from fastdiff.targets.cuda.compiler import load_weights, run, weight_dtypes, with_layers
from fastdiff.targets.cuda.executor import Choose, Executor
from fastdiff.targets.cuda.types import value_dtypes
from fastdiff.targets.graph import Graph
from tests.targets.native.models import MODELS, VOCABULARY, lowered, model, sizes_of

__all__ = [
    "CPU",
    "MODELS",
    "VOCABULARY",
    "arrays_of",
    "executor_of",
    "expected",
    "graph_of",
    "lowered",
    "model",
    "outputs",
    "sizes_of",
]

CPU = torch.device("cpu")


@cache
def graph_of(name: str) -> Graph:
    """A model's graph with its layers' weights."""
    return with_layers(lowered(name))


def executor_of(
    graph: Graph, precision: Precision = Precision.FP32, choose: Choose | None = None
) -> Executor:
    """A graph that runs on the CPU by PyTorch's own implementations, or as ``choose`` says."""
    dtypes = value_dtypes(graph, precision)
    return Executor(
        graph, load_weights(graph, weight_dtypes(graph, dtypes), CPU), dtypes, choose or Choices()
    )


def arrays_of(name: str, step: int = 1) -> dict[str, NDArray[Any]]:
    """Random inputs of a model at one of several sizes."""
    module = model(name)
    return random_inputs(module.spec, sizes_of(module, step), step, VOCABULARY)


def expected(name: str, arrays: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """What the library's own module computes in float32."""
    module = model(name)
    return run_eager(module.eager, module.spec.inputs, module.spec.outputs, arrays)


def outputs(executor: Executor, name: str, arrays: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """What an executor computes, as float32 arrays by name."""
    values = run(executor, model(name).spec, arrays)
    graph = executor.graph
    return {graph.values[v].name: np.asarray(values[v].float().cpu()) for v in graph.outputs}
