"""scheduler_step and table_step in CUDA C++ against the reference, and their noise against PyTorch's."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from fastdiff.errors import InputError
from fastdiff.kernels import reference
from fastdiff.kernels.cuda.scheduler_step import Draws, normal, scheduler_step, table_step
from fastdiff.kernels.reference import TABLE_COLUMNS
from fastdiff.samplers.random import CudaGenerator, philox_increment, philox_threads
from tests.compare import assert_close

SHAPE = (2, 4, 9, 7)  # 504 elements: no multiple of a block's 256
STEPS = 4


@dataclass
class Table:
    """Arguments of table_step."""

    sample: Tensor
    output: Tensor
    slots: Tensor
    rows: Tensor
    saves: Tensor
    counter: Tensor

    @staticmethod
    def made(device: str, *, guided: bool, slots: int, dtype: torch.dtype, clip: bool = False) -> Table:
        generator = torch.Generator().manual_seed(1)
        rows = torch.randn(STEPS, len(TABLE_COLUMNS) + slots, generator=generator)
        rows[:, TABLE_COLUMNS.index("estimate_limit")] = 1.0
        if not clip:
            rows[:, TABLE_COLUMNS.index("estimate_weight")] = 0.0
        saves = torch.randint(-1, slots, (STEPS, 2), generator=generator, dtype=torch.int32)
        output = torch.randn((SHAPE[0] * (2 if guided else 1), *SHAPE[1:]), generator=generator).to(dtype)
        tensors = (
            *(torch.randn(SHAPE, generator=generator), output),
            *(torch.randn(slots, *SHAPE, generator=generator), rows),
            *(saves, torch.zeros(1, dtype=torch.int32)),
        )
        return Table(*(tensor.to(device) for tensor in tensors))

    def arguments(self) -> tuple[Tensor, ...]:
        return (self.sample, self.output, self.slots, self.rows, self.saves, self.counter)


def state(seed: int, offset: int, device: str) -> Tensor:
    return torch.tensor([seed, offset], dtype=torch.int64, device=device)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("guided", [True, False], ids=["guided", "not guided"])
@pytest.mark.parametrize("extras", [False, True], ids=["linear", "with everything"])
def test_table_step(device: str, dtype: torch.dtype, guided: bool, extras: bool) -> None:
    table = Table.made(device, guided=guided, slots=3, dtype=dtype, clip=extras)
    generator = torch.Generator().manual_seed(2)
    noise = torch.randn(STEPS, *SHAPE, generator=generator).to(device) if extras else None
    rescale, threshold = (
        ((torch.rand(2, generator=generator) + low).to(device) if extras else None) for low in (0.5, 1.0)
    )
    for step in (0, 3):
        table.counter.fill_(step)
        wanted = reference.table_step(*table.arguments(), guided, noise, rescale, threshold)
        found = table_step(*table.arguments(), guided, noise, rescale, threshold)
        assert_close(found[0], wanted[0], rel_l2=1e-6)
        assert_close(found[1], wanted[1], rel_l2=1e-6)
        # One rounding to the model's type, of numbers that may differ in their last bit.
        eps = float(torch.finfo(dtype).eps)
        assert_close(found[2].float(), wanted[2].float(), rel_l2=1e-6 if dtype == torch.float32 else eps / 8)
        assert found[2].dtype == dtype


def test_a_loop_changes_its_state_in_place(device: str) -> None:
    table = Table.made(device, guided=True, slots=2, dtype=torch.float16)
    mine = Table(*(tensor.clone() for tensor in table.arguments()))
    scaled = torch.empty_like(table.output)
    for _ in range(STEPS):
        table.sample, table.slots, wanted = reference.table_step(*table.arguments(), True)
        out = (mine.sample, mine.slots, scaled)
        assert table_step(*mine.arguments(), True, out=out)[0] is mine.sample
        for each in (table, mine):
            each.counter.add_(1)
        assert_close(mine.sample, table.sample, rel_l2=1e-6)
        assert_close(mine.slots, table.slots, rel_l2=1e-6)
        assert_close(scaled.float(), wanted.float(), rel_l2=2e-4)
        # The next step must not amplify a difference of the last bit.
        mine.sample.copy_(table.sample)
        mine.slots.copy_(table.slots)


def test_draws_are_the_generator_s(device: str) -> None:
    """A small GPU of 3 · 256 threads, so that the shapes need one, three and nine shares."""
    for seed, offset in ((0, 0), (2**63 - 1, 4 * 2**31), (-5, 12)):
        for shape in ((100,), (3, 700), (7000,)):
            size = torch.Size(shape).numel()
            threads = philox_threads(size, 3, 256)
            draws = Draws(state(seed, offset, device), threads)
            ours = CudaGenerator(seed, 3, 256)
            ours._offset = offset
            for number in range(3):
                found = normal(draws, number, shape)
                # On the GPU sine and cosine are approximations of 2^-20.5.
                assert_close(found, ours.randn(shape), max_abs=5e-6)
            assert ours.offset == offset + 3 * philox_increment(size, threads)


def test_noise_made_in_the_kernel_is_noise_from_memory(device: str) -> None:
    table = Table.made(device, guided=False, slots=1, dtype=torch.float32)
    draws = Draws(state(7, 40, device), 256)
    noise = torch.stack([normal(draws, step, SHAPE) for step in range(STEPS)])
    for step in range(STEPS):
        table.counter.fill_(step)
        found = table_step(*table.arguments(), False, draws)
        wanted = table_step(*table.arguments(), False, noise)
        assert torch.equal(found[0], wanted[0])
    found = scheduler_step(table.sample, table.output, None, 1.0, 0.5, 0.25, [], [], draws, 2.0)
    wanted = scheduler_step(table.sample, table.output, None, 1.0, 0.5, 0.25, [], [], noise[0], 2.0)
    assert torch.equal(found[0], wanted[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("count", [0, 1, 8])
def test_scheduler_step(device: str, dtype: torch.dtype, count: int) -> None:
    generator = torch.Generator().manual_seed(3)
    tensors = [torch.randn(SHAPE, generator=generator).to(device, dtype) for _ in range(4 + count)]
    sample, cond, uncond, noise, *history = tensors
    coefs = torch.randn(count, generator=generator).tolist()
    for guided, noisy in ((True, True), (False, False)):
        numbers = (7.5, 0.9, -0.4)
        wanted = reference.scheduler_step(
            *(sample.double(), cond.double(), uncond.double() if guided else None, *numbers),
            *([h.double() for h in history], coefs, noise.double() if noisy else None, 0.3),
        )
        found = scheduler_step(
            *(
                sample,
                cond,
                uncond if guided else None,
                *numbers,
                history,
                coefs,
                noise if noisy else None,
                0.3,
            )
        )
        bound = 1e-6 if dtype == torch.float32 else float(torch.finfo(dtype).eps) / 2
        for ours, theirs in zip(found, wanted, strict=True):
            assert_close(ours.double(), theirs, rel_l2=bound)


def test_refusals(device: str) -> None:
    table = Table.made(device, guided=False, slots=2, dtype=torch.float16)
    with pytest.raises(InputError, match=r"output: found torch\.float16 of shape \(2, 4, 9, 7\)"):
        table_step(*table.arguments(), True)
    with pytest.raises(InputError, match="rows: found"):
        table_step(*table.arguments()[:3], table.rows[:, :-1], *table.arguments()[4:], False)
    with pytest.raises(InputError, match=r"counter: found torch\.int64"):
        table_step(*table.arguments()[:5], table.counter.long(), False)
    with pytest.raises(InputError, match="sample: found strided"):
        table_step(table.sample.transpose(2, 3), *table.arguments()[1:], False)
    with pytest.raises(InputError, match=r"state: found torch\.int32"):
        table_step(*table.arguments(), False, Draws(table.counter))
    nine = [table.sample] * 9
    with pytest.raises(InputError, match="8 at most"):
        scheduler_step(table.sample, table.sample, None, 1.0, 1.0, 1.0, nine, [1.0] * 9)
    with pytest.raises(InputError, match=r"cond: found torch\.float16"):
        scheduler_step(table.sample, table.output, None, 1.0, 1.0, 1.0, [], [])


@pytest.mark.gpu
@pytest.mark.parametrize(
    "shape", [(1,), (255,), (2, 4, 64, 64), (1, 16, 128, 128), (1_000_003,), (5_000_000,)], ids=str
)
def test_randn_of_pytorch_bit_for_bit(shape: tuple[int, ...]) -> None:
    """Draws that fit the GPU's threads, and such that take several rounds; then the next one."""
    for seed in (0, 42, 2**64 - 1):
        generator = torch.Generator("cuda").manual_seed(seed)
        draws = Draws.after(generator)
        properties = torch.cuda.get_device_properties(0)
        gpu = (properties.multi_processor_count, properties.max_threads_per_multi_processor)
        ours = CudaGenerator(seed, *gpu)
        for number in range(3):
            wanted = torch.randn(shape, device="cuda", generator=generator)
            found = normal(draws, number, shape)
            assert torch.equal(found.view(torch.int32), wanted.view(torch.int32))
            assert_close(ours.randn(shape), wanted, max_abs=5e-6)
            assert ours.offset == int(generator.get_state().view(torch.int64)[1])


