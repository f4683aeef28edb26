"""``scheduler_step`` and ``table_step`` in CUDA C++, with the noise of PyTorch's CUDA generator if asked for:
``csrc/cuda/scheduler_step.cu``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastdiff.errors import InputError
from fastdiff.kernels.cuda.loader import architecture, kernel, launch
from fastdiff.kernels.reference import TABLE_COLUMNS
from fastdiff.samplers.random import philox_threads

__all__ = ["Draws", "normal", "scheduler_step", "table_step"]

_SUFFIX = {torch.float16: "_f16", torch.bfloat16: "_bf16", torch.float32: "_f32"}
_THREADS = 256
_MAX_HISTORY = 8


@dataclass(frozen=True)
class Draws:
    """Noise that kernels make themselves, equal to what ``torch.randn(…, device="cuda", generator=g)`` draws.

    ``state``: (2,) int64 on the GPU, the generator's seed (as two's complement) and its offset, a multiple
    of 4, before the first draw. It is read when a kernel runs, so that a captured graph serves any seed.
    ``threads``: of :func:`fastdiff.samplers.random.philox_threads`, for the GPU whose numbers are wanted,
    None for the one that runs.
    """

    state: Tensor
    threads: int | None = None

    @staticmethod
    def after(generator: torch.Generator) -> Draws:
        """The draws that ``generator``, a CUDA generator, would make next; it does not move."""
        # A CUDA generator's state is its seed and its offset, 8 bytes each.
        words = generator.get_state().view(torch.int64)
        return Draws(words.to(generator.device))

    def threads_for(self, size: int) -> int:
        """The number of threads that PyTorch takes for a draw of ``size``."""
        if self.threads is not None:
            return self.threads
        properties = torch.cuda.get_device_properties(self.state.device)
        return philox_threads(
            size, properties.multi_processor_count, properties.max_threads_per_multi_processor
        )

    def arguments(self, size: int) -> tuple[Tensor, int]:
        """What a kernel takes, after a check."""
        if self.state.shape != (2,) or self.state.dtype != torch.int64:
            raise InputError(
                f"state: found {self.state.dtype} of shape {tuple(self.state.shape)}, wanted two int64"
            )
        return self.state, self.threads_for(size)


def normal(draws: Draws, number: int, shape: Sequence[int]) -> Tensor:
    """Draw ``number`` (0 is the first) of ``draws``, each of ``shape``, float32."""
    out = torch.empty(tuple(shape), dtype=torch.float32, device=draws.state.device)
    if out.numel() == 0:
        return out
    state, threads = draws.arguments(out.numel())
    run = kernel("scheduler_step", "normal", architecture(out.device.index))
    launch(run, _blocks(out.numel()), _THREADS, (state, number, threads, out, out.numel()))
    return out


def scheduler_step(
    sample: Tensor,
    cond: Tensor,
    uncond: Tensor | None,
    guidance: float,
    sample_coef: float,
    output_coef: float,
    history: Sequence[Tensor],
    history_coefs: Sequence[float],
    noise: Tensor | Draws | None = None,
    noise_coef: float = 0.0,
    *,
    out: tuple[Tensor | None, Tensor | None] = (None, None),
) -> tuple[Tensor, Tensor]:
    """One solver step; :func:`fastdiff.kernels.reference.scheduler_step`.

    All tensors are contiguous, of one shape and of one type, fp16, bf16 or fp32; sums are float32. At most
    8 ``history`` tensors. ``noise`` may be :class:`Draws`, of which the first is taken. ``out``: (out,
    guided), which may be inputs themselves.
    """
    given = noise if isinstance(noise, Tensor) else None
    tensors = {"sample": sample, "cond": cond, "uncond": uncond, "noise": given}
    tensors |= {f"history[{k}]": tensor for k, tensor in enumerate(history)}
    results = [torch.empty_like(sample) if tensor is None else tensor for tensor in out]
    tensors |= {"out": results[0], "guided": results[1]}
    for name, tensor in tensors.items():
        if tensor is not None:
            _check(name, tensor, sample.shape, sample.dtype)
    if sample.dtype not in _SUFFIX:
        raise InputError(f"sample: found {sample.dtype}, wanted float16, bfloat16 or float32")
    if len(history) != len(history_coefs) or len(history) > _MAX_HISTORY:
        raise InputError(
            f"history: found {len(history)} tensors and {len(history_coefs)} coefficients, wanted as many, "
            f"{_MAX_HISTORY} at most"
        )
    size = sample.numel()
    if size:
        missing = _MAX_HISTORY - len(history)
        state, threads = noise.arguments(size) if isinstance(noise, Draws) else (None, 0)
        arguments = (
            *(sample, cond, uncond, float(guidance), float(sample_coef), float(output_coef)),
            *(*history, *(None,) * missing),
            *(*(float(coef) for coef in history_coefs), *(0.0,) * missing),
            *(len(history), given, state, threads, float(noise_coef), *results, size),
        )
        name = f"scheduler_step{_SUFFIX[sample.dtype]}"
        run = kernel("scheduler_step", name, architecture(sample.device.index))
        launch(run, _blocks(size), _THREADS, arguments)
    return results[0], results[1]


def table_step(
    sample: Tensor,
    output: Tensor,
    slots: Tensor,
    rows: Tensor,
    saves: Tensor,
    counter: Tensor,
    guided: bool,
    noise: Tensor | Draws | None = None,
    rescale: Tensor | None = None,
    threshold: Tensor | None = None,
    *,
    out: tuple[Tensor | None, Tensor | None, Tensor | None] = (None, None, None),
) -> tuple[Tensor, Tensor, Tensor]:
    """Step ``counter`` of a table; :func:`fastdiff.kernels.reference.table_step`.

    Every tensor is contiguous. ``noise`` may be :class:`Draws`: step i takes draw i. ``out``: (x', slots,
    model input), where x' may be ``sample`` itself and the slots ``slots``: a loop passes them and changes
    in place.
    """
    twice = 2 if guided else 1
    images, size, slot_count = sample.shape[0], sample.numel(), slots.shape[0]
    given = noise if isinstance(noise, Tensor) else None
    _check("sample", sample, sample.shape, torch.float32)
    if output.dtype not in _SUFFIX:
        raise InputError(f"output: found {output.dtype}, wanted float16, bfloat16 or float32")
    _check("output", output, (twice * images, *sample.shape[1:]), output.dtype)
    _check("slots", slots, (slot_count, *sample.shape), torch.float32)
    steps = rows.shape[0]
    _check("rows", rows, (steps, len(TABLE_COLUMNS) + slot_count), torch.float32)
    _check("saves", saves, (steps, 2), torch.int32)
    _check("counter", counter, (1,), torch.int32)
    if given is not None:
        _check("noise", given, (steps, *sample.shape), torch.float32)
    for name, tensor in (("rescale", rescale), ("threshold", threshold)):
        if tensor is not None:
            _check(name, tensor, (images,), torch.float32)
    wanted = (sample, slots, output)
    names = ("out", "slots afterwards", "model input")
    results = [
        torch.empty_like(like) if given is None else given for given, like in zip(out, wanted, strict=True)
    ]
    for name, result, like in zip(names, results, wanted, strict=True):
        _check(name, result, like.shape, like.dtype)
    if size:
        state, threads = noise.arguments(size) if isinstance(noise, Draws) else (None, 0)
        arguments = (
            *(sample, output, slots, rows, saves, counter, given, state, threads, rescale, threshold),
            *(*results, int(guided), slot_count, size, size // images),
        )
        name = f"table_step{_SUFFIX[output.dtype]}"
        run = kernel("scheduler_step", name, architecture(sample.device.index))
        launch(run, _blocks(size), _THREADS, arguments)
    return results[0], results[1], results[2]


def _blocks(size: int) -> int:
    return -(-size // _THREADS)


def _check(name: str, tensor: Tensor, shape: Sequence[int], dtype: torch.dtype) -> None:
    if tuple(tensor.shape) != tuple(shape) or tensor.dtype != dtype or not tensor.is_contiguous():
        layout = "" if tensor.is_contiguous() else "strided "
        raise InputError(
            f"{name}: found {layout}{tensor.dtype} of shape {tuple(tensor.shape)}, "
            f"wanted contiguous {dtype} of shape {tuple(shape)}"
        )
