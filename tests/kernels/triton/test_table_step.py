"""table_step in Triton against the reference in float64, and whole runs against the host's loop."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fastdiff.errors import InputError
from fastdiff.kernels import reference
from fastdiff.kernels.reference import TABLE_COLUMNS
from fastdiff.kernels.triton.launch import Config
from fastdiff.kernels.triton.table_step import configs, table_step
from fastdiff.samplers import Estimate, Generator, Linear, NoiseSchedule, StepTable, make_table, sample
from tests.compare import assert_close
from tests.samplers.configs import STABLE_DIFFUSION
from tests.samplers.oracle import model

STEPS = 3
SHAPE = (2, 4, 9, 7)  # 252 elements per picture, no multiple of a block


def case(
    slots: int, guided: bool, device: str, dtype: torch.dtype = torch.float32
) -> dict[str, torch.Tensor]:
    """Random arguments of one step, the second of three."""
    generator = torch.Generator().manual_seed(slots)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    batch, *inner = SHAPE
    rows = random(STEPS, len(TABLE_COLUMNS) + slots)
    rows[:, TABLE_COLUMNS.index("estimate_limit")] = 0.8
    rows[:, TABLE_COLUMNS.index("estimate_weight")] = 0.0
    given = {
        "sample": random(*SHAPE),
        "output": random(2 * batch if guided else batch, *inner).to(dtype),
        "slots": random(slots, *SHAPE),
        "rows": rows,
        "saves": torch.full((STEPS, 2), -1, dtype=torch.int32),
        "counter": torch.ones(1, dtype=torch.int32),
        "noise": random(STEPS, *SHAPE),
        "rescale": random(batch).abs(),
        "threshold": random(batch).abs() + 0.5,
    }
    return {name: value.to(device) for name, value in given.items()}


REQUIRED = ("sample", "output", "slots", "rows", "saves", "counter")


def check(given: dict[str, torch.Tensor], guided: bool, *optional: str, config: Config | None = None) -> None:
    """One step in Triton equals the reference in float64, and changes nothing that it should not."""
    double = {
        name: value.cpu() if value.dtype == torch.int32 else value.cpu().double()
        for name, value in given.items()
    }
    more = {name: double[name] for name in optional}
    wanted = reference.table_step(*(double[name] for name in REQUIRED), guided, **more)
    kept = {name: given[name].clone() for name in ("output", "rows", "saves", "counter", *optional)}
    x, slots, following = table_step(
        *(given[name] for name in REQUIRED), guided, **{name: given[name] for name in optional}, config=config
    )
    assert x is given["sample"]
    assert slots is given["slots"]
    dtype = given["output"].dtype
    assert following.dtype == dtype
    bound = {torch.float32: 2e-6, torch.float16: 4e-4, torch.bfloat16: 4e-3}[dtype]
    assert_close(x.cpu(), wanted[0], rel_l2=2e-6, label="sample")
    assert_close(slots.cpu(), wanted[1], rel_l2=2e-6, label="slots")
    assert_close(following.cpu().float(), wanted[2], rel_l2=bound, label="model_input")
    for name, value in kept.items():
        assert torch.equal(given[name], value), name


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("slots", range(5))
def test_slots(slots: int, guided: bool, device: str) -> None:
    check(case(slots, guided, device), guided)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_output_in_half_precision(dtype: torch.dtype, device: str) -> None:
    check(case(1, True, device, dtype), True, "noise")


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("saved", [(0, -1), (-1, 1), (1, 0), (1, 1)], ids=str)
def test_saves(saved: tuple[int, int], guided: bool, device: str) -> None:
    # With one slot for both, the output stays.
    given = case(2, guided, device)
    given["saves"][1] = torch.tensor(saved, dtype=torch.int32)
    check(given, guided)


@pytest.mark.parametrize("clipped", [False, True])
@pytest.mark.parametrize(
    "optional", [("noise",), ("rescale",), ("threshold",), ("noise", "rescale", "threshold"), ()], ids=str
)
def test_optional_inputs(optional: tuple[str, ...], clipped: bool, device: str) -> None:
    given = case(1, True, device)
    given["saves"][1, 1] = 0
    if clipped:
        given["rows"][1, TABLE_COLUMNS.index("estimate_weight")] = -1.7
    check(given, True, *optional)


def test_nan_is_not_clipped_away(device: str) -> None:
    given = case(0, False, device)
    given["rows"][1, TABLE_COLUMNS.index("estimate_weight")] = 1.0
    given["output"][0, 1, 2, 3] = math.nan
    x, _, _ = table_step(*(given[name] for name in REQUIRED), False)
    assert x.isnan().sum() == 1
    assert x[0, 1, 2, 3].isnan()


def test_what_has_no_weight_is_not_read(device: str) -> None:
    # Slots are allocated, not filled, before the first step.
    given = case(2, False, device)
    given["rows"][1, len(TABLE_COLUMNS)] = 0.0
    given["rows"][1, TABLE_COLUMNS.index("noise")] = 0.0
    given["slots"][0] = math.nan
    given["noise"][:] = math.nan
    x, _, _ = table_step(*(given[name] for name in REQUIRED), False, given["noise"])
    assert x.isfinite().all()


@pytest.mark.parametrize("guided", [False, True])
def test_bits_do_not_depend_on_the_tiling(guided: bool, device: str) -> None:
    results = []
    for config in (*configs(), Config.of(1, 1, BLOCK=16)):
        given = case(2, guided, device)
        given["saves"][1] = torch.tensor([0, 1], dtype=torch.int32)
        given["rows"][1, TABLE_COLUMNS.index("estimate_weight")] = 0.7
        optional = {name: given[name] for name in ("noise", "rescale")}
        results.append(table_step(*(given[name] for name in REQUIRED), guided, **optional, config=config))
    for found in results[1:]:
        for one, other in zip(found, results[0], strict=True):
            assert torch.equal(one, other)


def test_channels_last_into_a_given_buffer(device: str) -> None:
    given = case(1, True, device, torch.float16)
    wanted = [value.clone() for value in table_step(*(given[name] for name in REQUIRED), True)]
    given = case(1, True, device, torch.float16)
    for name in ("sample", "output"):
        given[name] = given[name].contiguous(memory_format=torch.channels_last)
    given["slots"] = given["slots"].permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)
    buffer = torch.empty_like(given["output"])
    found = table_step(*(given[name] for name in REQUIRED), True, model_input=buffer)
    assert found[2] is buffer
    for one, other in zip(found, wanted, strict=True):
        assert torch.equal(one, other)


SCHEDULE = NoiseSchedule.from_config(STABLE_DIFFUSION)
CLIPPED = NoiseSchedule.from_config({**STABLE_DIFFUSION, "clip_sample": True})
RUNGE_KUTTA = NoiseSchedule.from_config({**STABLE_DIFFUSION, "skip_prk_steps": False})
TABLES = {
    "ddim with noise": make_table("ddim", SCHEDULE, 6, eta=0.7),
    "ddim with clipping and noise": make_table("ddim", CLIPPED, 6, eta=1.0),
    "pndm": make_table("pndm", SCHEDULE, 6),
    "pndm with Runge-Kutta start": make_table("pndm", RUNGE_KUTTA, 5),
    "euler": make_table("euler", SCHEDULE, 6),
    "dpmpp_2m": make_table("dpmpp_2m", SCHEDULE, 6),
}


def on_device(table: StepTable, guidance: float, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The rows and saves of a sampler's table."""
    rows = torch.zeros(table.evaluations, len(TABLE_COLUMNS) + table.slots, dtype=torch.float64)
    saves = torch.full((table.evaluations, 2), -1, dtype=torch.int32)
    for index, step in enumerate(table.steps):
        estimate = step.estimate or Estimate(Linear(0.0, 1.0))
        columns = {
            "guidance": guidance,
            "sample": step.update.sample,
            "output": step.update.output,
            "noise": step.noise_coef or 0.0,
            "estimate_sample": estimate.value.sample,
            "estimate_output": estimate.value.output,
            "estimate_limit": estimate.limit,
            "estimate_weight": estimate.weight,
            "next_scale": 1.0 if index + 1 == len(table.steps) else table.steps[index + 1].input_scale,
        }
        for name, value in columns.items():
            rows[index, TABLE_COLUMNS.index(name)] = value
        for slot, coef in step.history:
            rows[index, len(TABLE_COLUMNS) + slot] += coef
        for column, slot in enumerate((step.save_sample, step.save_output)):
            saves[index, column] = -1 if slot is None else slot
    return rows.float().to(device), saves.to(device)


