"""Guidance: how the outputs with the prompt, without it and with a negative prompt become one.

::

    Guidance(scale, method, schedule, interval, rescale)

``schedule`` says how the scale changes over the steps, ``interval`` in which steps there is guidance at
all, ``method`` combines the model's outputs with the scale of the step, and ``rescale`` corrects the spread
of what comes out: in this order. What is linear in the outputs folds into the table, see `Guidance.fold`; the
rest is computed between the denoiser and the step, see `Guidance.bind`.
"""

from __future__ import annotations

from fastdiff.samplers.guidance.apg import APG
from fastdiff.samplers.guidance.cfg import CFG
from fastdiff.samplers.guidance.cfg_pp import CFGPlusPlus
from fastdiff.samplers.guidance.cfg_zero_star import CFGZeroStar
from fastdiff.samplers.guidance.guidance import Guidance
from fastdiff.samplers.guidance.interval import Interval
from fastdiff.samplers.guidance.method import Method
from fastdiff.samplers.guidance.perp_neg import PerpNeg
from fastdiff.samplers.guidance.read import METHODS, read_guidance
from fastdiff.samplers.guidance.schedule import SHAPES, PerStep, Schedule

__all__ = [
    "APG",
    "CFG",
    "METHODS",
    "SHAPES",
    "CFGPlusPlus",
    "CFGZeroStar",
    "Guidance",
    "Interval",
    "Method",
    "PerStep",
    "PerpNeg",
    "Schedule",
    "read_guidance",
]
