"""What holds for every sampler there is, with its default options."""

from __future__ import annotations

import numpy as np
import pytest

from fastdiff.errors import InputError
from fastdiff.samplers import SAMPLERS, Generator, NoiseSchedule, StepTable, make_adaptive, make_table, sample
from fastdiff.samplers.registry import _FAMILIES
from tests.compare import assert_close
from tests.samplers.configs import BETAS
from tests.samplers.exact import GAUSSIAN, moments, point_of

SCHEDULE = NoiseSchedule.from_config({**BETAS["scaled_linear"], "clip_sample": False})
STEPS = (1, 2, 3, 7, 24, 50, 999, 1000)
FIXED = tuple(name for name, sampler in SAMPLERS.items() if sampler.adaptive is None)
INVERSE = tuple(name for name in FIXED if SAMPLERS[name].inverse)
# Their step towards the end adds noise of the size of the step, so that few steps leave much of it.
NOISY_END = ("dpm_solver_1m_sde", "dpm_solver_2m_sde", "score_sde_vp")
# Their corrector's step follows the norms of a picture, which moments do not tell.
NOT_AFFINE = ("pc", "score_sde_ve")
# Steps in continuous time, the last of them at the end of the way: a single one only starts.
NO_SINGLE_STEP = ("ncsn", "pc", "euler_maruyama", "reverse_diffusion", "score_sde_ve")


def table_of(name: str, steps: int, schedule: NoiseSchedule = SCHEDULE) -> StepTable | None:
    """The table; None where the sampler refuses the step count, in a message that names it."""
    try:
        return make_table(name, schedule, steps)
    except InputError as error:
        message = str(error)
    assert f"steps is {steps}" in message or f"{steps} steps" in message, message
    return None


def test_names_are_unique() -> None:
    names = [sampler.name for family in _FAMILIES for sampler in family.SAMPLERS]
    assert len(names) == len(set(names)) == len(SAMPLERS)


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("name", FIXED)
def test_tables_are_finite_and_consistent(name: str, steps: int) -> None:
    table = table_of(name, steps)
    if table is None:
        # Consistency models have 40 timesteps.
        few = 40 if name == "consistency" else 998
        assert steps < 4 or steps > few, "refuses an ordinary number of steps"
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


@pytest.mark.parametrize("name", FIXED)
def test_stochastic_as_the_registry_says(name: str) -> None:
    assert make_table(name, SCHEDULE, 12).stochastic == SAMPLERS[name].stochastic


@pytest.mark.parametrize("name", FIXED)
def test_evaluations_as_the_registry_says(name: str) -> None:
    """Up to what starting and ending cost more or less."""
    few, many = (make_table(name, SCHEDULE, steps) for steps in (12, 36))
    assert many.evaluations - few.evaluations == pytest.approx(24 * SAMPLERS[name].evaluations, abs=2)


@pytest.mark.parametrize("steps", [1, 4, 10, 37])
@pytest.mark.parametrize("name", sorted(set(FIXED) - {*INVERSE, *NOISY_END, *NOT_AFFINE}))
def test_a_single_picture_is_recovered(name: str, steps: int) -> None:
    """With one picture as the data every sampler that ends at σ = 0 ends at it, whatever noise it drew."""
    table = table_of(name, steps)
    if table is None or (steps == 1 and name in NO_SINGLE_STEP):
        return
    mean, variance = moments(table, 0.7, 1e-9)
    assert mean == pytest.approx(0.7, abs=2e-2 if steps > 1 else 0.1)
    assert variance < 1e-3


@pytest.mark.parametrize("name", NOISY_END)
def test_noise_at_the_end_falls_with_the_step(name: str) -> None:
    few, many = (moments(make_table(name, SCHEDULE, steps), 0.7, 1e-9)[1] for steps in (100, 800))
    assert 1e-9 < many < few / 4


@pytest.mark.parametrize("name", INVERSE)
def test_inverse_samplers_end_in_noise(name: str) -> None:
    last = point_of(make_table(name, SCHEDULE, 24).steps[-1])
    first = point_of(make_table(name, SCHEDULE, 24).steps[0])
    assert first.ratio < 0.1 < 2 < last.ratio


# The first evaluation of ddim_inverse is at σ = 0, where a perfect denoiser's ε is 0/0.
@pytest.mark.parametrize("name", sorted(set(FIXED) - {"ddim_inverse"}))
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


def test_flow_checkpoints_want_samplers_of_flows() -> None:
    """Their configs have no betas, so that the default chain would be walked without an error."""
    schedule = NoiseSchedule.from_config({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0})
    assert schedule.prediction == "flow_prediction"
    for name in ("euler", "ddim", "dpmpp_2m", "lcm", "restart"):
        with pytest.raises(InputError, match=r"FlowMatchEulerDiscreteScheduler.*flow_euler"):
            make_table(name, schedule, 5)
    assert point_of(make_table("flow_heun", schedule, 5).steps[0]).sigma == 1
    table = make_table("dpmpp_2m", schedule, 5, options={"use_flow_sigmas": True})
    assert all(point_of(step).alpha + point_of(step).sigma == pytest.approx(1) for step in table.steps)
    assert point_of(make_table("pc", schedule, 5).steps[0]).alpha < 1e-3
    make_adaptive("rk45", schedule)


@pytest.mark.parametrize("name", ["ddim", "pndm", "euler", "heun", "dpmpp_2m", "unipc", "ddpm"])
def test_learned_variance_of_a_checkpoint_holds_for_every_sampler(name: str) -> None:
    config = {**BETAS["linear"], "variance_type": "learned_range", "clip_sample": False}
    assert make_table(name, NoiseSchedule.from_config(config), 7).variance_channels
    assert not make_table(name, SCHEDULE, 7).variance_channels
