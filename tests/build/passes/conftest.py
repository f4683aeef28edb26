"""What the tests of the fusing passes share: run a graph before and after, and count its operators."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from fastdiff.build.capture import CapturedModule
from fastdiff.build.modules import random_inputs
from fastdiff.build.passes.normalise import normalise
from tests.compare import assert_close

Pass = Callable[[ExportedProgram], ExportedProgram]


def operators(program: ExportedProgram) -> Counter[str]:
    return Counter(str(node.target) for node in program.graph.nodes if node.op == "call_function")


def fused_module(module: CapturedModule, rewrite: Pass, vocab_size: int = 1) -> Counter[str]:
    """Normalise a captured module, rewrite it, compare at a size it was not captured at, count operators."""
    assert module.program is not None
    after = rewrite(normalise(module.program))
    least = {"batch": 3, "tokens": 5, "height": 4, "width": 6}
    sizes = {symbol: least[symbol] * size.multiple_of for symbol, size in module.spec.shapes.items()}
    arrays = random_inputs(module.spec, sizes, seed=1, vocab_size=vocab_size)
    arguments = [torch.from_numpy(arrays[tensor.name]) for tensor in module.spec.inputs]
    compare(module.program, after, *arguments, rel_l2=5e-6)
    return operators(after)


def fused_function(
    function: Callable[..., Tensor], rewrite: Pass, *inputs: Tensor
) -> tuple[Counter[str], ExportedProgram]:
    """Export ``function(module, *inputs)``, rewrite, compare at three times the batch."""

    class Function(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.q, self.k, self.v = (nn.Linear(12, 12) for _ in range(3))
            self.norm = nn.GroupNorm(3, 12)

        def forward(self, *inputs: Tensor) -> Tensor:
            return function(self, *inputs)

    dynamic = tuple({0: Dim("batch")} for _ in inputs)
    before = torch.export.export(Function().eval(), inputs, dynamic_shapes=(dynamic,))
    after = rewrite(before)
    compare(before, after, *(torch.cat([x] * 3) for x in inputs), rel_l2=1e-6)
    return operators(after), after


def compare(before: ExportedProgram, after: ExportedProgram, *inputs: Tensor, rel_l2: float) -> None:
    with torch.no_grad():
        wanted, found = before.module()(*inputs), after.module()(*inputs)
    pairs = [(wanted, found)] if isinstance(wanted, Tensor) else list(zip(wanted, found, strict=True))
    for index, (w, f) in enumerate(pairs):
        assert_close(f, w, rel_l2=rel_l2, label=f"output {index}")
