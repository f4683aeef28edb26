"""Lowering: a native graph, interpreted, gives what PyTorch gives for every model; errors name the node."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastdiff.build.capture import CapturedModule, capture, run_eager
from fastdiff.build.lower.lowering import LOWERINGS, Lowered, lower
from fastdiff.build.lower.symbols import Symbols
from fastdiff.build.modules import ModuleSpec, random_inputs
from fastdiff.build.passes import run_passes
from fastdiff.config import SizeRange, TensorSpec
from fastdiff.errors import CaptureError
from fastdiff.targets.graph import Dim
from fastdiff.targets.native.file import write
from tests.compare import assert_close
from tests.published import fused
from tests.targets.native.interpreter import interpret
from tests.targets.native.models import MODELS, VOCABULARY, model, sizes_of
from tests.targets.native.models import lowered as lowered_model

aten, fastdiff = torch.ops.aten, torch.ops.fastdiff
Forward = Callable[..., Any]


@pytest.mark.parametrize("name", MODELS)
def test_models(name: str) -> None:
    module, lowered = model(name), lowered_model(name)
    for step in range(2):
        sizes = sizes_of(module, step)
        arrays = random_inputs(module.spec, sizes, seed=step, vocab_size=VOCABULARY)
        wanted = run_eager(module.eager, module.spec.inputs, module.spec.outputs, arrays)
        found = interpret(lowered, arrays, sizes)
        assert set(found) == set(wanted)
        for output, value in wanted.items():
            assert_close(found[output], value, rel_l2=5e-6, label=f"{output} at {sizes}")


def test_operators_of_a_unet() -> None:
    """No node is left that a pass should have taken into another."""
    lowered = lowered_model("sd15")
    ops = Counter(node.op for node in lowered.graph.nodes)
    assert ops["permute"] == 2, "one at the input, one at the output"
    assert not ops.keys() & {"add", "silu", "gelu", "geglu", "multiply", "upsample_nearest2d", "expand"}
    assert ops["timestep_embedding"] == 1
    assert ops["conv2d"] + ops["linear"] == len(lowered.layers)


def test_stages_of_a_unet() -> None:
    nodes = lowered_model("sd15").graph.nodes
    stages = Counter((node.stage, node.op) for node in nodes)
    assert {op for stage, op in stages if stage == "prompt"} <= {"linear", "slice", "reshape"}
    assert stages["prompt", "linear"] > 0
    assert stages["schedule", "timestep_embedding"] == 1
    assert all(node.stage == "step" for node in nodes if node.op in ("conv2d", "attention"))


def test_nodes_carry_the_path_of_their_module() -> None:
    nodes = lowered_model("sd15").graph.nodes
    assert "model.down_blocks.0.resnets.1.conv1" in {node.path for node in nodes if node.op == "conv2d"}


def test_graph_can_be_written(tmp_path: Any) -> None:
    """All that lowering makes is something that the file can hold, but for the packings."""
    for name in ("sd15", "clip_gelu"):
        lowered = lowered_model(name)
        write(tmp_path / name, lowered.graph)
        assert (tmp_path / name).stat().st_size > sum(w.nbytes for w in lowered.graph.weights)


BATCH = {"batch": SizeRange(), "tokens": SizeRange()}
X = TensorSpec("x", "float32", ("batch", "tokens", 6))
IDS = TensorSpec("ids", "int64", ("batch", "tokens"))
PICTURE = TensorSpec("x", "float32", ("batch", "2*height", "width", 6))
SIDES = {"batch": SizeRange(), "height": SizeRange(4, None, 4), "width": SizeRange(4, None, 2)}


def captured(
    forward: Forward, inputs: tuple[TensorSpec, ...] = (X,), shapes: dict[str, SizeRange] | None = None
) -> CapturedModule:
    """``forward(weights, *inputs)`` as a module that was captured, but not fused."""

    class Function(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.weight, self.bias = nn.Parameter(torch.randn(6, 6)), nn.Parameter(torch.randn(6))
            self.kernel = nn.Parameter(torch.randn(6, 6, 3, 3))
            self.small = nn.Parameter(torch.randn(6, 6).half())
            self.register_buffer("positions", torch.arange(40)[None])

        def forward(self, x: Tensor, ids: Tensor | None = None) -> Any:
            return forward(self, x) if ids is None else forward(self, x, ids)

    module = Function().eval()
    count = len(_tuple(module(*(_example(tensor) for tensor in inputs))))
    outputs = tuple(TensorSpec(f"y{index}", "float32", ("batch",)) for index in range(count))
    return capture(CapturedModule(ModuleSpec("test", "unet", inputs, outputs, shapes or BATCH), module, None))


def _example(tensor: TensorSpec) -> Tensor:
    shape = [factor * (8 if symbol else 1) for factor, symbol in tensor.factors()]
    return torch.zeros(shape, dtype=getattr(torch, tensor.dtype))


def _tuple(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


def lowered_of(module: CapturedModule) -> Lowered:
    assert module.program is not None
    return lower(module.program, module.spec)


def check(module: CapturedModule) -> Lowered:
    lowered = lowered_of(module)
    for sizes in ({"batch": 3, "tokens": 5, "height": 8, "width": 10}, dict.fromkeys(module.spec.shapes, 4)):
        arrays = random_inputs(module.spec, sizes, seed=1, vocab_size=6)
        wanted = run_eager(module.eager, module.spec.inputs, module.spec.outputs, arrays)
        found = interpret(lowered, arrays, sizes)
        for name, value in wanted.items():
            assert_close(found[name], value, rel_l2=1e-6, label=name)
    return lowered


FUNCTIONS: dict[str, Forward] = {
    "scalars on either side": lambda m, x: (2 + x) * 3 - 1 + (1.5 * x) / 4,
    "alpha of a scalar": lambda m, x: torch.sub(torch.add(x, 2, alpha=3), 1, alpha=0.5),
    "broadcast of a weight": lambda m, x: (x + m.bias) * m.bias / (1 + m.bias.abs()),
    "subtract and divide": lambda m, x: (x - m.bias) / (x * x + 1),
    "chunk": lambda m, x: (lambda a, b, c: a * b - c)(*x.chunk(3, -1)),
    "split of uneven parts": lambda m, x: torch.cat(x.split([1, 3, 2], -1)[::-1], -1),
    "chunk along the first axis that is fixed": lambda m, x: x.reshape(-1, 2, 3).chunk(2, 1)[1],
    "slices": lambda m, x: x[..., 1:5] + x[..., -4:],
    "views": lambda m, x: x.unflatten(-1, (2, 3)).flatten(1, 2).unsqueeze(1).squeeze(1).view(-1, 3),
    "permute": lambda m, x: x.unflatten(-1, (2, 3)).permute(0, 3, 1, 2).transpose(-1, 1),
    "expand": lambda m, x: x[:, :1].expand(-1, 4, -1) + 1,
    "activations": lambda m, x: torch.tanh(torch.relu(x) + torch.sigmoid(x)) + nn.functional.silu(x).exp(),
    "gelu of both kinds": lambda m, x: nn.functional.gelu(x) + nn.functional.gelu(x, approximate="tanh"),
    "roots and angles": lambda m, x: torch.sqrt(x * x + 1) + x.sin() - (-x).cos(),
    "clamp at one side": lambda m, x: x.clamp(min=-0.5) + x.clamp(max=0.25) + x.clamp(-1, 1),
    "layer norm without weights": lambda m, x: nn.functional.layer_norm(x, (6,), eps=1e-3),
    "quick gelu": lambda m, x: fastdiff.quick_gelu(x),
    "linear": lambda m, x: fastdiff.linear(x, m.weight, m.bias, x, "silu", 0.5),
    "linear of a view of a weight": lambda m, x: fastdiff.linear(x, m.kernel[:, :, 1, 1], None),
    "geglu": lambda m, x: fastdiff.linear(x, m.weight, m.bias, None, "geglu") + fastdiff.geglu(x),
    "attention with a wider value": lambda m, x: fastdiff.attention(
        x[..., :2], x[..., 2:4], torch.cat([x, x], -1), 2, 0.3, True
    ),
    "group norm of rows": lambda m, x: fastdiff.group_norm_silu(x, m.bias, None, 3, 1e-4, False, "NHWC"),
    "an input as output, twice": lambda m, x: (x, x + 1, x),
    "one value as two outputs": lambda m, x: (lambda y: (y, y))(x * 2),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions(name: str) -> None:
    check(captured(FUNCTIONS[name]))


PICTURES: dict[str, Forward] = {
    "strided convolution": lambda m, x: fastdiff.conv2d(x, m.kernel, m.bias, None, None, 2, [1, 1, 1, 1]),
    "padding at two sides": lambda m, x: fastdiff.conv2d(x, m.kernel, None, None, None, 2, [0, 1, 0, 1]),
    "everything fused": lambda m, x: fastdiff.conv2d(
        x,
        m.kernel,
        m.bias,
        x[:, :1, :1].flatten(1),
        fastdiff.upsample_nearest2d(x, 2),
        1,
        [1] * 4,
        2,
        "silu",
        0.5,
    ),
    "pooling": lambda m, x: fastdiff.avg_pool2d(x, 2),
    "merged tokens": lambda m, x: (
        lambda rows, plan: fastdiff.token_unmerge(fastdiff.token_merge(rows, plan, 1, 2), plan)
    )(x.flatten(1, 2), fastdiff.token_match(x, 1, 2)),
    "rows of pixels": lambda m, x: x.flatten(1, 2) * 2,
    "a size that is a quotient": lambda m, x: x.reshape(x.shape[0], x.shape[1] // 4, -1),
}


@pytest.mark.parametrize("name", PICTURES)
def test_pictures(name: str) -> None:
    check(captured(PICTURES[name], (PICTURE,), SIDES))


def test_positions() -> None:
    """CLIP's: an embedding of a slice of a constant, as long as the prompt."""

    def forward(m: Any, ids: Tensor) -> Tensor:
        positions = m.positions[:, : ids.shape[1]]
        table = m.weight.repeat(7, 1)
        return nn.functional.embedding(ids, m.weight) + nn.functional.embedding(positions, table)

    lowered = check(captured(forward, (IDS,), {"batch": SizeRange(), "tokens": SizeRange(1, 40)}))
    assert [weight.kind for weight in lowered.graph.weights].count("int64") == 1


