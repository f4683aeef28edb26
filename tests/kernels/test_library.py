"""The registered ops: what opcheck, torch.export and Inductor want of them, on the CPU and on a GPU."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

from fastdiff.kernels import library, library_gpu, reference
from fastdiff.kernels.reference import TABLE_COLUMNS
from tests.compare import assert_close

F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16
ROUNDING = {F32: 1e-5, F16: 2e-3, BF16: 1.6e-2}
"""Relative L2 error of a few roundings of the dtype."""


# what Inductor imports of PyTorch itself
INDUCTOR = pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")


class Draw:
    """Seeded tensors of one dtype on one device."""

    def __init__(self, device: str, dtype: torch.dtype) -> None:
        self.device, self.dtype = device, dtype
        self._generator = torch.Generator().manual_seed(0)

    def __call__(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        drawn = torch.randn(shape, generator=self._generator)
        return drawn.to(self.device, dtype or self.dtype)

    def integers(self, *values: int) -> Tensor:
        return torch.tensor(values, dtype=torch.int32, device=self.device)


def _table(draw: Draw, guided: bool, noise: bool) -> tuple[Any, ...]:
    """The second of three steps, which keeps x in slot 1 and m nowhere, with a sample of odd sides."""
    sample, slots = draw(2, 4, 5, 7, dtype=F32), draw(2, 2, 4, 5, 7, dtype=F32)
    rows = draw(3, len(TABLE_COLUMNS) + 2, dtype=F32)
    saves = draw.integers(0, -1, 1, -1, 0, 1).view(3, 2)
    drawn = draw(3, 2, 4, 5, 7, dtype=F32) if noise else None
    output = draw(4 if guided else 2, 4, 5, 7)
    return sample, output, slots, rows, saves, draw.integers(1), guided, drawn, None, None


# Awkward on purpose: prime sizes, arguments left out, rows that do not follow each other, every activation of
# an epilogue that changes shapes.
ARGUMENTS: dict[str, list[Callable[[Draw], tuple[Any, ...]]]] = {
    "add_group_norm_silu": [
        lambda x: (x(2, 3, 5, 24), x(24), x(2, 24), x(2, 3, 5, 24), x(24), x(24), 4, 1e-5, True),
        lambda x: (x(2, 24, 7).transpose(1, 2), None, None, None, None, None, 3, 1e-6, False),
    ],
    "attention": [
        lambda x: (x(2, 7, 32), x(2, 13, 32), x(2, 13, 32), 2, 0.25),
        lambda x: (*x(1, 5, 96).split(32, -1), 1, 0.2, True),
    ],
    "avg_pool2d": [lambda x: (x(1, 5, 7, 3), 2)],
    "conv2d": [
        lambda x: (
            *(x(2, 5, 7, 8), x(12, 8, 3, 3), x(12), x(2, 12), x(2, 3, 4, 12)),
            *(2, [1, 1, 1, 1], 1, "silu", 0.5),
        ),
        lambda x: (x(1, 3, 5, 4), x(8, 4, 3, 3), None, None, None, 1, [1, 1, 1, 1], 2),
        lambda x: (
            *(x(1, 3, 5, 4), x(8, 4, 3, 3), None, None, None, 1, [1, 1, 1, 1]),
            *(2, "none", 1.0, [5, 9]),
        ),
        lambda x: (x(1, 4, 5, 7).permute(0, 2, 3, 1), x(8, 4, 1, 1), x(8), None, None, 1, [0, 0, 0, 0]),
    ],
    "epilogue": [
        lambda x: (x(2, 3, 5, 12), x(12), x(2, 12), x(2, 3, 5, 12), "gelu", 0.5),
        lambda x: (x(2, 6, 14), x(14), None, x(2, 6, 7), "geglu"),
    ],
    "geglu": [lambda x: (x(2, 3, 62),), lambda x: (x(2, 10, 3).transpose(1, 2),)],
    "group_norm_silu": [
        lambda x: (x(2, 3, 5, 24), x(24), x(24), 4, 1e-5, True, "NHWC"),
        lambda x: (x(2, 24, 3, 5), x(24), None, 8, 1e-6, False, "NCHW"),
    ],
    "layer_norm": [
        lambda x: (x(2, 7, 40), x(2, 7, 40), x(40), x(40), 1e-5),
        lambda x: (x(3, 40), None, None, None),
        lambda x: (x(40, 7).t(), None, x(40), None),
    ],
    "linear": [
        lambda x: (x(2, 7, 32), x(24, 32), x(24), x(2, 7, 24), "quick_gelu", 2.0),
        lambda x: (x(5, 32), x(48, 32), None, None, "geglu"),
        lambda x: (x(5, 32), x(32, 16).t()),
    ],
    "quick_gelu": [lambda x: (x(3, 7),)],
    "scheduler_step": [
        lambda x: (*(x(1, 4, 5, 7) for _ in range(3)), 7.5, 0.9, -0.3, [x(1, 4, 5, 7)], [0.5]),
        lambda x: (x(1, 4, 5, 7), x(1, 4, 5, 7), None, 1.0, 0.9, 0.1, [], [], x(1, 4, 5, 7), 0.2),
        lambda x: (  # channels last beside contiguous
            *(x(1, 4, 5, 7).contiguous(memory_format=torch.channels_last), x(1, 4, 5, 7), None),
            *(1.0, 0.9, 0.1, [], []),
        ),
    ],
    "table_step": [lambda x: _table(x, True, True), lambda x: _table(x, False, False)],
    "table_step_": [lambda x: _table(x, True, False), lambda x: _table(x, False, True)],
    "timestep_embedding": [lambda x: (x(3), x(5), True)],
    "token_match": [lambda x: (x(2, 5, 6, 8), 1, 2)],
    "token_merge": [lambda x: (x(2, 6, 7), torch.tensor([[0, 1, 2, 0, 1, 2], [2, 2, 1, 0, 2, 2]]), 1, 2)],
    "token_unmerge": [lambda x: (x(2, 3, 7), torch.tensor([[0, 1, 2, 0, 1, 2], [2, 2, 1, 0, 2, 2]]))],
    "upsample_nearest2d": [lambda x: (x(1, 3, 5, 2), 2), lambda x: (x(2, 3, 5, 2), 2, [5, 10])],
}
EVERY = [(op, index) for op in library.__all__ for index in range(len(ARGUMENTS[op]))]


def results(op: str, found: Any, arguments: tuple[Any, ...]) -> tuple[Tensor, ...]:
    """All that an op gives, also what it wrote into its arguments."""
    if op == "table_step_":
        return (arguments[0], arguments[2], found)
    return found if isinstance(found, tuple) else (found,)


def doubled(value: Any) -> Any:
    """The same in float64 on the CPU: what results are compared with."""
    if isinstance(value, Tensor):
        value = value.cpu()
        return value.double() if value.is_floating_point() else value
    return [doubled(part) for part in value] if isinstance(value, list) else value


def check_against_reference(op: str, index: int, device: str, dtype: torch.dtype) -> None:
    arguments = ARGUMENTS[op][index](Draw(device, dtype))
    exact = tuple(doubled(argument) for argument in arguments)
    wanted = getattr(reference, op.removesuffix("_"))(*exact)
    found = results(op, getattr(library, op)(*arguments), arguments)
    wanted = wanted if isinstance(wanted, tuple) else (wanted,)
    for part, right in zip(found, wanted, strict=True):
        assert part.device.type == device
        assert_close(part.double(), right, rel_l2=ROUNDING[dtype], label=f"{op} {index}")


@pytest.mark.parametrize(("op", "index"), EVERY)
def test_opcheck(op: str, index: int) -> None:
    torch.library.opcheck(getattr(library, op), ARGUMENTS[op][index](Draw("cpu", F32)))


@pytest.mark.parametrize("dtype", [F32, F16, BF16])
@pytest.mark.parametrize(("op", "index"), EVERY)
def test_cpu_tensors_go_through_the_reference(op: str, index: int, dtype: torch.dtype) -> None:
    check_against_reference(op, index, "cpu", dtype)


@pytest.mark.parametrize("dtype", [F32, torch.float64])
@pytest.mark.parametrize(("op", "index"), [(op, i) for op, i in EVERY if hasattr(library_gpu, op)])
def test_what_runs_on_a_gpu(op: str, index: int, dtype: torch.dtype) -> None:
    """The CUDA implementations on CPU tensors, where the kernels are interpreted: values and strides."""
    arguments = ARGUMENTS[op][index](Draw("cpu", F32 if op.startswith("table_step") else dtype))
    with FakeTensorMode() as mode:
        fakes = [_faked(mode, argument) for argument in arguments]
        announced = getattr(torch.ops.fastdiff, op)(*fakes)
    wanted = getattr(reference, op.removesuffix("_"))(*(doubled(argument) for argument in arguments))
    given = [argument for argument in arguments if isinstance(argument, Tensor)]
    returned = getattr(library_gpu, op)(*arguments)
    found = results(op, returned, arguments)
    wanted = wanted if isinstance(wanted, tuple) else (wanted,)
    for part, right in zip(found, wanted, strict=True):
        assert_close(part.double(), right, rel_l2=ROUNDING[F32], label=f"{op} {index}")
    pairs = zip(_parts(returned), _parts(announced), strict=True)
    for part, fake in pairs:
        assert (part.shape, part.stride(), part.dtype) == (fake.shape, fake.stride(), fake.dtype)
        assert all(part.data_ptr() != argument.data_ptr() for argument in given)


def _faked(mode: FakeTensorMode, value: Any) -> Any:
    if isinstance(value, list):
        return [_faked(mode, part) for part in value]
    return mode.from_tensor(value) if isinstance(value, Tensor) else value


def _parts(result: Any) -> tuple[Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)


def test_every_op_of_the_namespace_is_checked() -> None:
    assert sorted(library.__all__) == sorted(ARGUMENTS)


def test_registering_imports_no_kernel() -> None:
    code = "import sys, fastdiff.kernels.library; print('triton' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"


class One(nn.Module):
    """A module that calls an op with what it is given, its other arguments fixed."""

    def __init__(self, op: str, fixed: dict[int, Any], count: int) -> None:
        super().__init__()
        self.op, self.fixed, self.count = op, fixed, count

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        given = iter(tensors)
        arguments = tuple(
            self.fixed[place] if place in self.fixed else next(given) for place in range(self.count)
        )
        found = getattr(torch.ops.fastdiff, self.op)(*arguments)
        return results(self.op, found, arguments)


@pytest.mark.parametrize("op", library.__all__)
def test_an_exported_module_holds_the_op(op: str) -> None:
    arguments = ARGUMENTS[op][0](Draw("cpu", F32))
    fixed = {place: value for place, value in enumerate(arguments) if not isinstance(value, Tensor)}
    tensors = tuple(value for value in arguments if isinstance(value, Tensor))
    module = One(op, fixed, len(arguments))
    program = torch.export.export(module, tensors)
    targets = [str(node.target) for node in program.graph.nodes]
    assert f"fastdiff.{op}.default" in targets
    wanted = module(*(tensor.clone() for tensor in tensors))
    found = program.module()(*(tensor.clone() for tensor in tensors))
    for part, right in zip(found, wanted, strict=True):
        assert_close(part, right, max_abs=0.0, label=op)


class Block(nn.Module):
    """A convolution, a transformer's layer and a sampler's step, with plain PyTorch between them."""

    def __init__(self, device: str, dtype: torch.dtype) -> None:
        super().__init__()
        x = Draw(device, dtype)
        self.kernel, self.bias = x(16, 4, 3, 3) / 6, x(16)
        self.norm, self.norm_bias = x(16), x(16)
        self.qkv, self.up, self.down = x(48, 16) / 4, x(64, 16) / 4, x(4, 32) / 5
        self.table = [part.to(device) for part in (x(2, len(TABLE_COLUMNS) + 1, dtype=F32) / 2,)]
        self.saves, self.counter = x.integers(0, -1, 0, -1).view(2, 2), x.integers(1)

    def forward(self, x: Tensor, slots: Tensor) -> tuple[Tensor, Tensor]:
        ops = torch.ops.fastdiff
        sample = x.float().clone()
        picture = x.permute(0, 2, 3, 1)
        raw = ops.conv2d(picture, self.kernel, None, None, None, 1, [1, 1, 1, 1])
        total, y = ops.add_group_norm_silu(raw, self.bias, None, None, self.norm, self.norm_bias, 4)
        tokens = (y + 1).flatten(1, 2)
        query, key, value = ops.linear(tokens, self.qkv).split(16, -1)
        mixed = ops.attention(query, key, value, 1, 0.25)
        total, y = ops.layer_norm(mixed, total.flatten(1, 2), self.norm, self.norm_bias)
        y = ops.linear(ops.geglu(ops.linear(y, self.up)), self.down)
        y = ops.epilogue(y, None, None, None, "gelu", 0.5)
        output = y.unflatten(1, x.shape[2:]).permute(0, 3, 1, 2)
        model_input = ops.table_step_(
            sample, output.contiguous(), slots, self.table[0], self.saves, self.counter, False
        )
        return sample, model_input * 2


def check_compiled(device: str, dtype: torch.dtype) -> None:
    x = Draw(device, dtype)
    module = Block(device, dtype)
    sample, slots = x(2, 4, 5, 7), x(1, 2, 4, 5, 7, dtype=F32)
    eager_slots, compiled_slots = slots.clone(), slots.clone()
    wanted = (*module(sample, eager_slots), eager_slots)
    compiled = torch.compile(module, fullgraph=True)
    found = (*compiled(sample, compiled_slots), compiled_slots)
    assert not torch.equal(eager_slots, slots)
    for part, right in zip(found, wanted, strict=True):
        assert_close(part.double(), right.double(), rel_l2=ROUNDING[dtype], label="compiled")


@INDUCTOR
def test_inductor_agrees_with_eager() -> None:
    check_compiled("cpu", F32)


@pytest.mark.gpu
@pytest.mark.parametrize(("op", "index"), EVERY)
def test_gpu_opcheck(op: str, index: int) -> None:
    torch.library.opcheck(getattr(library, op), ARGUMENTS[op][index](Draw("cuda", F16)))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [F32, F16, BF16])
@pytest.mark.parametrize(("op", "index"), EVERY)
def test_gpu_ops_equal_the_reference(op: str, index: int, dtype: torch.dtype) -> None:
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        check_against_reference(op, index, "cuda", dtype)


@INDUCTOR
@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [F32, F16])
def test_gpu_inductor_agrees_with_eager(dtype: torch.dtype) -> None:
    check_compiled("cuda", dtype)


@pytest.mark.gpu
def test_gpu_ops_are_captured() -> None:
    """A graph of the block, replayed on other contents of the same buffers."""
    x = Draw("cuda", F16)
    module = Block("cuda", F16)
    sample, slots = x(2, 4, 5, 7), torch.zeros(1, 2, 4, 5, 7, device="cuda")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        module(sample, slots)  # compiles
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out, model_input = module(sample, slots)
    for _ in range(2):
        sample.copy_(x(2, 4, 5, 7))
        slots.zero_()
        graph.replay()
        again = torch.zeros_like(slots)
        wanted = (*module(sample, again), again)
        for part, right in zip((out, model_input, slots), wanted, strict=True):
            assert_close(part, right, max_abs=0.0, label="replayed")
