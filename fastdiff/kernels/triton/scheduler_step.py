"""``fastdiff::scheduler_step`` in Triton: guidance and a solver's update, with coefficients from the host.

Bytes: the sample, the model's outputs, each array of history and the noise are read once, the next sample
and the guided output written once. Products and sums are explicit fused multiply-adds, so that the result's
bits do not depend on the tiling.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdiff.errors import InputError
from fastdiff.kernels import reference
from fastdiff.kernels.triton.aot import Build
from fastdiff.kernels.triton.launch import DTYPES, Config, launch
from fastdiff.kernels.triton.specialise import specialise

__all__ = ["builds", "check_dense", "configs", "scheduler_step"]

_MOST_HISTORY = 4
_NUMBERS = ("guidance", "sample_coef", "output_coef", "coef0", "coef1", "coef2", "coef3", "noise_coef")


@triton.jit(do_not_specialize=["count"])
def _scheduler_step_kernel(
    sample: tl.tensor,
    cond: tl.tensor,
    uncond: tl.tensor,
    history0: tl.tensor,
    history1: tl.tensor,
    history2: tl.tensor,
    history3: tl.tensor,
    noise: tl.tensor,
    out: tl.tensor,
    guided: tl.tensor,
    count: tl.tensor,
    guidance: tl.tensor,
    sample_coef: tl.tensor,
    output_coef: tl.tensor,
    coef0: tl.tensor,
    coef1: tl.tensor,
    coef2: tl.tensor,
    coef3: tl.tensor,
    noise_coef: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = at < count
    m = tl.load(cond + at, mask, 0.0).to(tl.float32)
    if uncond is not None:
        u = tl.load(uncond + at, mask, 0.0).to(tl.float32)
        m = tl.fma(tl.zeros_like(m) + guidance, m - u, u)
    x = sample_coef * tl.load(sample + at, mask, 0.0).to(tl.float32)
    x = tl.fma(tl.zeros_like(m) + output_coef, m, x)
    if history0 is not None:
        x = tl.fma(tl.zeros_like(m) + coef0, tl.load(history0 + at, mask, 0.0).to(tl.float32), x)
    if history1 is not None:
        x = tl.fma(tl.zeros_like(m) + coef1, tl.load(history1 + at, mask, 0.0).to(tl.float32), x)
    if history2 is not None:
        x = tl.fma(tl.zeros_like(m) + coef2, tl.load(history2 + at, mask, 0.0).to(tl.float32), x)
    if history3 is not None:
        x = tl.fma(tl.zeros_like(m) + coef3, tl.load(history3 + at, mask, 0.0).to(tl.float32), x)
    if noise is not None:
        x = tl.fma(tl.zeros_like(m) + noise_coef, tl.load(noise + at, mask, 0.0).to(tl.float32), x)
    tl.store(out + at, x.to(out.dtype.element_ty), mask)
    tl.store(guided + at, m.to(guided.dtype.element_ty), mask)


def scheduler_step(
    sample: Tensor,
    cond: Tensor,
    uncond: Tensor | None,
    guidance: float,
    sample_coef: float,
    output_coef: float,
    history: Sequence[Tensor],
    history_coefs: Sequence[float],
    noise: Tensor | None = None,
    noise_coef: float = 0.0,
    *,
    out: tuple[Tensor | None, Tensor | None] = (None, None),
    config: Config | None = None,
) -> tuple[Tensor, Tensor]:
    """:func:`reference.scheduler_step` of fp16, bf16 or fp32, each tensor of its own dtype.

    All tensors lie densely in one order, contiguous or channels-last; at most four in ``history``. ``out``:
    where the next sample, of the dtype of ``sample``, and the guided output, of the dtype of ``cond``, go,
    each allocated when None; ``sample`` and ``cond`` may be among them.
    """
    reference.check_scheduler_step(sample, cond, uncond, history, history_coefs, noise)
    if len(history) > _MOST_HISTORY:
        raise InputError(f"history: found {len(history)} tensors, wanted at most {_MOST_HISTORY}")
    result = torch.empty_like(sample) if out[0] is None else out[0]
    guided = torch.empty_like(cond) if out[1] is None else out[1]
    inputs = {"cond": cond, "uncond": uncond, "noise": noise}
    check_dense(sample, **inputs, **{f"history[{n}]": h for n, h in enumerate(history)})
    for name, tensor, like in (("out[0]", result, sample), ("out[1]", guided, cond)):
        if tensor.shape != like.shape or tensor.dtype != like.dtype:
            raise InputError(
                f"{name}: found {tuple(tensor.shape)} of {tensor.dtype}, wanted {tuple(like.shape)} of "
                f"{like.dtype}"
            )
    check_dense(sample, **{"out[0]": result, "out[1]": guided})
    config = config or configs()[0]
    filled = [*history, *(None,) * (_MOST_HISTORY - len(history))]
    coefs = [*map(float, history_coefs), *(0.0,) * (_MOST_HISTORY - len(history))]
    launch(
        _scheduler_step_kernel,
        (triton.cdiv(sample.numel(), config["BLOCK"]),),
        *(sample, cond, uncond, *filled, noise, result, guided, sample.numel()),
        *(float(guidance), float(sample_coef), float(output_coef), *coefs, float(noise_coef)),
        config=config,
    )
    return result, guided


def check_dense(sample: Tensor, **others: Tensor | None) -> None:
    """Raise InputError unless ``sample`` lies densely in memory and the others' last axes lie like it.

    So what has one distance from the first element is one element of the picture in all of them.
    """
    axes = [(size, stride) for size, stride in zip(sample.shape, sample.stride(), strict=True) if size != 1]
    expected = 1
    for size, stride in sorted(axes, key=lambda axis: axis[1]):
        if stride != expected and sample.numel():
            raise InputError(
                f"sample: found strides {sample.stride()} for shape {tuple(sample.shape)}, wanted none that "
                "leave gaps; call .contiguous()"
            )
        expected *= size
    for name, tensor in {"sample": sample, **others}.items():
        if tensor is None:
            continue
        if tensor.dtype not in DTYPES or tensor.device != sample.device:
            raise InputError(
                f"{name}: found {tensor.dtype} on {tensor.device}, wanted a floating dtype of at most 32 "
                f"bits on {sample.device}"
            )
        inner = zip(tensor.shape[::-1], tensor.stride()[::-1], sample.stride()[::-1], strict=False)
        if any(size > 1 and stride != wanted for size, stride, wanted in inner) and tensor.numel():
            raise InputError(
                f"{name}: found strides {tensor.stride()}, wanted those of sample, {sample.stride()}, at the "
                "end"
            )


def configs() -> tuple[Config, ...]:
    """Tilings worth measuring, the default first: latents are small, so many short programs."""
    return tuple(Config.of(warps, 1, BLOCK=block) for block, warps in ((512, 4), (256, 2), (1024, 4)))


def builds(dtype: torch.dtype, arch: int) -> Iterator[Build]:
    """A multistep solver with guidance."""
    del arch
    kind = f"*{DTYPES[dtype]}"
    model = dict.fromkeys(("cond", "uncond"), kind)
    kept = dict.fromkeys(("sample", "history0", "history1", "history2", "history3", "out"), "*fp32")
    yield specialise(
        "scheduler_step",
        _scheduler_step_kernel,
        {**model, **kept, "guided": kind},
        {},
        configs()[0],
        sizes=("count",),
        numbers=_NUMBERS,
    )