SELECTIONS: dict[str, Forward] = {
    "the first of an id": lambda x, ids: x[torch.arange(x.shape[0]), (ids == 3).int().argmax(-1)],
    "the largest id": lambda x, ids: x[torch.arange(x.shape[0]), ids.to(torch.int).argmax(1)] + 1,
}
OTHER_SELECTIONS: dict[str, Forward] = {
    "smaller ids": lambda x, ids: x[torch.arange(x.shape[0]), (ids < 3).int().argmax(-1)],
    "the last of an axis that is kept": lambda x, ids: x[
        torch.arange(x.shape[0]), ids.argmax(-1, keepdim=True)[:, 0]
    ],
    "by values": lambda x, ids: x[torch.arange(x.shape[0]), x.argmax(1)[:, 0]],
    "by ids": lambda x, ids: x[torch.arange(x.shape[0]), ids[:, 0]],
    "of a position that is read elsewhere": lambda x, ids: (
        lambda at: x[torch.arange(x.shape[0]), at] + at[:, None]
    )(ids.argmax(-1)),
    "of one axis": lambda x, ids: x[ids.flatten()],
}


@pytest.mark.parametrize("name", SELECTIONS)
def test_selections(name: str) -> None:
    lowered = check(captured(lambda m, x, ids: SELECTIONS[name](x, ids), (X, IDS)))
    assert "select_token" in {node.op for node in lowered.graph.nodes}


