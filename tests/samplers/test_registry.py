"""What holds for every sampler there is, with its default options."""

from __future__ import annotations

import numpy as np
import pytest

from fastdiff.errors import InputError
from fastdiff.samplers import SAMPLERS, Generator, NoiseSchedule, StepTable, make_table, sample
from tests.compare import assert_close
from tests.samplers.configs import BETAS
from tests.samplers.exact import GAUSSIAN, moments, point_of

SCHEDULE = NoiseSchedule.from_config({**BETAS["scaled_linear"], "clip_sample": False})
STEPS = (1, 2, 3, 7, 24, 50, 999, 1000)
# From data to noise, or through a noise level that never falls to 0.
NOT_DENOISING: dict[str, str] = {
    **dict.fromkeys(
        [f"{name}_inverse" for name in ("dpmpp_1m", "dpmpp_2m", "dpmpp_3m")]
        + [f"{name}_inverse" for name in ("dpm_solver_1m", "dpm_solver_2m", "dpm_solver_3m")],
        "goes from data to noise",
    ),
    **dict.fromkeys(
        ("dpm_solver_1m_sde", "dpm_solver_2m_sde"), "in ε the noise of a long step exceeds its end's level"
    ),
}


def table_of(name: str, steps: int, schedule: NoiseSchedule = SCHEDULE) -> StepTable | None:
    """The table; None where the sampler refuses the step count, in a message that names it."""
    try:
        return make_table(name, schedule, steps)
    except InputError as error:
        message = str(error)
    assert f"steps is {steps}" in message or f"{steps} steps" in message, message
    return None


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("name", SAMPLERS)
def test_tables_are_finite_and_consistent(name: str, steps: int) -> None:
    table = table_of(name, steps)
    if table is None:
        assert steps < 4 or steps >= 999, "refuses an ordinary number of steps"
        return
    assert table.sampler == name
    assert table.is_finite()
    assert table.evaluations >= min(steps, 1)
    saved: set[int] = set()
    for step in table.steps:
        point = point_of(step)
        assert step.timestep == point.timestep
        assert step.input_scale == point.input_scale
        assert {slot for slot, _ in step.history} <= saved, "reads a slot that nothing was saved to"
        terms = len(step.history) + (step.estimate is not None and np.isfinite(step.estimate.limit))
        assert terms <= 8, "more terms than the kernels take"
        saved |= {slot for slot in (step.save_output, step.save_sample) if slot is not None}
        assert all(0 <= slot < table.slots for slot in saved)
        assert step.noise_coef is None or step.noise_coef >= 0


@pytest.mark.parametrize("name", SAMPLERS)
def test_stochastic_as_the_registry_says(name: str) -> None:
    assert make_table(name, SCHEDULE, 12).stochastic == SAMPLERS[name].stochastic


@pytest.mark.parametrize("name", SAMPLERS)
def test_evaluations_as_the_registry_says(name: str) -> None:
    """Up to what starting and ending cost more or less."""
    few, many = (make_table(name, SCHEDULE, steps) for steps in (24, 48))
    assert many.evaluations - few.evaluations == pytest.approx(24 * SAMPLERS[name].evaluations, abs=2)


@pytest.mark.parametrize("steps", [1, 4, 10, 37])
@pytest.mark.parametrize("name", SAMPLERS)
def test_a_single_picture_is_recovered(name: str, steps: int) -> None:
    """With one picture as the data every sampler that ends at σ = 0 ends at it, whatever noise it drew."""
    if name in NOT_DENOISING:
        pytest.skip(NOT_DENOISING[name])
    table = table_of(name, steps)
    if table is None:
        return
    mean, variance = moments(table, 0.7, 1e-9)
    assert mean == pytest.approx(0.7, abs=2e-2 if steps > 1 else 0.1)
    assert variance < 1e-3


@pytest.mark.parametrize("name", SAMPLERS)
def test_invariant_to_batch_and_reproducible(name: str) -> None:
    """A picture of a batch is the picture alone with its own noise; one seed gives the same bits twice."""
    table = make_table(name, SCHEDULE, 6)
    start = np.random.default_rng(1).standard_normal((3, 2)).astype(np.float32)
    start *= np.float32(table.init_noise_sigma)

    def run(latents: np.ndarray, seed: int) -> np.ndarray:
        steps = iter(table.steps)

        def denoise(x: np.ndarray, timestep: float, guided: bool) -> tuple[np.ndarray, None]:
            step = next(steps)
            state = x.astype(np.float64) / step.input_scale
            return GAUSSIAN.output(state, point_of(step)).astype(np.float32), None

        return sample(table, denoise, latents, noise=Repeated(seed))

    together = run(start, 4)
    assert together.tobytes() == run(start, 4).tobytes()
    for i in range(len(start)):
        assert_close(run(start[i : i + 1], 4), together[i : i + 1], rel_l2=1e-5)


class Repeated:
    """Noise that is the same in every row, so that a batch and a single picture draw alike."""

    def __init__(self, seed: int) -> None:
        self._generator = Generator(seed)

    def randn(self, shape: tuple[int, ...], out: np.ndarray | None = None) -> np.ndarray:
        row = self._generator.randn((1, 16))[:, : int(np.prod(shape[1:]))].reshape(1, *shape[1:])
        drawn = np.repeat(row, shape[0], axis=0)
        if out is None:
            return drawn
        out[...] = drawn
        return out