@pytest.mark.parametrize("guidance", [1.0, 2.5])
@pytest.mark.parametrize("name", TABLES)
def test_whole_runs_equal_the_hosts_loop(name: str, guidance: float, device: str) -> None:
    table, guided = TABLES[name], guidance != 1
    latents = np.random.default_rng(1).standard_normal(SHAPE).astype(np.float32)
    latents *= np.float32(table.init_noise_sigma)

    def outputs(x: np.ndarray, timestep: float) -> list[np.ndarray]:
        return [model(0.5 * x, timestep).astype(np.float32), model(x, timestep).astype(np.float32)]

    def denoise(x: np.ndarray, timestep: float, _: bool) -> tuple[np.ndarray, np.ndarray]:
        uncond, cond = outputs(x, timestep)
        return cond, uncond

    wanted = []
    sample(
        table,
        denoise,
        latents,
        guidance=guidance,
        noise=Generator(3),
        callback=lambda done, total, x: wanted.append(x.copy()),
    )

    source = Generator(3)
    noise = None
    if table.stochastic:
        noise = torch.from_numpy(np.stack([source.randn(SHAPE) for _ in table.steps])).to(device)
    rows, saves = on_device(table, guidance, device)
    x = torch.from_numpy(latents.copy()).to(device)
    slots = torch.empty(table.slots, *SHAPE, device=device)
    counter = torch.zeros(1, dtype=torch.int32, device=device)
    following = table.steps[0].input_scale * x
    for done, step in enumerate(table.steps):
        uncond, cond = outputs(following[: len(x)].cpu().numpy(), step.timestep)
        output = torch.from_numpy(np.concatenate([uncond, cond]) if guided else cond).to(device)
        _, _, following = table_step(x, output, slots, rows, saves, counter, guided, noise)
        counter += 1
        assert_close(x.cpu(), wanted[done], rel_l2=1e-5, label=f"step {done}")


