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
from torch import Tensor, nn
from torch.export import ExportedProgram

from fastdiff.build.capture import CapturedModule
from fastdiff.build.onnx_simplify import simplify
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

EXTERNAL_DATA_LIMIT = 1 << 28
"""Bytes of weights from which they go into a file of their own. There they can be mapped; those in the model
are copied several times while it is written and read, and a protobuf message ends at 2 GB."""


def onnx_output_names(module: CapturedModule) -> list[str]:
    """Names of the outputs in the file."""
    inputs = {tensor.name for tensor in module.spec.inputs}
    return [f"out_{out.name}" if out.name in inputs else out.name for out in module.spec.outputs]


def needs_external_data(weight_bytes: int) -> bool:
    """Whether weights of this size lie beside the ONNX file."""
    return weight_bytes >= EXTERNAL_DATA_LIMIT


def weight_bytes(program: ExportedProgram) -> int:
    """Size in bytes of the parameters, buffers and constants of a captured graph."""
    tensors = (*program.state_dict.values(), *program.constants.values())
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors if isinstance(tensor, Tensor))


def export_onnx(
    module: CapturedModule,
    path: Path,
    precision: Precision = Precision.FP32,
    translations: Mapping[Any, Any] | None = None,
) -> tuple[Path, ...]:
    """Write a captured module as ONNX to ``path``, computing in fp32 or fp16; ``translations`` as for
    ``write_onnx``.

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
    return write_onnx(module, path, translations)


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
    exported, own = _aliased(module.program)
    try:
        with quiet(), torch.no_grad():
            program: Any = torch.onnx.export(
                exported,
                dynamo=True,
                input_names=[tensor.name for tensor in module.spec.inputs],
                output_names=onnx_output_names(module),
                opset_version=OPSET,
                optimize=False,
                external_data=external,
                verbose=False,
                custom_translation_table=dict(translations or {}),
            )
            simplify(program.model)
    except Exception as error:  # the exporter raises many types of its own
        reason = " ".join(str(error).split())[:300]
        raise CaptureError(f"{module.name} cannot be written as ONNX: {reason}") from error
    _drop_metadata(program.model)
    program.save(str(path), external_data=external)
    _drop_weights(program.model, own)
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


def _aliased(program: ExportedProgram) -> tuple[ExportedProgram, list[Tensor]]:
    """The program over tensors of its own, in the memory of its weights, and those tensors.

    The exporter keeps the graph that it made last as long as the process lives (rules of its optimiser
    remember a node). Tensors of its own can be emptied, so that the module's weights do not stay with it.
    """
    own: list[Tensor] = []

    def alias(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        same = value.detach()
        own.append(nn.Parameter(same, requires_grad=False) if isinstance(value, nn.Parameter) else same)
        return own[-1]

    return ExportedProgram(
        root=program.graph_module,
        graph=program.graph,
        graph_signature=program.graph_signature,
        state_dict={name: alias(value) for name, value in program.state_dict.items()},
        range_constraints=program.range_constraints,
        module_call_graph=program.module_call_graph,
        example_inputs=program.example_inputs,
        constants={name: alias(value) for name, value in program.constants.items()},
        verifiers=program.verifiers,
    ), own


def _drop_weights(model: Any, own: list[Tensor]) -> None:
    """Empty a model that has been written: the tensors of its program, and what was computed of them."""
    for tensor in own:
        tensor.data = torch.empty(0, dtype=tensor.dtype)
    for graph in model.graphs():
        for value in graph.initializers.values():
            value.const_value = None


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
