"""``fastdiff build``: an engine from a checkpoint."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastdiff.cli.checkpoint import add_checkpoint_options, checkpoint_options
from fastdiff.cli.control import add_control_sources, chosen_sources
from fastdiff.cli.values import byte_size, number, on_terminal, require_build_extra, whole
from fastdiff.errors import InputError
from fastdiff.progress import progress_bar

if TYPE_CHECKING:
    from fastdiff.build.build import Stage

SUMMARY = "build an engine from a checkpoint"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument(
        "checkpoint",
        metavar="CHECKPOINT",
        help="folder in the diffusers layout, a .safetensors file in an original layout, or a shipped model: "
        "scenes",
    )
    parser.add_argument("-o", "--output", metavar="ENGINE", required=True, help="engine folder to write")
    parser.add_argument(
        "--target",
        metavar="NAME",
        default="auto",
        help="auto, native, cuda, onnxruntime, tensorrt or torch (default: auto: cuda where there is "
        "an NVIDIA GPU, else native)",
    )
    parser.add_argument(
        "--precision",
        metavar="TYPE",
        help="fp32, fp16 or bf16 (default: fp16 for cuda and tensorrt, else fp32)",
    )
    parser.add_argument("--height", metavar="H", type=whole, help="default pixels (default: the model's)")
    parser.add_argument("--width", metavar="W", type=whole, help="default pixels (default: the model's)")
    parser.add_argument("--batch", metavar="N", type=whole, default=1, help="default batch (default: 1)")
    parser.add_argument(
        "--memory",
        metavar="X",
        type=number,
        default=2.0,
        help="native: what weights may take, as a multiple of their size in fp32 (default: 2)",
    )
    parser.add_argument(
        "--device", metavar="NAME", help="onnxruntime: cpu or cuda, which computes in fp16 (default: cpu)"
    )
    parser.add_argument(
        "--refit",
        action="store_true",
        help="tensorrt: weights can be replaced later, which LoRAs need; where ENGINE was built so, replace "
        "its weights",
    )
    parser.add_argument(
        "--deep-cache",
        metavar="BRANCH",
        type=whole,
        nargs="?",
        const=0,
        help="add what fastdiff generate --deep-cache needs: a small module that computes the outermost "
        "layers of the U-Net alone. BRANCH 0, the default, is the fastest; 1 and 2 compute more and err less",
    )
    parser.add_argument(
        "--token-merging",
        metavar="R",
        type=number,
        default=0.0,
        help="merge this share of the tokens, such as 0.5, before the U-Net's finest self-attentions: faster "
        "for large pictures, and not the same picture (default: 0)",
    )
    parser.add_argument(
        "--preview-vae",
        metavar="FOLDER",
        nargs="?",
        const=True,
        default=False,
        help="add the tiny autoencoder of FOLDER, such as TAESD's, for previews; without FOLDER the "
        "checkpoint's own, which scenes has",
    )
    parser.add_argument("--force", action="store_true", help="replace an engine that exists")
    add_checkpoint_options(parser)
    add_control_sources(parser)


def run(arguments: argparse.Namespace) -> None:
    """Build with progress on a terminal, then print a line per module. Raises FastdiffError."""
    require_build_extra("building")
    from fastdiff.build.build import build_engine
    from fastdiff.build.checkpoint import load_checkpoint
    from fastdiff.build.refit import refit_engine
    from fastdiff.engine_dir import MANIFEST_NAME

    replace = arguments.refit and not arguments.force and Path(arguments.output, MANIFEST_NAME).is_file()
    if replace and (given := _settled(arguments)):
        raise InputError(
            f"{arguments.output} exists: --refit keeps all but its weights, so leave out {given}, or build it"
            " again with --force"
        )
    options = checkpoint_options(arguments)
    source = load_checkpoint(arguments.checkpoint, **options) if options else arguments.checkpoint
    progress = _Progress() if on_terminal() else None
    try:
        if replace:
            summary = refit_engine(
                source,
                arguments.output,
                target=None if arguments.target == "auto" else arguments.target,
                precision=None if arguments.precision == "fp32" else arguments.precision,
                progress=progress,
            )
        else:
            summary = build_engine(
                source,
                arguments.output,
                target=arguments.target,
                precision=arguments.precision,
                height=arguments.height,
                width=arguments.width,
                batch=arguments.batch,
                memory=arguments.memory,
                device=arguments.device,
                force=arguments.force,
                progress=progress,
                refit=arguments.refit,
                **chosen_sources(arguments),
                deep_cache=arguments.deep_cache,
                token_merging=arguments.token_merging,
                preview_vae=arguments.preview_vae,
            )
    finally:
        if progress is not None:
            progress.close()
    chosen = f"auto chose {summary.target}" if arguments.target == "auto" and not replace else summary.target
    print(f"{summary.path}: target {chosen}, {summary.precision.value}, hash {summary.engine_hash[:16]}")
    print(f"{'module':<22} {'target':<12} {'size':>9} {'error':>9} {'seconds':>8}")
    for module in summary.modules:
        print(
            f"{module.name:<22} {module.target:<12} {byte_size(module.bytes):>9} {module.relative_l2:>9.1e} "
            f"{module.seconds:>8.1f}"
        )
    total = sum(module.bytes for module in summary.modules)
    print(f"{'total':<22} {'':<12} {byte_size(total):>9} {'':>9} {summary.seconds:>8.1f}")


def _settled(arguments: argparse.Namespace) -> str:
    """The first option given of those that an existing engine has settled already."""
    defaults = {"height": None, "width": None, "batch": 1, "memory": 2.0, "device": None}
    control: dict[str, Any] = {"controlnet": [], "t2i_adapter": [], "ip_adapter": None, "image_encoder": None}
    approximations: dict[str, Any] = {"deep_cache": None, "token_merging": 0.0, "preview_vae": False}
    every = {**defaults, **control, **approximations}
    given = (name for name, value in every.items() if getattr(arguments, name) != value)
    return next((f"--{name.replace('_', '-')}" for name in given), "")


class _Progress:
    """A bar with the stage that is running."""

    def __init__(self) -> None:
        self._bar: Any = None

    def __call__(self, stage: Stage) -> None:
        if self._bar is None:
            self._bar = progress_bar(stage.total, "stage", keep=False)
        done = f" {stage.fraction:.0%}" if stage.fraction else ""
        self._bar.set_description(f"{stage.module}: {stage.stage}{done}", refresh=False)
        self._bar.update(stage.index - self._bar.n)
        self._bar.refresh()

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.close()