def test_refused() -> None:
    given = [case(1, True, "cpu")[name] for name in REQUIRED]

    def step(index: int, value: torch.Tensor, **more: torch.Tensor) -> None:
        table_step(*given[:index], value, *given[index + 1 :], True, **more)

    with pytest.raises(InputError, match=r"sample: found shape \(4, 9, 7\)"):
        step(0, given[0][0])
    with pytest.raises(InputError, match=r"sample: found torch.float16 on cpu, wanted torch.float32"):
        step(0, given[0].half())
    with pytest.raises(InputError, match=r"output: found shape \(2, 4, 9, 7\), wanted \(4, 4, 9, 7\)"):
        step(1, given[0])
    with pytest.raises(InputError, match=r"slots, rows: found shapes \(2, 4, 9, 7\), \(3, 10\)"):
        step(2, given[2][0])
    with pytest.raises(InputError, match=r"rows: found shape \(3, 9\), wanted \(3, 10\)"):
        step(3, given[3][:, :9])
    with pytest.raises(InputError, match=r"saves: found torch.int64 on cpu, wanted torch.int32"):
        step(4, given[4].long())
    with pytest.raises(InputError, match=r"counter: found shape \(\), wanted \(1,\)"):
        step(5, given[5][0])
    with pytest.raises(InputError, match=r"model_input: found \(2, 4, 9, 7\)"):
        step(0, given[0], model_input=given[0])
    with pytest.raises(InputError, match=r"threshold: found shape \(3,\), wanted \(2,\)"):
        step(0, given[0], threshold=torch.ones(3))
    with pytest.raises(InputError, match=r"rescale: found strides \(2,\), wanted a contiguous"):
        step(0, given[0], rescale=torch.ones(4)[::2])
