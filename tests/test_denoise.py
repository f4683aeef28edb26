"""Which loop runs a table, and what the U-Net is asked for in its steps."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fastdiff.denoise import Denoiser, SplitDenoiser
from fastdiff.errors import InputError
from fastdiff.samplers import (
    Callback,
    Estimate,
    Generator,
    Langevin,
    Linear,
    NoiseSource,
    StepTable,
    Threshold,
    sample,
)
from fastdiff.samplers.table import Step
from fastdiff.targets.session import Session
from tests.test_pipeline import FakeSession

TABLE = StepTable("three", tuple(Step(t, Linear(0.9, -0.1)) for t in (30.0, 20.0, 10.0)))
NOISY = replace(TABLE, steps=tuple(replace(step, noise_coef=0.1) for step in TABLE.steps))
MIXED = TABLE.with_guidance((None, 1.0, None))
"""Guided but for its second step."""
THRESHOLD = Estimate(Linear(1.0, 0.0), threshold=Threshold(0.9, 2.0))
START = np.random.default_rng(0).standard_normal((2, 4, 4, 4)).astype(np.float32)
WITH, WITHOUT = (
    {"encoder_hidden_states": np.random.default_rng(seed).standard_normal((2, 5, 6)).astype(np.float32)}
    for seed in (1, 2)
)


class Loops(FakeSession):
    """A U-Net with a loop of its own, which notes its calls."""

    has_loop = True

    def __init__(self) -> None:
        super().__init__("unet")
        self.loops: list[tuple[float, int]] = []

    def sample(
        self,
        table: StepTable,
        latents: Any,
        inputs: dict[str, Any],
        guidance: float,
        noise: NoiseSource,
        callback: Callback | None,
    ) -> Any:
        states = inputs["encoder_hidden_states"]
        self.loops.append((guidance, len(states)))
        halves = (states,) if len(states) == len(latents) else (states[2:], states[:2])
        conditional, *rest = [{"encoder_hidden_states": half} for half in halves]
        plain = Denoiser(FakeSession("unet"), conditional, rest[0] if rest else None)
        return sample(table, plain, latents, guidance=guidance, noise=noise, callback=callback)


class OwnNoise(Loops):
    takes_any_noise = False


class NotAGenerator:
    """A NoiseSource of another type, with the same numbers."""

    def __init__(self) -> None:
        self.source = Generator(3)

    def randn(self, shape: Any, *, out: Any = None) -> Any:
        return self.source.randn(shape, out=out)


def run(unet: Session, table: StepTable, guidance: float, noise: NoiseSource | None = None) -> Any:
    return Denoiser(unet, WITH, WITHOUT).run(table, START, guidance, noise or Generator(3), None)


@pytest.mark.parametrize(
    ("table", "guidance", "loops"),
    [
        (TABLE, 1.0, [(1.0, 2)]),
        (TABLE, 3.0, [(3.0, 4)]),
        (NOISY, 3.0, [(3.0, 4)]),
        (TABLE.with_guidance((1.0, 1.0, 1.0)), 3.0, [(3.0, 2)]),
        (TABLE.with_guidance((2.0, 2.0, 2.0)), 1.0, [(1.0, 4)]),
        (MIXED, 1.0, [(1.0, 2)]),
        (MIXED, 3.0, []),
        (replace(TABLE, steps=(replace(TABLE.steps[0], estimate=THRESHOLD),)), 3.0, []),
        (replace(TABLE, steps=(replace(TABLE.steps[0], langevin=Langevin(0.1)),)), 3.0, []),
    ],
)
def test_a_session_s_loop_runs_what_it_is_right_for(table, guidance, loops) -> None:
    unet = Loops()
    found = run(unet, table, guidance)
    assert unet.loops == loops
    assert bool(unet.calls) == (not loops)
    np.testing.assert_array_equal(found, run(FakeSession("unet"), table, guidance))


def test_noise_that_compiled_code_cannot_draw() -> None:
    for unet, loops in ((OwnNoise(), 0), (Loops(), 1)):
        found = run(unet, NOISY, 3.0, NotAGenerator())
        assert len(unet.loops) == loops
        np.testing.assert_array_equal(found, run(FakeSession("unet"), NOISY, 3.0))
    unet = OwnNoise()
    run(unet, TABLE, 3.0, NotAGenerator())
    assert len(unet.loops) == 1, "nothing is drawn"


def test_steps_without_guidance_compute_one_half() -> None:
    unet, other = FakeSession("unet"), FakeSession("unet")
    found = run(unet, MIXED, 3.0)
    assert [len(call["sample"]) for call in unet.calls] == [4, 2, 4]
    np.testing.assert_array_equal(unet.calls[1]["encoder_hidden_states"], WITH["encoder_hidden_states"])
    unet = FakeSession("unet")
    split = SplitDenoiser(unet, other, WITH, WITHOUT).run(MIXED, START, 3.0, Generator(3), None)
    assert (len(unet.calls), len(other.calls)) == (3, 2)
    np.testing.assert_array_equal(split, found)


def test_guidance_of_a_table_wants_an_output_without_the_prompt() -> None:
    table = TABLE.with_guidance((2.0, None, None))
    with pytest.raises(InputError, match=r"guidance is 2\.0, but the denoiser gave no output without"):
        Denoiser(Loops(), WITH, None).run(table, START, 1.0, Generator(3), None)
