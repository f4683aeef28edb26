"""What the tests of the fusing passes share: run a graph before and after, and count its operators."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram

from fastdiff.build.capture import CapturedModule
from fastdiff.build.modules import random_inputs
from fastdiff.build.passes.normalise import normalise
from tests.compare import assert_close

Pass = Callable[[ExportedProgram], ExportedProgram]


def operators(program: ExportedProgram) -> Counter[str]:
    return Counter(str(node.target) for node in program.graph.nodes if node.op == "call_function")


def tensor_operators(program: ExportedProgram) -> dict[str, int]:
    """Operators on tensors by name, without library, overload and those that compute sizes."""
    counts: Counter[str] = Counter()
    for name, count in operators(program).items():
        library, _, rest = name.partition(".")
        if library in ("aten", "fastdiff") and not rest.startswith("sym_size"):
            counts[f"{library}.{rest.partition('.')[0]}"] += count
    return dict(counts)


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
    function: Callable[..., Any], rewrite: Pass, *inputs: Tensor
) -> tuple[Counter[str], ExportedProgram]:
    """Export ``function(module, *inputs)``, rewrite, compare at three times the batch; pictures also larger.

    Pictures, the inputs with four axes, have symbolic sides and are compared at sides other than exported.
    """

    class Function(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.q, self.k, self.v = (nn.Linear(12, 12) for _ in range(3))
            self.norm = nn.GroupNorm(3, 12)
            self.conv, self.point = nn.Conv2d(12, 12, 3, padding=1), nn.Conv2d(12, 12, 1)
            self.wide = nn.Linear(12, 24)

        def forward(self, *inputs: Tensor) -> Any:
            return function(self, *inputs)

    sides = {2: Dim("height", min=6), 3: Dim("width", min=6)}
    dynamic = tuple({0: Dim("batch"), **(sides if x.dim() == 4 else {})} for x in inputs)
    before = torch.export.export(Function().eval(), inputs, dynamic_shapes=(dynamic,))
    after = rewrite(before)
    larger = [torch.cat([x] * 3) for x in inputs]
    larger = [torch.cat([x, x.flip(2, 3)[:, :, :1]], 2) if x.dim() == 4 else x for x in larger]
    compare(before, after, *larger, rel_l2=1e-6)
    return operators(after), after


def compare(before: ExportedProgram, after: ExportedProgram, *inputs: Tensor, rel_l2: float) -> None:
    with torch.no_grad():
        wanted, found = before.module()(*inputs), after.module()(*inputs)
    pairs = [(wanted, found)] if isinstance(wanted, Tensor) else list(zip(wanted, found, strict=True))
    for index, (w, f) in enumerate(pairs):
        assert_close(f, w, rel_l2=rel_l2, label=f"output {index}")


def values(program: ExportedProgram, *inputs: Tensor) -> dict[fx.Node, Any]:
    """What every node of ``program.graph`` computes for these inputs."""
    found: dict[fx.Node, Any] = {}

    class Recorder(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            found[n] = super().run_node(n)
            return found[n]

    stored = {**program.state_dict, **program.constants}
    given = iter(inputs)
    specs = program.graph_signature.input_specs
    with torch.no_grad():
        Recorder(program.graph_module).run(*(stored[s.target] if s.target else next(given) for s in specs))
    return found