@pytest.mark.parametrize("name", OTHER_SELECTIONS)
def test_other_selections_are_refused(name: str) -> None:
    words = r"test: aten\.(arange|index|argmax)\S* \(node \w+\) cannot be lowered"
    with pytest.raises(CaptureError, match=words):
        lowered_of(captured(lambda m, x, ids: OTHER_SELECTIONS[name](x, ids), (X, IDS)))


def test_constants_are_computed_when_they_are_written() -> None:
    module = captured(lambda m, x: x + (m.weight @ m.weight)[0])
    lowered = lowered_of(module)
    with torch.no_grad():
        module.eager.weight.zero_()  # type: ignore[operator, union-attr]
    arrays = random_inputs(module.spec, {"batch": 2, "tokens": 3}, seed=0)
    assert_close(interpret(lowered, arrays, {"batch": 2, "tokens": 3})["y0"], arrays["x"], max_abs=0)


ERRORS: dict[str, tuple[Forward, str]] = {
    "an op without a kernel": (lambda m, x: torch.cumsum(x, 1), r"aten\.cumsum\.default.*no kernel for it"),
    "an op that was not fused": (lambda m, x: nn.functional.linear(x, m.weight), r"aten\.linear\.default"),
    "a dtype": (lambda m, x: (x > 0) * x, r"aten\.gt.*no kernel"),
    "half precision": (lambda m, x: x.half(), "no kernel"),
    "a half weight": (lambda m, x: x + m.small[0], "float16, wanted float32 or int64"),
    "a computed weight": (
        lambda m, x: fastdiff.linear(x, m.weight + x[:1, :1].flatten(0, 1), None),
        "wanted a constant",
    ),
    "a step": (lambda m, x: x[..., ::2], "its step is 2, wanted 1"),
    "two axes to normalise": (
        lambda m, x: nn.functional.layer_norm(x.unflatten(-1, (2, 3)), (2, 3)),
        "normalises 2 axes, wanted the last alone",
    ),
    "alpha of a tensor": (lambda m, x: torch.add(x, x, alpha=2), r"alpha is 2\.0, wanted 1"),
    "channels first": (
        lambda m, x: fastdiff.group_norm_silu(x.transpose(1, 2), m.bias, None, 3, 1e-5, True, "NCHW"),
        "layout is NCHW, wanted NHWC",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_name_node_and_way_out(name: str) -> None:
    forward, words = ERRORS[name]
    with pytest.raises(CaptureError, match=words) as caught:
        lowered_of(captured(forward))
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("test: ")
    assert "node " in message
    assert "--target onnxruntime" in message


def test_errors_name_the_module() -> None:
    module = model("sd15")
    assert module.program is not None
    module = module.with_program(run_passes(module.program))
    with pytest.raises(CaptureError, match=r"in model\.time_embedding\.linear_1\)") as caught:
        lowered_of(module)  # without the fusing passes
    assert "unet: aten." in str(caught.value)


@pytest.mark.parametrize("kernel", [(5, 11), (8, 8)])
def test_kernels_that_are_too_large(kernel: tuple[int, int]) -> None:
    def forward(m: Any, x: Tensor) -> Any:
        weight = torch.ones(6, 6, *kernel)
        return fastdiff.conv2d(x, weight, None, None, None, 1, [9, 9, 9, 9])

    with pytest.raises(CaptureError, match=f"its kernel is {kernel[0]}×{kernel[1]}.*at most 49 taps"):
        lowered_of(captured(forward, (PICTURE,), SIDES))


def test_sizes_that_were_captured_as_numbers() -> None:
    module = captured(lambda m, x: x + 1)
    fixed = replace(module.spec, inputs=(TensorSpec("x", "float32", ("batch", "tokens", "height")),))
    assert module.program is not None
    with pytest.raises(CaptureError, match="x: height was captured as 6, wanted a number times one symbol"):
        lower(module.program, fixed)


def test_every_lowering_is_tested() -> None:
    """By the functions above or a model; a target that nobody reaches has no business in the table."""
    reached: set[Any] = set()
    modules = [captured(f) for f in FUNCTIONS.values()]
    modules += [captured(f, (PICTURE,), SIDES) for f in PICTURES.values()]
    for module in modules:
        assert module.program is not None
        reached |= {node.target for node in module.program.graph.nodes if node.op == "call_function"}
    for name in ("sd15", "clip_pooled"):
        graph = fused(name).graph
        reached |= {node.target for node in graph.nodes if node.op == "call_function"}
    missed = {str(target) for target in LOWERINGS if target not in reached}
    assert missed <= SPELLINGS


SPELLINGS = {
    *("aten.add.Scalar", "aten.sub.Scalar", "aten.mul.Scalar", "aten.div.Scalar"),
    *("aten.squeeze.default", "aten.squeeze.dims", "aten.contiguous.default", "aten.clone.default"),
}
"""Other spellings of ops that are reached."""


@pytest.mark.parametrize(
    ("size", "wanted"),
    [
        (lambda h, w: h, "height"),
        (lambda h, w: 4 * h, ("height", 4, "*")),
        (lambda h, w: h * w, ("height", "width", "*")),
        (lambda h, w: 4 * h + 1, ("height", 4, "*", 1, "+")),
        (lambda h, w: w - 1, ("width", 1, "-")),
        (lambda h, w: (h + 1) // 3, ("height", 1, "+", 3, "//")),
    ],
)
def test_dims(size: Callable[..., Any], wanted: Dim) -> None:
    program = torch.export.export(
        _Sized(size),
        (torch.zeros(6, 10),),
        dynamic_shapes=({0: torch.export.Dim("h", min=5), 1: torch.export.Dim("w", min=5)},),
        strict=False,
    )
    nodes = list(program.graph.nodes)
    symbols = Symbols([(TensorSpec("x", "float32", ("height", "width")), nodes[0].meta["val"].shape)])
    result = next(node for node in reversed(nodes) if node.op == "call_function")
    found = symbols.dim(result.meta["val"].shape[0])
    evaluated = [_evaluate(dim, {"height": 8, "width": 7}) for dim in (found, wanted)]
    assert evaluated[0] == evaluated[1]
    assert len(found) <= len(wanted), "no longer than it must be"


def _evaluate(dim: Dim, sizes: dict[str, int]) -> int:
    from fastdiff.targets.graph import evaluate

    return evaluate(dim, sizes)


class _Sized(nn.Module):
    def __init__(self, size: Callable[..., Any]) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        return torch.ones(self.size(x.shape[0], x.shape[1]))
