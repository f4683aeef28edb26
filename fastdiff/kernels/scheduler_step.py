"""One step of a sampler with classifier-free guidance, in one pass over memory."""

from __future__ import annotations

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
    out: FloatArray | None = None,
    guided: FloatArray | None = None,
    isa: str | None = None,
) -> tuple[FloatArray, FloatArray]:
    """Return ``(out, guided)`` of one step.

    With classifier-free guidance (Ho and Salimans 2022, eq. 6, where the weight w is ``guidance - 1``)::

        m   = cond                                 if uncond is None
              uncond + guidance * (cond - uncond)  otherwise
        out = sample_coef * sample + output_coef * m + Σₖ history_coefs[k] * history[k] + noise_coef * noise
        guided = m

    All arrays are float32, C-contiguous and of one shape, which may be any. Coefficients are Python floats,
    rounded to float32 once. At most 8 history arrays.

    ``out`` and ``guided`` are allocated when None, and returned. Each may be one of the inputs itself,
    ``out`` most often ``sample`` and ``guided`` ``cond``; a partial overlap is refused. ``isa`` runs this
    call with another instruction set than the process's; tests and benchmarks use it.

    Raises :class:`fastdiff.errors.InputError` for another dtype, shape or layout, a count of coefficients
    that differs from that of the arrays, or noise that is missing while its coefficient is not zero.
    """
    if out is None:
        out = np.empty(np.shape(sample), np.float32)
    if guided is None:
        guided = np.empty(np.shape(sample), np.float32)
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
        out,
        guided,
        isa,
    )
    return out, guided
