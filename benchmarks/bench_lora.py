"""Switching a LoRA on an open U-Net of SDXL's layer shapes.

``python benchmarks/bench_lora.py [--target native|onnxruntime|torch] [--depth 1,2,10] [--rank 32]``

The U-Net has the published configuration of SDXL, with ``--depth`` transformers per block on each level
(SDXL: 1, 2, 10) and weights of zeros, which take no memory before they are compiled; with ``--random`` they
are random, as onnxruntime needs them, where layers are found by their weights. Two LoRAs in half precision
are written and read, of the layers of attention and then of every linear layer and convolution:

    file        bytes of the file
    read        read_lora: file to float32 arrays by layer, its SHA-256 included
    first       session.set_adapters from none, the first time that the session has a LoRA
    switch      session.set_adapters from one LoRA to the other, and what the next call has to prepare again
    remove      session.set_adapters from a LoRA to none
    memory      resident memory that the session has more than without
    step        one call of the U-Net (--side, batch 2), without and with the LoRA

Times are wall clock and, behind it, CPU time of the process, each the best of --rounds; with other load on
the machine CPU time over threads is what the machine alone would need. Of onnxruntime a switch makes inputs
of the matrices and nothing else; for SDXL at its published depth, which takes 14 GB of memory with --random,
that part is measured alone as well ("inputs"), and so are the halves that it makes of them for CUDA ("CUDA").
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import describe
from torch import nn

from fastdiff.build.capture import CapturedModule, capture
from fastdiff.build.modules import ModuleSpec
from fastdiff.build.passes import run_passes
from fastdiff.config import Precision, SizeRange, TensorSpec
from fastdiff.lora import LowRank, read_lora
from fastdiff.manifest import ModuleEntry
from fastdiff.published import part_config
from fastdiff.targets import CompileOptions, get_target
from fastdiff.targets.session import Session

Updates = Mapping[str, Any]

SPEC = ModuleSpec(
    "unet",
    "unet",
    (
        TensorSpec("sample", "float32", ("batch", 4, "height", "width")),
        TensorSpec("timestep", "float32", ("batch",)),
        TensorSpec("encoder_hidden_states", "float32", ("batch", "tokens", 2048)),
        TensorSpec("text_embeds", "float32", ("batch", 1280)),
        TensorSpec("time_ids", "float32", ("batch", 6)),
    ),
    (TensorSpec("sample", "float32", ("batch", 4, "height", "width")),),
    {
        "batch": SizeRange(),
        "height": SizeRange(8, None, 4),
        "width": SizeRange(8, None, 4),
        "tokens": SizeRange(),
    },
)


def meta(depth: list[int]) -> Any:
    """SDXL's U-Net without memory for its weights."""
    from diffusers import UNet2DConditionModel

    config = {**part_config("sdxl", "unet"), "transformer_layers_per_block": depth}
    with torch.device("meta"):
        return UNet2DConditionModel.from_config(config)


def unet(depth: list[int], random: bool) -> Any:
    """SDXL's U-Net. Pages of zeros that are only read take no memory."""
    model = meta(depth).to_empty(device="cpu").eval().requires_grad_(False)
    for parameter in model.parameters():
        if random:
            nn.init.normal_(parameter, std=0.02)
        elif parameter.numel() < 1 << 18:  # smaller ones come from memory that was used before
            parameter.zero_()
    return model


def open_compiled(model: Any, target: str, folder: Path, threads: int) -> Session:
    captured = CapturedModule(SPEC, SPEC.wrap(model), model)
    chosen = get_target(target)
    if chosen.NEEDS_GRAPH:
        captured = capture(captured)
        captured = captured.with_program(run_passes(captured.program))
    compiled = chosen.compile(captured, folder, CompileOptions(threads=threads))
    entry = ModuleEntry(
        target=target,
        precision=Precision.FP32,
        inputs=SPEC.inputs,
        outputs=SPEC.outputs,
        shapes=SPEC.shapes,
        files=dict.fromkeys(compiled.files, ""),
        bytes=0,
        error={},
        seconds=0.0,
        tactics=compiled.tactics,
    )
    return chosen.open(folder, "unet", entry, threads)


def write(path: Path, shapes: Mapping[str, tuple[int, ...]], rank: int, seed: int) -> Path:
    """A LoRA in kohya's layout, in halves."""
    from safetensors.numpy import save_file

    rng = np.random.default_rng(seed)
    tensors: dict[str, Any] = {}
    for place, shape in shapes.items():
        stem = "lora_unet_" + place.replace(".", "_")
        taps = (1,) * (len(shape) - 2)
        down = rng.standard_normal((rank, *shape[1:]), np.float32) / math.sqrt(math.prod(shape[1:]))
        tensors[f"{stem}.lora_down.weight"] = down.astype(np.float16)
        up = rng.standard_normal((shape[0], rank, *taps), np.float32)
        tensors[f"{stem}.lora_up.weight"] = up.astype(np.float16)
        tensors[f"{stem}.alpha"] = np.asarray(rank / 2, np.float16)
    save_file(tensors, str(path))
    return path


def best(rounds: int, *actions: Callable[[], object]) -> list[tuple[float, float]]:
    """Wall and CPU seconds of each action, which are done in turns."""
    found = [(math.inf, math.inf)] * len(actions)
    for _ in range(rounds):
        for index, action in enumerate(actions):
            wall, cpu = time.perf_counter(), time.process_time()
            action()
            cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
            found[index] = (min(found[index][0], wall), min(found[index][1], cpu))
    return found


def resident(kind: str = "VmRSS") -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{kind}:"):
            return int(line.split()[1]) << 10
    raise RuntimeError(f"no {kind}")


def shown(seconds: tuple[float, float]) -> str:
    return f"{seconds[0]:8.3f} s wall {seconds[1]:8.3f} s CPU"


