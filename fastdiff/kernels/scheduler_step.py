"""One step of a sampler with classifier-free guidance, in one pass over memory."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from fastdiff import _C

__all__ = ["scheduler_step"]

FloatArray = npt.NDArray[np.float32]


def scheduler_step(
    sample: FloatArray,
    cond: FloatArray,
    uncond: FloatArray | None,
    guidance: float,
    sample_coef: float,
    output_coef: float,
    history: Sequence[FloatArray] = (),
    history_coefs: Sequence[float] = (),
    noise: FloatArray | None = None,
    noise_coef: float = 0.0,
    *,
    estimate_sample: float = 0.0,
    estimate_output: float = 1.0,
    estimate_limit: float = math.inf,
    estimate_coef: float = 0.0,
    next_scale: float = 1.0,
    out: FloatArray | None = None,
    estimate: FloatArray | None = None,
    next_input: FloatArray | None = None,
    next_again: FloatArray | None = None,
    isa: str | None = None,
) -> FloatArray:
    """Return ``out``, the sample after one step.

    With classifier-free guidance (Ho and Salimans 2022, eq. 6, where the weight w is ``guidance - 1``)::

        m   = cond                                 if uncond is None
              uncond + guidance * (cond - uncond)  otherwise
        d   = clip(estimate_sample * sample + estimate_output * m, -estimate_limit, estimate_limit)
        out = sample_coef * sample + output_coef * m + Σₖ history_coefs[k] * history[k]
              + estimate_coef * d + noise_coef * noise
        estimate = d
        next_input = next_again = next_scale * out

    All arrays are float32, C-contiguous and of one shape, which may be any. Coefficients are Python floats,
    rounded to float32 once. At most 8 history arrays. By default d is m, bit for bit.

    ``out`` is allocated when None; ``estimate``, ``next_input`` and ``next_again`` are written when they are
    given. Each may be one of the inputs itself, ``out`` most often ``sample``; outputs that overlap each
    other and a partial overlap with an input are refused. ``isa`` runs this call with another instruction
    set than the process's; tests and benchmarks use it.

    Raises :class:`fastdiff.errors.InputError` for another dtype, shape or layout, a count of coefficients
    that differs from that of the arrays, noise that is missing while its coefficient is not zero, and a
    limit below 0.
    """
    if out is None:
        out = np.empty(np.shape(sample), np.float32)
    _C.scheduler_step(
        sample,
        cond,
        uncond,
        guidance,
        sample_coef,
        output_coef,
        history,
        history_coefs,
        noise,
        noise_coef,
        estimate_sample,
        estimate_output,
        estimate_limit,
        estimate_coef,
        next_scale,
        out,
        estimate,
        next_input,
        next_again,
        isa,
    )
    return out