@pytest.mark.gpu
def test_captured_into_a_graph() -> None:
    """All steps from one captured launch: counter, table and generator are in device memory."""
    table = Table.made("cuda", guided=True, slots=2, dtype=torch.float16, clip=True)
    mine = Table(*(tensor.clone() for tensor in table.arguments()))
    words = state(0, 0, "cuda")
    draws = Draws(words)
    scaled = torch.empty_like(table.output)
    out = (mine.sample, mine.slots, scaled)
    table_step(*mine.arguments(), True, draws, out=out)  # loads the kernel
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        table_step(*mine.arguments(), True, draws, out=out)
        mine.counter.add_(1)
    for seed in (3, 4):
        words.copy_(state(seed, 0, "cuda"))
        generator = torch.Generator("cuda").manual_seed(seed)
        noise = torch.stack([torch.randn(SHAPE, device="cuda", generator=generator) for _ in range(STEPS)])
        wanted = Table(*(tensor.clone() for tensor in table.arguments()))
        mine.sample.copy_(table.sample)
        mine.slots.copy_(table.slots)
        mine.counter.zero_()
        for _ in range(STEPS):
            graph.replay()
            wanted.sample, wanted.slots, _ = reference.table_step(*wanted.arguments(), True, noise)
            wanted.counter.add_(1)
        torch.cuda.synchronize()
        assert_close(mine.sample, wanted.sample, rel_l2=1e-5)
        assert_close(mine.slots, wanted.slots, rel_l2=1e-5)