def measure(
    session: Session, shapes: Mapping[str, tuple[int, ...]], arguments: Any, folder: Path, fresh: bool
) -> None:
    """``fresh`` is a session that has had no LoRA, whose first one takes longer on some targets."""
    files = [write(folder / f"{seed}.safetensors", shapes, arguments.rank, seed) for seed in (1, 2)]
    (read,) = best(arguments.rounds, lambda: read_lora(files[0], {"unet": session.adaptable()}))
    loras = [read_lora(file, {"unet": session.adaptable()}).modules["unet"] for file in files]
    first, second = ({path: [update] for path, update in lora.items()} for lora in loras)
    side, rng = arguments.side // 8, np.random.default_rng(0)
    inputs = {
        spec.name: rng.standard_normal(
            [{"batch": 2, "tokens": 77, "height": side, "width": side}.get(str(n), n) for n in spec.shape],
            np.float32,
        )
        for spec in SPEC.inputs
    }

    def switch(updates: Updates) -> Callable[[], None]:
        def act() -> None:
            session.set_adapters(updates)
            session.planned_bytes({"batch": 2, "tokens": 77, "height": side, "width": side})

        return act

    plain = session(**inputs)["sample"]
    (without,) = best(2, lambda: session(**inputs))
    before = resident()
    (initial,) = best(1, switch(first))
    a_to_b = best(arguments.rounds, switch(second), switch(first))
    memory = resident() - before
    changed = session(**inputs)["sample"]
    (with_lora,) = best(2, lambda: session(**inputs))
    _, remove = best(arguments.rounds, switch(first), switch({}))
    if not np.array_equal(session(**inputs)["sample"], plain):
        raise SystemExit("without the LoRA the result is another than before; no figures")
    if np.array_equal(changed, plain) and arguments.random:
        raise SystemExit("the LoRA has no effect; no figures")
    print(f"  file    {files[0].stat().st_size / 1e6:8.0f} MB")
    print(f"  read    {shown(read)}")
    if fresh:
        print(f"  first   {shown(initial)}")
    print(f"  switch  {shown(max(a_to_b))}")
    print(f"  remove  {shown(remove)}")
    print(f"  memory  {memory / 1e6:8.0f} MB")
    print(f"  step    {shown(without)}   with the LoRA {shown(with_lora)}", flush=True)


def ones(shape: tuple[int, ...], rank: int) -> LowRank:
    down, up = np.ones((rank, *shape[1:]), np.float32), np.ones((shape[0], rank), np.float32)
    return LowRank(down, up, 1.0)


def measure_inputs(arguments: Any) -> None:
    """What onnxruntime does in a switch, for every layer of SDXL's U-Net, without the U-Net; for CUDA without
    the copies to the GPU.
    """
    from fastdiff.build.parameters import adaptable_shapes
    from fastdiff.targets.onnxruntime.adapters import feeds_of
    from fastdiff.targets.onnxruntime.adapters_cuda import matrices_of
    from fastdiff.targets.parameters import Layer

    shapes = adaptable_shapes("unet", meta([1, 2, 10]))
    layers = {path: Layer(shape, ((path,),)) for path, shape in shapes.items()}
    on_cuda = {path: Layer(shape, (cuda_place(path, shape),)) for path, shape in shapes.items()}
    for kind, some in kinds_of(shapes).items():
        updates = {path: [ones(shape, arguments.rank)] for path, shape in some.items()}
        (found,) = best(arguments.rounds, partial(feeds_of, layers, updates))
        print(f"{kind}: {len(some)} layers at the published depth")
        print(f"  inputs  {shown(found)}")
        (found,) = best(arguments.rounds, partial(matrices_of, on_cuda, updates, arguments.threads))
        print(f"  CUDA    {shown(found)}")


def cuda_place(path: str, shape: tuple[int, ...]) -> tuple[str, str, str, int, int]:
    """Where a graph for CUDA has a layer of the U-Net: q, k and v of self-attention are one product."""
    stem, _, last = path.rpartition(".")
    order = "linear" if len(shape) == 2 else "NHWC"
    if stem.endswith("attn1") and last in ("to_q", "to_k", "to_v"):
        return stem, "float16", order, "qkv".index(last[-1]) * shape[0], 3 * shape[0]
    return path, "float16", order, 0, shape[0]


def kinds_of(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, dict[str, tuple[int, ...]]]:
    return {
        "attention": {path: shape for path, shape in shapes.items() if ".attn" in path},
        "every linear layer and convolution": dict(shapes),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--target", choices=["native", "onnxruntime", "torch"], default="native")
    parser.add_argument("--depth", default="1,2,10", help="transformers per block of each level")
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--random", action="store_true", help="random weights")
    parser.add_argument("--side", type=int, default=256, help="of the picture whose step is timed, in pixels")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where the module and the files are written")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    depth = [int(number) for number in arguments.depth.split(",")]
    print(describe(arguments.threads), flush=True)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name, torch.no_grad():
        folder = Path(name)
        model = unet(depth, arguments.random)
        parameters = sum(parameter.numel() for parameter in model.parameters())
        print(f"{arguments.target}, {parameters / 1e6:.0f} million parameters, rank {arguments.rank}")
        session = open_compiled(model, arguments.target, folder, arguments.threads)
        del model
        for index, (kind, some) in enumerate(kinds_of(session.adaptable()).items()):
            print(f"{kind}: {len(some)} layers")
            measure(session, some, arguments, folder, fresh=index == 0)
        session.close()
    if arguments.target == "onnxruntime":
        measure_inputs(arguments)
    print(f"largest resident memory {resident('VmHWM') / 1e9:.1f} GB")


if __name__ == "__main__":
    main()
