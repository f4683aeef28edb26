"""What happens to the ONNX of a CUDA module between export and file: ONNX Runtime's transformer optimiser.

Of its fusions these find something in our form: residual sums with the layer norm or group norm that follows
(SkipLayerNormalization, SkipGroupNorm), bias and residual in one kernel (BiasAdd), convolutions on
channels-last pictures (NhwcConv). Its group norm is turned off: it also takes groups that the provider's
kernel cannot compute, and ``contrib.py`` has written all others already.
"""

from __future__ import annotations

import contextlib
import io
from collections import Counter
from pathlib import Path
from typing import Any

from fastdiff.errors import CaptureError

__all__ = ["FUSED", "optimise"]

FUSED = (
    "BiasAdd",
    "BiasGelu",
    "BiasSplitGelu",
    "GroupNorm",
    "MultiHeadAttention",
    "NhwcConv",
    "QuickGelu",
    "SkipGroupNorm",
    "SkipLayerNormalization",
)
"""Operators whose number an engine records."""

_TYPES = {"text_encoder": "clip", "unet": "unet", "vae_decoder": "vae", "vae_encoder": "vae"}
"""The optimiser's names for the kinds of models."""


_OTHERWISE = (
    "ArgMax",
    "Constant",
    "ConstantOfShape",
    "Equal",
    "LessOrEqual",
    "Not",
    "Range",
    "Shape",
    "Where",
)
"""Operators whose result has another type than their first input, or none."""


def optimise(source: Path, name: str, path: Path, external: bool) -> dict[str, int]:
    """Optimise the model ``source`` of the module ``name`` into ``path``; the number of nodes of each FUSED.

    ``external`` puts the weights into a file of their own, named like ``path`` with ``.data`` at its end.
    Raises CaptureError when the optimiser fails.
    """
    from onnxruntime.transformers.fusion_options import (  # type: ignore[import-untyped, unused-ignore]
        FusionOptions,
    )
    from onnxruntime.transformers.optimizer import (  # type: ignore[import-untyped, unused-ignore]
        optimize_model,
    )

    kind = next((value for key, value in _TYPES.items() if name.startswith(key)), "unet")
    options = FusionOptions(kind)
    options.enable_group_norm = False
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # it draws a progress bar of its own
            optimised = optimize_model(
                str(source), kind, opt_level=0, optimization_options=options, use_gpu=True
            )
    except Exception as error:  # whatever a pattern trips over
        reason = " ".join(str(error).split())[:200]
        raise CaptureError(f"ONNX Runtime's optimiser fails on {name}: {reason}") from error
    _drop_casts_to_the_same_type(optimised)
    _move_biases_into_split_gelus(optimised)
    optimised.prune_graph()
    optimised.topological_sort()
    optimised.save_model_to_file(str(path), use_external_data_format=external)
    counts = Counter(node.op_type for node in optimised.model.graph.node)
    return {operator: counts[operator] for operator in FUSED if counts[operator]}


def _drop_casts_to_the_same_type(optimised: Any) -> None:
    """Remove casts of what has that type already.

    The optimiser puts one in front of every convolution whose picture's type it does not know.
    """
    made_by = optimised.output_name_to_node()
    outputs = {output.name for output in optimised.model.graph.output}
    known = {item.name: item.data_type for item in optimised.model.graph.initializer}
    known |= {item.name: item.type.tensor_type.elem_type for item in optimised.model.graph.input}
    dropped = []
    for cast in optimised.get_nodes_by_op_type("Cast"):
        (to,) = [attribute.i for attribute in cast.attribute if attribute.name == "to"]
        if _type(cast.input[0], known, made_by) == to and cast.output[0] not in outputs:
            optimised.replace_input_of_all_nodes(cast.output[0], cast.input[0])
            dropped.append(cast)
    optimised.remove_nodes(dropped)


def _type(name: str, known: dict[str, int], made_by: dict[str, Any]) -> int | None:
    """ONNX's number of the floating type of a value, None for what cannot be said.

    Operators give the type of their first input, but those of _OTHERWISE.
    """
    chain = []
    while name not in known:
        node = made_by.get(name)
        if node is None or node.op_type in _OTHERWISE:
            return None
        chain.append(name)
        if node.op_type == "Cast":
            known[name] = next(attribute.i for attribute in node.attribute if attribute.name == "to")
        else:
            name = node.input[0]
    for passed in chain:
        known[passed] = known[name]
    return known[name]


def _move_biases_into_split_gelus(optimised: Any) -> None:
    """Let BiasSplitGelu, written with zeros, add the bias that an Add in front of it adds."""
    made_by, users = optimised.output_name_to_node(), optimised.input_name_to_nodes()
    for gelu in optimised.get_nodes_by_op_type("BiasSplitGelu"):
        add = made_by.get(gelu.input[0])
        if add is None or add.op_type != "Add" or len(users[add.output[0]]) != 1:
            continue
        biases = [name for name in add.input if _is_vector(optimised, name)]
        if len(biases) == 1:
            (rest,) = [name for name in add.input if name != biases[0]]
            gelu.input[:] = [rest, biases[0]]
            optimised.remove_node(add)


def _is_vector(optimised: Any, name: str) -> bool:
    initializer = optimised.get_initializer(name)
    return initializer is not None and len(initializer.dims) == 1
