"""``fastdiff bench``: engines beside PyTorch, Inductor, ONNX Runtime and OpenVINO."""

from __future__ import annotations

import argparse
import re
from typing import TYPE_CHECKING, Any

from fastdiff.cli.values import number, on_terminal, require_build_extra, whole
from fastdiff.errors import FastdiffError, InputError, VerificationError
from fastdiff.progress import progress_bar

if TYPE_CHECKING:
    from fastdiff.bench.report import Report
    from fastdiff.bench.suite import Request

SUMMARY = "measure engines and their peers on the same weights and inputs"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument(
        "models",
        metavar="MODEL",
        nargs="*",
        help="an engine folder, a folder in the diffusers layout, a shipped model (scenes), or a published "
        "configuration with random weights: sd15-unet, sd15-vae-decoder, sdxl-unet or sdxl-vae-decoder",
    )
    parser.add_argument(
        "--targets",
        metavar="LIST",
        type=_names,
        default=(),
        help="fastdiff's targets to build and measure, as in fastdiff build; ratios refer to the first "
        "(default: auto, unless an engine is given)",
    )
    parser.add_argument(
        "--against",
        metavar="LIST",
        type=_names,
        help="peers: torch, torch-channels-last, inductor, onnxruntime, openvino, or none (default: all that "
        "are installed)",
    )
    parser.add_argument(
        "--devices",
        metavar="NAME",
        type=_names,
        default=("cpu",),
        help="cpu, or cuda for the first NVIDIA GPU, in fp16 (default: cpu)",
    )
    parser.add_argument(
        "--modules",
        metavar="LIST",
        type=_names,
        help="text_encoder, unet, vae_decoder, vae_encoder (default: all but the last)",
    )
    parser.add_argument(
        "--measure",
        metavar="LIST",
        type=_names,
        help="run: a module; step: a guided step, on cuda; open: opening its files; picture: a whole "
        "picture; cold: process start to PNG "
        "(default: run, picture and cold, or run alone for a published configuration)",
    )
    parser.add_argument(
        "--sizes",
        metavar="LIST",
        type=_sizes,
        default=(),
        help="picture pixels, height by width: 256x256,512x512 (default: the model's)",
    )
    parser.add_argument(
        "--batch",
        metavar="N",
        type=whole,
        help="rows of a module's batch; guidance makes two of one picture (default: 2 for U-Net and text "
        "encoder, else 1)",
    )
    parser.add_argument("--steps", metavar="N", type=whole, default=20, help="of pictures (default: 20)")
    parser.add_argument("--threads", metavar="T", type=whole, help="CPU threads (default: every core)")
    parser.add_argument("--rounds", metavar="N", type=whole, help="turns of each contestant")
    parser.add_argument(
        "--seconds",
        metavar="S",
        type=number,
        default=10.0,
        help="without --rounds: time for each contestant of a case, at least 5 rounds (default: 10)",
    )
    parser.add_argument("--json", metavar="FILE", help="write the results, for --compare")
    parser.add_argument("--html", metavar="FILE", help="write one page with tables and plots")
    parser.add_argument(
        "--compare",
        metavar="JSON",
        nargs="+",
        help="measure nothing: put results of several machines or commits side by side",
    )


def run(arguments: argparse.Namespace) -> None:
    """Measure or compare, write the files, print tables. Raises FastdiffError.

    VerificationError, after all else is done, when results of fastdiff itself disagree with PyTorch's.
    """
    from fastdiff.bench.report import check_writable

    for path in (arguments.json, arguments.html):
        if path is not None:
            check_writable(path)
    report = _compare(arguments) if arguments.compare else _measure(arguments)
    _write(report, arguments)
    _check(report)


def _compare(arguments: argparse.Namespace) -> Report:
    if arguments.models:
        raise InputError(f"--compare measures nothing: leave out {arguments.models[0]!r}, or --compare")
    from fastdiff.bench.report import load_reports, merge
    from fastdiff.bench.table import compare_lines

    report = merge(load_reports(arguments.compare))
    print("\n".join(compare_lines(report)))
    return report


def _measure(arguments: argparse.Namespace) -> Report:
    require_build_extra("benchmarking")
    from fastdiff.bench.suite import run_suite
    from fastdiff.bench.table import report_lines

    request = _request(arguments)
    progress = _Progress() if on_terminal() else None
    try:
        report = run_suite([request], progress) if progress else run_suite([request])
    finally:
        if progress is not None:
            progress.close()
    print("\n".join(report_lines(report)).rstrip())
    return report


def _request(arguments: argparse.Namespace) -> Request:
    from fastdiff.bench.case import Picture
    from fastdiff.bench.measure import Pace
    from fastdiff.bench.suite import Request

    against = arguments.against
    return Request(
        models=tuple(arguments.models),
        targets=arguments.targets,
        against=() if against == ("none",) else against,
        devices=arguments.devices,
        modules=arguments.modules,
        sizes=arguments.sizes,
        batch=arguments.batch,
        kinds=arguments.measure,
        threads=arguments.threads,
        pace=Pace(arguments.rounds, arguments.seconds),
        picture=Picture(steps=arguments.steps),
    )


def _write(report: Report, arguments: argparse.Namespace) -> None:
    from fastdiff.bench.html import page
    from fastdiff.bench.report import save_report, write_text

    if arguments.json is not None:
        save_report(report, arguments.json)
    if arguments.html is not None:
        write_text(arguments.html, page(report))


def _check(report: Report) -> None:
    """Raises the error that fastdiff's own contestants met: a table without them is no success."""
    from fastdiff.bench.peers import is_peer

    for run in report.runs:
        for result in run.results:
            for found in result.measurements:
                if not is_peer(found.name) and found.status != "ok":
                    kind = VerificationError if found.status == "refused" else FastdiffError
                    raise kind(f"{result.case.label}: {found.name} {found.status}: {found.reason}")


def _names(text: str) -> tuple[str, ...]:
    """A list with commas, for argparse."""
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",")))
    if not all(names):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of names with commas between them")
    return names


def _sizes(text: str) -> tuple[tuple[int, int], ...]:
    """``256x256,512x768`` as pairs of height and width, for argparse."""
    sizes = []
    for item in _names(text):
        match = re.fullmatch(r"([0-9]{1,5})[x×]([0-9]{1,5})", item)
        if match is None:
            raise argparse.ArgumentTypeError(f"{item!r} is not a size such as 256x256")
        sizes.append((int(match[1]), int(match[2])))
    return tuple(sizes)


class _Progress:
    """A bar over the cases, with what is being done now."""

    def __init__(self) -> None:
        self._bar: Any = None

    def __call__(self, what: str, done: int, total: int) -> None:
        if self._bar is None:
            self._bar = progress_bar(total, "case", keep=False)
        self._bar.set_description(what, refresh=False)
        self._bar.update(done - self._bar.n)
        self._bar.refresh()

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.close()
