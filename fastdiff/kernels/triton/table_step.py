"""``reference.table_step`` in Triton: a sampler's step with coefficients and counter in device memory.

Bytes: the sample, the model's output and what the row's coefficients ask for of slots and noise are read
once; the sample, the slots that the row saves into and the model's next input are written once. One launch,
without the host. Products and sums are explicit fused multiply-adds: the result's bits do not depend on the
tiling.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdiff.errors import InputError
from fastdiff.kernels import reference
from fastdiff.kernels.reference import TABLE_COLUMNS
from fastdiff.kernels.triton.aot import Build
from fastdiff.kernels.triton.launch import DTYPES, Config, launch
from fastdiff.kernels.triton.scheduler_step import check_dense
from fastdiff.kernels.triton.specialise import specialise

__all__ = ["builds", "configs", "table_step"]

_SIZES = ("inner", "batch", "slot_count")
_COLUMNS = tl.constexpr(len(TABLE_COLUMNS))
_GUIDANCE = tl.constexpr(TABLE_COLUMNS.index("guidance"))
_SAMPLE = tl.constexpr(TABLE_COLUMNS.index("sample"))
_OUTPUT = tl.constexpr(TABLE_COLUMNS.index("output"))
_NOISE = tl.constexpr(TABLE_COLUMNS.index("noise"))
_ESTIMATE_SAMPLE = tl.constexpr(TABLE_COLUMNS.index("estimate_sample"))
_ESTIMATE_OUTPUT = tl.constexpr(TABLE_COLUMNS.index("estimate_output"))
_ESTIMATE_LIMIT = tl.constexpr(TABLE_COLUMNS.index("estimate_limit"))
_ESTIMATE_WEIGHT = tl.constexpr(TABLE_COLUMNS.index("estimate_weight"))
_NEXT_SCALE = tl.constexpr(TABLE_COLUMNS.index("next_scale"))


@triton.jit
def _scaled_sum(factor: tl.tensor, a: tl.tensor, b: tl.tensor) -> tl.tensor:
    """``factor * a + b`` with one rounding, ``factor`` a scalar."""
    return tl.fma(tl.zeros_like(a) + factor, a, b)


@triton.jit
def _clamp(x: tl.tensor, limit: tl.tensor) -> tl.tensor:
    """``x`` within ±limit; NaN stays."""
    low = tl.maximum(x, -limit, propagate_nan=tl.PropagateNan.ALL)
    return tl.minimum(low, limit, propagate_nan=tl.PropagateNan.ALL)


@triton.jit(do_not_specialize=_SIZES)
def _table_step_kernel(
    sample: tl.tensor,
    output: tl.tensor,
    slots: tl.tensor,
    rows: tl.tensor,
    saves: tl.tensor,
    counter: tl.tensor,
    noise: tl.tensor,
    rescale: tl.tensor,
    threshold: tl.tensor,
    model_input: tl.tensor,
    inner: tl.tensor,  # elements of one picture
    batch: tl.tensor,
    slot_count: tl.tensor,
    GUIDED: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    step = tl.load(counter)
    row = rows + step * (_COLUMNS + slot_count)
    picture = tl.program_id(1)
    element = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = element < inner
    at = picture.to(tl.int64) * inner + element
    size = batch.to(tl.int64) * inner  # of the sample and of each slot

    none = tl.zeros([BLOCK], tl.float32)  # adds an axis: the interpreter compares scalars wrongly

    x = tl.load(sample + at, mask, 0.0)
    m = tl.load(output + at, mask, 0.0).to(tl.float32)
    if GUIDED:
        cond = tl.load(output + size + at, mask, 0.0).to(tl.float32)
        m = _scaled_sum(tl.load(row + _GUIDANCE), cond - m, m)
    if rescale is not None:
        m = m * tl.load(rescale + picture).to(tl.float32)
    y = _scaled_sum(tl.load(row + _OUTPUT), m, tl.load(row + _SAMPLE) * x)
    for slot in range(slot_count):
        coef = tl.load(row + _COLUMNS + slot)
        # What no coefficient asks for is not read.
        kept = tl.load(slots + slot * size + at, mask & (none + coef != 0.0), 0.0)
        y = _scaled_sum(coef, kept, y)
    if noise is not None:
        coef = tl.load(row + _NOISE)
        drawn = tl.load(noise + step * size + at, mask & (none + coef != 0.0), 0.0).to(tl.float32)
        y = _scaled_sum(coef, drawn, y)
    weight = tl.load(row + _ESTIMATE_WEIGHT)
    d = _scaled_sum(tl.load(row + _ESTIMATE_OUTPUT), m, tl.load(row + _ESTIMATE_SAMPLE) * x)
    if threshold is not None:
        limit = tl.load(threshold + picture).to(tl.float32)
        d = tl.div_rn(_clamp(d, none + limit), none + limit)
    else:
        d = _clamp(d, none + tl.load(row + _ESTIMATE_LIMIT))
    y = tl.where(none + weight != 0.0, _scaled_sum(weight, d, y), y)

    tl.store(sample + at, y, mask)
    to = tl.load(saves + 2 * step)
    if to >= 0:
        tl.store(slots + to * size + at, x, mask)
    to = tl.load(saves + 2 * step + 1)
    if to >= 0:
        tl.store(slots + to * size + at, d, mask)
    following = (tl.load(row + _NEXT_SCALE) * y).to(model_input.dtype.element_ty)
    tl.store(model_input + at, following, mask)
    if GUIDED:
        tl.store(model_input + size + at, following, mask)


def table_step(
    sample: Tensor,
    output: Tensor,
    slots: Tensor,
    rows: Tensor,
    saves: Tensor,
    counter: Tensor,
    guided: bool,
    noise: Tensor | None = None,
    rescale: Tensor | None = None,
    threshold: Tensor | None = None,
    *,
    model_input: Tensor | None = None,
    config: Config | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`reference.table_step` in place: ``sample`` and ``slots`` are updated and returned.

    ``output``: fp16, bf16 or fp32; ``noise`` and ``rescale``, ``threshold`` of any of these. Pictures lie
    densely in one order, contiguous or channels-last. ``model_input``, like ``output``, is allocated when
    None. A slot whose coefficient is 0 is not read and may hold anything. The host reads nothing back: a
    ``counter`` that is not a row of ``rows`` is not noticed.
    """
    reference.check_table_step(sample, output, slots, rows, saves, counter, guided, noise, rescale, threshold)
    if model_input is None:
        model_input = torch.empty_like(output)
    elif model_input.shape != output.shape or model_input.dtype != output.dtype:
        raise InputError(
            f"model_input: found {tuple(model_input.shape)} of {model_input.dtype}, wanted "
            f"{tuple(output.shape)} of {output.dtype}"
        )
    check_dense(sample, output=output, slots=slots, noise=noise, model_input=model_input)
    wanted = {
        "sample": (sample, torch.float32),
        "slots": (slots, torch.float32),
        "rows": (rows, torch.float32),
        "saves": (saves, torch.int32),
        "counter": (counter, torch.int32),
    }
    for name, (tensor, dtype) in wanted.items():
        if tensor.dtype != dtype or tensor.device != sample.device:
            raise InputError(
                f"{name}: found {tensor.dtype} on {tensor.device}, wanted {dtype} on {sample.device}"
            )
    for name, vector in (("rows", rows), ("saves", saves), ("rescale", rescale), ("threshold", threshold)):
        if vector is not None and not vector.is_contiguous():
            raise InputError(f"{name}: found strides {vector.stride()}, wanted a contiguous tensor")
    config = config or configs()[0]
    batch = sample.shape[0]
    inner = sample.numel() // batch if batch else 0
    launch(
        _table_step_kernel,
        (triton.cdiv(inner, config["BLOCK"]), batch),
        *(sample, output, slots if slots.numel() else sample, rows, saves, counter),
        *(noise, rescale, threshold, model_input, inner, batch, slots.shape[0]),
        config=config,
        GUIDED=guided,
    )
    return sample, slots, model_input


def configs() -> tuple[Config, ...]:
    """Tilings worth measuring, the default first: latents are small, so many short programs."""
    return tuple(Config.of(warps, 1, BLOCK=block) for block, warps in ((512, 4), (256, 2), (1024, 4)))


def builds(dtype: torch.dtype, arch: int) -> Iterator[Build]:
    """Guided, without and with noise, rescaling and thresholding."""
    del arch
    half = f"*{DTYPES[dtype]}"
    always = {
        "sample": "*fp32",
        "output": half,
        "slots": "*fp32",
        "rows": "*fp32",
        "saves": "*i32",
        "counter": "*i32",
        "model_input": half,
    }
    optional = dict.fromkeys(("noise", "rescale", "threshold"), "*fp32")
    for name, more in (("", {}), (" with noise, rescale, threshold", optional)):
        yield specialise(
            f"table_step{name}",
            _table_step_kernel,
            {**always, **more},
            {"GUIDED": True},
            configs()[0],
            sizes=_SIZES,
        )
