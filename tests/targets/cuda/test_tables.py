"""Arrays of a sampler's table against the specification that reads them, and the schedule's rows."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fastdiff.errors import InputError
from fastdiff.kernels import reference
from fastdiff.kernels.reference import TABLE_COLUMNS
from fastdiff.samplers import (
    Estimate,
    Generator,
    Linear,
    NoiseSchedule,
    Step,
    StepTable,
    make_table,
    sample,
)
from fastdiff.samplers.loop import start_sample
from fastdiff.targets.cuda.backend import EagerBackend
from fastdiff.targets.cuda.tables import ScheduleRows, step_arrays
from tests.compare import assert_close
from tests.samplers.configs import STABLE_DIFFUSION, every_table
from tests.targets.cuda.recording import table_step

THIRD = 1 / 3  # not a float32: rounds
FULL = StepTable(
    "full",
    (
        Step(7.5, Linear(0.9, THIRD), input_scale=0.7, save_sample=1, noise_coef=0.1),
        Step(
            3.25,
            Linear(-0.2, 0.4),
            input_scale=THIRD,
            history=((1, 0.3), (1, THIRD)),
            save_sample=0,
            save_output=2,
            estimate=Estimate(Linear(1.1, -0.6), 0.5, limit=0.8),
            guidance=2.0,
        ),
        Step(0.0, Linear(1.0, 0.25), history=((0, -0.1), (2, 0.2)), save_sample=1, save_output=1),
    ),
    slots=3,
)


def test_every_option_of_a_step_has_its_place() -> None:
    found = step_arrays(FULL, 7.5, 4)
    assert (found.rows.dtype, found.saves.dtype, found.timesteps.dtype) == (np.float32, np.int32, np.float32)
    columns = len(TABLE_COLUMNS)
    named = [dict(zip(TABLE_COLUMNS, row, strict=False)) for row in found.rows]
    # Without an estimate d is m, and of no weight.
    nothing = {"estimate_sample": 0, "estimate_output": 1, "estimate_limit": math.inf, "estimate_weight": 0}
    clip = {"estimate_sample": 1.1, "estimate_output": -0.6, "estimate_limit": 0.8, "estimate_weight": 0.5}
    wanted = [
        {"guidance": 7.5, "sample": 0.9, "output": THIRD, "noise": 0.1, "next_scale": THIRD, **nothing},
        {"guidance": 2.0, "sample": -0.2, "output": 0.4, "noise": 0, "next_scale": 1, **clip},
        {"guidance": 7.5, "sample": 1, "output": 0.25, "noise": 0, "next_scale": 1, **nothing},
    ]
    for row, expected in zip(named, wanted, strict=True):
        assert row == {name: np.float32(value) for name, value in expected.items()}
    # A slot that is read twice counts with the sum, rounded once; the fourth slot is not the table's.
    history = np.array([[0, 0, 0, 0], [0, 0.3 + THIRD, 0, 0], [-0.1, 0, 0.2, 0]], np.float64)
    np.testing.assert_array_equal(found.rows[:, columns:], history.astype(np.float32))
    # In the last step both want slot 1, and fastdiff.samplers.loop leaves the sample there.
    assert found.saves.tolist() == [[1, -1], [0, 2], [1, -1]]
    assert found.timesteps.tolist() == [7.5, 3.25, 0.0]
    assert found.draws.tolist() == [True, False, False]
    assert found.first_scale == np.float32(0.7)


def denoise(x: np.ndarray, timestep: float, guided: bool):
    # Flat far from 0: some samplers start at levels of 1e4, where the last bit is not small.
    cond, uncond = np.tanh(0.7 * x + timestep / 500), x / (1 + x * x)
    return cond.astype(np.float32), uncond.astype(np.float32) if guided else None


@pytest.mark.parametrize("guidance", [1.0, 4.0])
@pytest.mark.parametrize(
    "table",
    [
        FULL,
        *(table for table in every_table(4).values() if table.linear),
        make_table("ddim", NoiseSchedule.from_config({**STABLE_DIFFUSION, "clip_sample": True}), 7, eta=0.8),
    ],
    ids=lambda table: table.sampler,
)
def test_the_specification_with_these_arrays_is_the_loop_of_the_samplers(
    table: StepTable, guidance: float
) -> None:
    shape = (2, 3, 5, 1)
    start = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    wanted = sample(table, denoise, start, guidance=guidance, noise=Generator(1))

    guided = any(scale != 1 for scale in table.guidance_scales(guidance))
    arrays = step_arrays(table, guidance, table.slots + 1)
    rows, saves = torch.from_numpy(arrays.rows), torch.from_numpy(arrays.saves)
    generator = Generator(1)
    start = start_sample(table, start, generator)
    noise = None
    if table.stochastic:
        draws = [generator.randn(shape) if each else np.zeros(shape, np.float32) for each in arrays.draws]
        noise = torch.from_numpy(np.stack(draws))
    x = torch.from_numpy(start.copy())
    slots = torch.zeros(table.slots + 1, *shape)
    seen = x.numpy() * arrays.first_scale
    for i, timestep in enumerate(arrays.timesteps.tolist()):
        cond, uncond = denoise(seen, timestep, guided)
        output = torch.from_numpy(cond if uncond is None else np.concatenate([uncond, cond]))
        counter = torch.tensor([i], dtype=torch.int32)
        x, slots, model_input = reference.table_step(x, output, slots, rows, saves, counter, guided, noise)
        seen = model_input[: shape[0]].numpy()
    assert_close(x, wanted, rel_l2=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("guided", [True, False])
def test_the_step_of_the_recording_backend_is_the_specification(guided: bool, dtype: torch.dtype) -> None:
    """The one without values on the host, which the loop's tests use."""
    generator = torch.Generator().manual_seed(0)
    shape = (2, 3, 5, 1)
    arrays = step_arrays(FULL, 3.0, 4)
    rows, saves = torch.from_numpy(arrays.rows), torch.from_numpy(arrays.saves)
    noise = torch.randn(len(rows), *shape, generator=generator)
    for step in range(len(rows)):
        x, slots = torch.randn(shape, generator=generator), torch.randn(4, *shape, generator=generator)
        output = torch.randn(4 if guided else 2, *shape[1:], generator=generator).to(dtype)
        counter = torch.tensor([step], dtype=torch.int32)
        wanted = reference.table_step(x, output, slots, rows, saves, counter, guided, noise)
        model_input = torch.zeros_like(output)
        table_step(x, output, slots, rows, saves, counter, guided, noise, model_input=model_input)
        for found, expected in zip((x, slots, model_input), wanted, strict=True):
            assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("table", "guidance", "slots", "words"),
    [
        (FULL, math.inf, 3, "guidance is inf, wanted a finite number"),
        (FULL, 1e39, 3, "coefficient that float32 cannot hold"),
        (FULL, 2.0, 2, "found 2 slots for a table of 3"),
        (StepTable("one", (Step(1.0, Linear(1, 1), history=((1, 1.0),)),), slots=1), 2.0, 1, "uses slot 1"),
        (
            StepTable("one", (Step(1.0, Linear(1, 1), save_output=0),)),
            2.0,
            1,
            "slot 0, wanted one of its 0",
        ),
        (
            StepTable("one", (Step(1.0, Linear(1, 1), guidance=math.nan),)),
            2.0,
            1,
            "guidance is nan, wanted a finite number",
        ),
        (StepTable("one", (Step(1.0, Linear(1, 1e300)),)), 2.0, 1, "float32 cannot hold"),
    ],
)
def test_what_cannot_run_is_refused(table: StepTable, guidance: float, slots: int, words: str) -> None:
    with pytest.raises(InputError, match=words):
        step_arrays(table, guidance, slots)


