"""ExportedProgram to ONNX: standard operators only, symbolic sizes kept, checked.

In fp16 the file is strongly typed: weights and arithmetic are halves but where ``passes/halves.py`` keeps
float32, every change of type is a ``Cast``, and inputs and outputs are what they are in fp32.

ONNX names must be unique in a graph, so an output that is called like an input (``sample`` of the U-Net) is
called ``out_sample`` in the file; sessions go by position.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from fastdiff.build.capture import CapturedModule
from fastdiff.build.passes import halves, plain_attention, plain_token_merging
from fastdiff.build.weights import quiet
from fastdiff.config import Precision
from fastdiff.errors import CaptureError

__all__ = [
    "EXTERNAL_DATA_LIMIT",
    "OPSET",
    "export_onnx",
    "needs_external_data",
    "onnx_output_names",
    "write_onnx",
]

OPSET = 20
"""Newest operator set that torch.onnx exports to without a version conversion and both consumers know."""

EXTERNAL_DATA_LIMIT = 2**31 - 2**24
"""Bytes of weights from which they go into a file of their own: a protobuf message ends at 2 GB. 16 MB are
left for the graph."""


def onnx_output_names(module: CapturedModule) -> list[str]:
    """Names of the outputs in the file."""
    inputs = {tensor.name for tensor in module.spec.inputs}
    return [f"out_{out.name}" if out.name in inputs else out.name for out in module.spec.outputs]


def needs_external_data(weight_bytes: int) -> bool:
    """Whether weights of this size do not fit into the ONNX file itself."""
    return weight_bytes >= EXTERNAL_DATA_LIMIT


def weight_bytes(program: ExportedProgram) -> int:
    """Size in bytes of the parameters, buffers and constants of a captured graph."""
    tensors = (*program.state_dict.values(), *program.constants.values())
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors if isinstance(tensor, Tensor))


def export_onnx(
    module: CapturedModule, path: Path, precision: Precision = Precision.FP32
) -> tuple[Path, ...]:
    """Write a captured module as ONNX to ``path``, computing in fp32 or fp16.

    Returns the files written, the model first. Raises CaptureError when an operator has no ONNX form (in
    bf16, ``Conv`` of this operator set), when a weight is out of the precision's range or when the result
    does not pass onnx's checker.
    """
    if precision not in (Precision.FP32, Precision.FP16):
        raise CaptureError(f"{module.name} cannot be written as ONNX in {precision.value}: use fp32 or fp16")
    if module.program is None:
        raise CaptureError(f"{module.name} has not been captured")
    if precision is Precision.FP16:
        module = module.with_program(halves(plain_attention(plain_token_merging(module.program))))
    return write_onnx(module, path)


def write_onnx(
    module: CapturedModule, path: Path, translations: Mapping[Any, Any] | None = None, domain: str = ""
) -> tuple[Path, ...]:
    """Write the graph of ``module`` as it is; otherwise as ``export_onnx``.

    ``translations`` are functions of onnxscript by the operators that they translate; the operators of
    ``domain`` that these give are allowed beside the standard ones.
    """
    import onnx

    assert module.program is not None
    module = module.with_program(plain_token_merging(module.program))
    assert module.program is not None
    external = needs_external_data(weight_bytes(module.program))
    try:
        with quiet(), torch.no_grad():
            program: Any = torch.onnx.export(
                module.program,
                dynamo=True,
                input_names=[tensor.name for tensor in module.spec.inputs],
                output_names=onnx_output_names(module),
                opset_version=OPSET,
                optimize=True,
                external_data=external,
                verbose=False,
                custom_translation_table=dict(translations or {}),
            )
    except Exception as error:  # the exporter raises many types of its own
        reason = " ".join(str(error).split())[:300]
        raise CaptureError(f"{module.name} cannot be written as ONNX: {reason}") from error
    _drop_metadata(program.model)
    program.save(str(path), external_data=external)
    data = path.with_name(path.name + ".data")
    files = (path, data) if data.is_file() else (path,)
    try:
        onnx.checker.check_model(str(path))
    except onnx.checker.ValidationError as error:
        raise CaptureError(
            f"{module.name} is not valid ONNX: {' '.join(str(error).split())[:300]}"
        ) from error
    model = onnx.load(str(path), load_external_data=False)
    allowed = ("", "ai.onnx", domain)
    if foreign := sorted({node.domain for node in model.graph.node if node.domain not in allowed}):
        raise CaptureError(
            f"{module.name} needs ONNX operators of {', '.join(foreign)}: only standard ones are used"
        )
    return files


def _drop_metadata(model: Any) -> None:
    """Remove what the exporter notes for debugging: stack traces, with paths of this machine, per node."""
    model.metadata_props.clear()
    for graph in model.graphs():
        graph.metadata_props.clear()
        for value in (*graph.inputs, *graph.initializers.values()):
            value.metadata_props.clear()
        for node in graph:
            node.metadata_props.clear()
            for value in node.outputs:
                value.metadata_props.clear()
