"""Floating-point operations of a module, counted by PyTorch on the meta device: nothing is computed."""

from __future__ import annotations

from pathlib import Path

from fastdiff.bench.case import Case
from fastdiff.bench.parts import meta_part
from fastdiff.config import ModelSpec

__all__ = ["count_flops"]


def count_flops(folder: Path, module: str, model: ModelSpec, case: Case) -> int:
    """Multiplications and additions of the module's convolutions, matrix products and attention in one call.

    What the direct algorithms need: a Winograd convolution does fewer and shows as more per second.
    """
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    from fastdiff.build.modules import module_spec, module_wrapper

    spec = module_spec(module, model)
    eager = module_wrapper(module, meta_part(folder, spec.part))
    sizes = case.sizes(model)
    inputs = []
    for tensor in spec.inputs:
        shape = tensor.concrete(sizes)
        inputs.append(torch.empty(shape, dtype=getattr(torch, tensor.dtype), device="meta"))
    # as two matrix products, which the counter knows on every version
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        eager(*inputs)
    return int(counter.get_total_flops())