def test_rows_are_gathered_by_the_counter_and_aligned() -> None:
    """Odd widths, two types, more axes than two: each value starts where 16 bytes can be read at once."""
    values = [
        torch.arange(4 * 5).reshape(4, 5).to(torch.float16),
        torch.arange(4 * 6).reshape(4, 2, 3).to(torch.float32) / 7,
        torch.arange(4 * 3).reshape(4, 3).to(torch.float16) - 5,
        torch.arange(4.0) + 0.5,
    ]
    rows = ScheduleRows(EagerBackend(), values)
    rows.fill(values)
    counter = torch.zeros(1, dtype=torch.int32)
    views = [view.data_ptr() for view in rows.views]
    start = {view.dtype: view.untyped_storage().data_ptr() for view in rows.views}
    assert all((view.data_ptr() - start[view.dtype]) % 16 == 0 for view in rows.views)
    for step in (2, 0, 3):
        counter.fill_(step)
        rows.gather(counter)
        for view, value in zip(rows.views, values, strict=True):
            assert torch.equal(view, value[step : step + 1])
            assert view.dtype == value.dtype
    assert [view.data_ptr() for view in rows.views] == views
    assert {tensor.dtype for tensor in rows.tensors} == {torch.float16, torch.float32}


def test_a_module_without_a_schedule_stage_has_no_rows() -> None:
    rows = ScheduleRows(EagerBackend(), [])
    rows.fill([])
    rows.gather(torch.zeros(1, dtype=torch.int32))
    assert rows.views == rows.tensors == []
