"""The noise levels of flows that DPM-Solver and its relatives visit: evenly in σ, shifted towards noise."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastdiff.errors import InputError
from fastdiff.samplers.settings import Settings

__all__ = ["FlowShift", "read_flow_shift"]

Float64 = NDArray[np.float64]


@dataclass(frozen=True)
class FlowShift:
    """σ → s·σ/(1 + (s − 1)·σ): Esser et al., "Scaling Rectified Flow Transformers for High-Resolution Image
    Synthesis", Eq. 23.

    factor    s
    terminal  the shifted levels are stretched so that the last is this one, or None
    """

    factor: float
    terminal: float | None

    def levels(self, sigmas: Float64 | None, steps: int, train_steps: int, *, from_one: bool) -> Float64:
        """Shifted levels, falling, float64 [steps]: of ``sigmas`` or, if None, of an even ramp.

        The ramp ends above 0 and begins at 1, ``from_one``, or at 1 − 1/``train_steps``. Where the first
        level is 1, with no signal and λ = −∞, it is moved by 1e-6.
        """
        if sigmas is not None:
            levels = sigmas
        elif from_one:
            levels = np.linspace(1, 1 / train_steps, steps + 1)[:-1]
        else:
            levels = 1 - np.linspace(1, 1 / train_steps, steps + 1)[:0:-1]
        if levels[0] > 1:
            raise InputError(f"sigmas starts with {levels[0]:g}, wanted 1 or less on the path of a flow")
        levels = self.factor * levels / (1 + (self.factor - 1) * levels)
        if self.terminal and levels[-1] == 1:
            raise InputError("shift_terminal wants 2 steps or more; use more steps or remove it")
        if self.terminal:
            levels = 1 - (1 - levels) / ((1 - levels[-1]) / (1 - self.terminal))
        if abs(levels[0] - 1) < 1e-6:
            levels = np.append(levels[0] - 1e-6, levels[1:])
        return np.asarray(levels, dtype=np.float64)


def read_flow_shift(settings: Settings, *, of_unipc: bool, flow: bool) -> FlowShift:
    """Read flow_shift or, with use_dynamic_shifting, ``mu``: s = e^mu, or mu for time_shift_type "linear".

    ``of_unipc`` adds what diffusers' UniPC has alone: "linear", shift_terminal, and that mu must be given.
    Raises `InputError` for options without effect and, unless ``flow``, for shift_terminal.
    """
    factor = settings.positive("flow_shift", 1.0)
    dynamic = settings.flag("use_dynamic_shifting", False)
    kinds = ("exponential", "linear") if of_unipc else ("exponential",)
    kind = settings.choice("time_shift_type", "exponential", kinds)
    mu = settings.optional("mu")
    if mu is not None and not dynamic:
        raise InputError(f"mu is {mu:g}, but use_dynamic_shifting is false; set it to true or use flow_shift")
    if of_unipc and dynamic and mu is None:
        raise InputError("use_dynamic_shifting is true, but mu is missing; give option mu or set it to false")
    if mu is not None:
        factor = math.exp(mu) if kind == "exponential" else settings.positive("mu", mu)
    terminal = settings.optional("shift_terminal") if of_unipc else None
    if terminal is not None and not flow:
        raise InputError("shift_terminal is set, but use_flow_sigmas is false; set it to true")
    if terminal is not None and not 0 <= terminal < 1:
        raise InputError(f"shift_terminal is {terminal:g}, wanted 0 or more and less than 1")
    return FlowShift(factor, terminal)
