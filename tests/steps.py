"""Steps of a test, each in a process of its own: its memory is measured, and free afterwards.

``python -m tests.steps STEP ARGUMENTS``, where the arguments are a JSON object. What a step prints last is
its result, as JSON.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fastdiff.system_memory import available_memory
from tests.memory import Watch, resident

__all__ = ["run"]

_LEAST_AVAILABLE = 2 << 30
"""Bytes of the machine's memory under which a step is stopped: whoever else uses it needs some."""


def run(step: str, **arguments: Any) -> dict[str, Any]:
    """The result of a step. Fails with the end of what it printed, or when the machine's memory runs out."""
    command = [sys.executable, "-m", "tests.steps", step, json.dumps(arguments)]
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, stdout=output, stderr=errors)
        try:
            while process.poll() is None:
                if (available_memory() or 0) < _LEAST_AVAILABLE:
                    process.kill()
                    raise MemoryError(f"{step} was stopped: less than {_LEAST_AVAILABLE >> 30} GiB available")
                time.sleep(0.5)
        finally:
            process.kill()
            process.wait()
        output.seek(0)
        errors.seek(0)
        if process.returncode:
            raise RuntimeError(f"{step} failed: {errors.read()[-4000:]}")
        found: dict[str, Any] = json.loads(output.read().splitlines()[-1])
    return found


def write(model: str, folder: str) -> dict[str, Any]:
    """A checkpoint of a published configuration with random weights in float32, conditioned."""
    from tests.full.families import files_of
    from tests.random_weights import condition, fp32_bytes, write_checkpoint

    write_checkpoint(Path(folder), files_of(model))
    condition(Path(folder))
    return {"fp32_bytes": fp32_bytes(Path(folder))}


def build(
    checkpoint: str,
    output: str,
    warm: str | None = None,
    tune: bool = True,
    external: bool = False,
    **options: Any,
) -> dict[str, Any]:
    """An engine; peaks of all stages, and the error of each module against PyTorch.

    With ``warm``, a tiny checkpoint, an engine of that is built first: what the process holds afterwards
    (libraries and what they keep) is no matter of the model, and is given as ``base``. Without ``tune`` each
    layer is measured once. ``external`` stores ONNX weights beside the model, as those of large models are.
    """
    from fastdiff.build.build import Stage, build_engine
    from fastdiff.build.memory import release

    if not tune:
        from fastdiff.targets.native import compiler

        compiler._ROUNDS, compiler._SECONDS = 1, 1e-6
    if external:
        from fastdiff.build import onnx

        onnx.EXTERNAL_DATA_LIMIT = 0
    if warm is not None:
        with tempfile.TemporaryDirectory() as folder:
            build_engine(warm, f"{folder}/warm.fd", **options)
        release()
    base = resident()
    watch = Watch().start()

    def progress(stage: Stage) -> None:
        if stage.fraction == 0:
            watch.enter(f"{stage.module} {stage.stage}")

    summary = build_engine(checkpoint, output, progress=progress, **options)
    stages = watch.stop()
    return {
        "base": dataclasses.asdict(base),
        "stages": {stage: dataclasses.asdict(peak) for stage, peak in stages.items()},
        "errors": {module.name: module.relative_l2 for module in summary.modules},
        "bytes": {module.name: module.bytes for module in summary.modules},
        "seconds": summary.seconds,
    }


def expected(checkpoint: str, module: str, sizes: list[dict[str, int]], file: str) -> dict[str, Any]:
    """What PyTorch computes of a module at each of the sizes, with its inputs, as arrays in a file."""
    from fastdiff.build.build import captured_module
    from fastdiff.build.checkpoint import load_checkpoint
    from fastdiff.build.modules import module_spec
    from fastdiff.build.verify import expect
    from fastdiff.config import Precision

    source = load_checkpoint(checkpoint)
    loaded = captured_module(source, module_spec(module, source.spec), False, lambda stage: None)
    found = expect(loaded, source.spec, source.vocab_size, Precision.FP32, sizes=sizes)
    arrays = {}
    for index, (given, outputs) in enumerate(zip(found.inputs, found.outputs, strict=True)):
        arrays |= {f"{index} in {name}": array for name, array in given.items()}
        arrays |= {f"{index} out {name}": array for name, array in outputs.items()}
    np.savez(file, **arrays)
    return {}


