"""What a case needs before it can be measured: weights, inputs and PyTorch's outputs, ONNX files, engines.

Each function runs in a child process of its own: what it occupies is free again before anything is timed.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import importlib.util
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fastdiff.bench.agreement import compare, half_limit
from fastdiff.bench.case import Job
from fastdiff.bench.configs import PUBLISHED
from fastdiff.build.build import build_engine
from fastdiff.build.capture import CapturedModule, capture
from fastdiff.build.checkpoint import Checkpoint, load_checkpoint
from fastdiff.build.modules import PART_CLASSES, module_spec, part_class, random_inputs
from fastdiff.build.onnx import export_onnx
from fastdiff.build.passes import run_passes
from fastdiff.build.weights import quiet, weight_files
from fastdiff.config import Precision
from fastdiff.engine_dir import file_sha256
from fastdiff.targets import get_target

__all__ = ["PublishedCheckpoint", "build", "export", "find_checkpoint", "reference", "write_weights"]

_SEED = 0
_VOCABULARY = 49408
"""CLIP's, which all Stable Diffusion 1 models have."""


@dataclass(frozen=True)
class PublishedCheckpoint(Checkpoint):
    """A published configuration as a checkpoint that has one part only, without tokenizers or schedule."""

    def sha256(self) -> str:
        """Hash over the part's weights."""
        part = PUBLISHED[self.name].part
        names = [file_sha256(file) for file in weight_files(self.path / part, part)]
        return hashlib.sha256("\n".join(names).encode()).hexdigest()


def find_checkpoint(name: str, folder: Path) -> Checkpoint:
    """The checkpoint of a model: a published configuration below ``folder``, a diffusers folder, or a
    shipped one. Raises CheckpointError.
    """
    if name not in PUBLISHED:
        return load_checkpoint(name)
    published = PUBLISHED[name]
    configs: dict[str, dict[str, Any]] = {
        "scheduler": {},
        "text_encoder": {"vocab_size": _VOCABULARY},
        published.part: dict(published.config),
    }
    classes = {published.part: PART_CLASSES[published.part][1]}
    return PublishedCheckpoint(folder / name, name, False, configs, published.model, classes)


def write_weights(name: str, folder: str) -> None:
    """Write a published configuration with weights as its library initialises them, seeded, in float32."""
    import torch

    published = PUBLISHED[name]
    torch.manual_seed(_SEED)
    with quiet():
        part = part_class(published.part).from_config(dict(published.config))
        target = Path(folder) / name / published.part
        # what a run that is stopped leaves behind must not be taken for weights by the next one
        partial = target.with_name(f"{target.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        # in one file, which contestants map; the library would cut it at 10 GB
        part.save_pretrained(partial, safe_serialization=True, max_shard_size="100GB")
        partial.rename(target)


def reference(job: Job) -> dict[str, Any]:
    """Write inputs and PyTorch's outputs in fp32; ``weights`` and ``arrays`` in bytes, ``flops`` of one call,
    and ``limit``, how far results in half precision may be off (None in fp32).

    For pictures the outputs are diffusers' picture, and there are neither inputs nor figures.
    """
    from fastdiff.bench.flops import count_flops

    arrays: dict[str, Any] = {}
    figures: dict[str, Any] = {"weights": 0, "arrays": 0, "flops": 0}
    case = job.case
    if case.module:
        spec = module_spec(case.module, job.model)
        arrays = random_inputs(spec, case.sizes(job.model), _SEED, job.vocab_size)
    expected, contestant = _outputs(replace(job, case=replace(case, precision="fp32")), arrays)
    if not all(np.isfinite(array).all() for array in expected.values()):
        from fastdiff.errors import NumericError

        raise NumericError(f"{case.label}: PyTorch itself gives NaN or infinity, so nothing can be compared")
    np.savez(job.inputs, **arrays)
    np.savez(job.expected, **expected)
    if case.module:
        module = contestant.module
        tensors = (*module.parameters(), *module.buffers())
        figures["weights"] = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        figures["arrays"] = sum(array.nbytes for array in (*arrays.values(), *expected.values()))
        figures["flops"] = count_flops(job.folder, case.module, job.model, case)
    del contestant
    gc.collect()
    figures["limit"] = None if case.precision == "fp32" else _limit(job, arrays, expected)
    return figures


def _outputs(job: Job, arrays: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    """What PyTorch computes for a job, and the contestant that did."""
    from fastdiff.bench.contestants import open_contestant

    if not job.case.module and importlib.util.find_spec("diffusers") is None:
        contestant = _native_pictures(job)
    else:
        contestant = open_contestant(job)
    contestant.load()
    return contestant.fetch(contestant.run(contestant.place(arrays))), contestant


def _native_pictures(job: Job) -> Any:
    """Pictures of the native engine in fp32, which its tests hold to those of diffusers."""
    from fastdiff.bench.pictures import PictureEngine

    case, path = job.case, Path(job.expected).with_name("reference.fd")
    if not path.exists():
        build_engine(
            load_checkpoint(job.checkpoint), path, target="native", height=case.height, width=case.width
        )
    return PictureEngine(replace(job, engine=str(path)))


LEAST_HALF_PSNR = 35.0
"""PSNR in dB wanted of pictures in half precision where diffusers, whose error is the measure, is missing."""


def _limit(job: Job, arrays: dict[str, Any], expected: dict[str, Any]) -> float:
    """Twice PyTorch's own error in the case's precision, or in bf16 where fp16 overflows."""
    case = job.case
    if not case.module and importlib.util.find_spec("diffusers") is None:
        return LEAST_HALF_PSNR
    for precision in dict.fromkeys((case.precision, "bf16")):
        found, contestant = _outputs(replace(job, case=replace(case, precision=precision)), arrays)
        del contestant
        gc.collect()
        with contextlib.suppress(ValueError):
            return half_limit(compare(found, expected))
    from fastdiff.errors import NumericError

    raise NumericError(f"{case.label}: PyTorch gives NaN or infinity in half precision as well")


def export(name: str, folder: str, module: str, path: str) -> str:
    """Write a module as ONNX with symbolic sizes, after the passes that every target has; the file's name."""
    checkpoint = find_checkpoint(name, Path(folder))
    spec = module_spec(module, checkpoint.spec)
    part = checkpoint.load(spec.part)
    captured = capture(CapturedModule(spec, spec.wrap(part), part))
    assert captured.program is not None
    captured = captured.with_program(run_passes(captured.program))
    gc.collect()
    files = export_onnx(captured, Path(path))
    return str(files[0])


def build(
    name: str,
    folder: str,
    modules: list[str],
    target: str,
    output: str,
    height: int,
    width: int,
    precision: str = "fp32",
) -> str:
    """Build an engine that has ``modules``, verified as every engine is; its folder.

    In fp32 where its target does not have the precision.
    """
    checkpoint = find_checkpoint(name, Path(folder))
    wanted = Precision(precision)
    build_engine(
        checkpoint,
        output,
        modules=tuple(modules),
        target=target,
        precision=wanted if wanted in get_target(target).PRECISIONS else Precision.FP32,
        height=height,
        width=width,
    )
    return output