def errors(engine: str, module: str, count: int, file: str) -> dict[str, Any]:
    """The relative L2 error of a module at each of the sizes that ``expected`` wrote."""
    from fastdiff.build.verify import Expected, measure
    from fastdiff.config import TOLERANCES, Precision
    from fastdiff.engine_dir import open_engine

    found = []
    with open_engine(engine).open_module(module) as session, np.load(file) as arrays:
        for index in range(count):
            given, outputs = (
                {
                    name.split(" ", 2)[2]: arrays[name]
                    for name in arrays.files
                    if name.startswith(f"{index} {kind} ")
                }
                for kind in ("in", "out")
            )
            one = Expected((given,), (outputs,), TOLERANCES[Precision.FP32])
            found.append(measure(session, one).relative_l2)
    return {"errors": found, "peak": dataclasses.asdict(resident())}


def write_original(checkpoint: str, file: str) -> dict[str, Any]:
    """The weights of a diffusers folder as one file in the layout of the model's own code, in halves."""
    import torch

    from tests.original_layout import single_file

    single_file(Path(checkpoint), Path(file), dtype=torch.float16)
    return {}


def compare_original(checkpoint: str, file: str, part: str) -> dict[str, Any]:
    """The names of a part's tensors that are not the folder's, rounded to halves; what reading it took."""
    import torch
    from safetensors import safe_open

    from fastdiff.build.checkpoint import load_checkpoint

    source = load_checkpoint(file)
    base = resident().anonymous
    watch = Watch().start()
    watch.enter("load")
    ours = source.load(part).state_dict()
    peak = watch.stop()["load"]
    different, size = set(ours), 0
    for shard in Path(checkpoint, part).glob("*.safetensors"):
        with safe_open(shard, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118, no mapping
                wanted = tensors.get_tensor(name).half().float()
                size += 4 * wanted.numel()
                if name in ours and torch.equal(ours[name], wanted):
                    different.discard(name)
                else:
                    different.add(name)
    return {
        "tensors": len(ours),
        "different": sorted(different),
        "bytes": size,
        "peak": {"anonymous": peak.anonymous - base, "resident": peak.resident},
    }


def draw(
    checkpoint: str, scheduler: str | None, calls: list[dict[str, Any]], file: str, task: str
) -> dict[str, Any]:
    """The pictures of diffusers' own pipeline; ``seed`` seeds a CPU generator, ``scheduler`` None leaves the
    checkpoint's.
    """
    import diffusers
    import torch

    from tests.full.calls import their_call

    pipe = diffusers.DiffusionPipeline.from_pretrained(
        checkpoint, torch_dtype=torch.float32, local_files_only=True
    )
    pipe.set_progress_bar_config(disable=True)
    if scheduler is not None:
        pipe.scheduler = getattr(diffusers, scheduler).from_config(pipe.scheduler.config)
    pictures = {}
    for index, call in enumerate(calls):
        generator = torch.Generator().manual_seed(call["seed"])
        images = pipe(**their_call(task, call), generator=generator).images
        pictures[str(index)] = np.stack([np.asarray(image) for image in images])
    np.savez(file, **pictures)
    return {}


def compare(engine: str, calls: list[dict[str, Any]], file: str, task: str) -> dict[str, Any]:
    """PSNR of the engine's pictures for the same calls, and what more pipelines take.

    ``flat`` and ``saturated`` say whether diffusers' pictures show anything to compare.
    """
    import fastdiff
    from tests.full.calls import our_pictures
    from tests.oracle import psnr

    pipes = [fastdiff.load(engine)]
    rows = []
    with np.load(file) as arrays:
        for index, call in enumerate(calls):
            theirs = arrays[str(index)]
            ours = our_pictures(pipes[0], task, call)
            rows.append(
                {
                    "psnr": min(psnr(a, b) for a, b in zip(ours, theirs, strict=True)),
                    "spread": float(theirs.std()),
                    "inside": float(((theirs > 0) & (theirs < 255)).mean()),
                }
            )
    one = resident()
    for _ in range(2):
        pipes.append(fastdiff.load(engine))
        our_pictures(pipes[-1], task, calls[0])
    three = resident()
    return {"pictures": rows, "one": dataclasses.asdict(one), "three": dataclasses.asdict(three)}


_STEPS: Mapping[str, Callable[..., dict[str, Any]]] = {
    step.__name__: step
    for step in (write, build, expected, errors, draw, compare, write_original, compare_original)
}

if __name__ == "__main__":
    sys.stdout.write(json.dumps(_STEPS[sys.argv[1]](**json.loads(sys.argv[2]))) + "\n")
