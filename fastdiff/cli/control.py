"""The options of commands that build or use what steers a U-Net by pictures."""

from __future__ import annotations

import argparse
from typing import Any

from fastdiff.cli.values import number

__all__ = ["add_control", "add_control_sources", "chosen_control", "chosen_sources"]


def add_control_sources(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``fastdiff build`` and ``fastdiff verify``, in a group of their own."""
    group = parser.add_argument_group("control", "networks that steer the U-Net by pictures")
    group.add_argument(
        "--controlnet",
        metavar="FOLDER",
        action="append",
        default=[],
        help="a ControlNet in the diffusers layout, or one .safetensors file; may be given several times",
    )
    group.add_argument(
        "--t2i-adapter",
        metavar="FOLDER",
        action="append",
        default=[],
        help="a T2I-Adapter in the diffusers layout; may be given several times",
    )
    group.add_argument(
        "--ip-adapter", metavar="FILE", help="an IP-Adapter's .safetensors file, or a folder with one"
    )
    group.add_argument(
        "--image-encoder",
        metavar="FOLDER",
        help="the IP-Adapter's image encoder (default: the folder image_encoder beside its file, or none)",
    )


def chosen_sources(arguments: argparse.Namespace) -> dict[str, Any]:
    """These options as arguments of ``build_engine`` and ``add_control``."""
    return {
        "controlnets": arguments.controlnet,
        "t2i_adapters": arguments.t2i_adapter,
        "ip_adapter": arguments.ip_adapter,
        "image_encoder": arguments.image_encoder,
    }


def add_control(parser: argparse.ArgumentParser) -> None:
    """Add the options of commands that make pictures, in a group of their own."""
    group = parser.add_argument_group(
        "control", "pictures that steer the result, on an engine that was built for it"
    )
    group.add_argument(
        "--control-image",
        metavar="FILE",
        action="append",
        help="what the ControlNet follows; with several ControlNets once for each, none for one not used",
    )
    group.add_argument(
        "--control-scale",
        metavar="X",
        type=_numbers,
        help="how strongly; X,Y for two ControlNets (default: 1)",
    )
    group.add_argument(
        "--control-start",
        metavar="SHARE",
        type=_numbers,
        help="share of the steps from which it is there, such as 0.2 (default: 0)",
    )
    group.add_argument(
        "--control-end",
        metavar="SHARE",
        type=_numbers,
        help="share of the steps up to which it is there, such as 0.8 (default: 1)",
    )
    group.add_argument(
        "--guess-mode", action="store_true", help="control only the half with the prompt, coarse parts most"
    )
    group.add_argument(
        "--adapter-image",
        metavar="FILE",
        action="append",
        help="what the T2I-Adapter follows; with several once for each, none for one not used",
    )
    group.add_argument(
        "--adapter-scale", metavar="X", type=_numbers, help="how strongly; X,Y for two (default: 1)"
    )
    group.add_argument(
        "--adapter-end",
        metavar="SHARE",
        type=number,
        help="share of the steps up to which the T2I-Adapter is there (default: 1)",
    )
    group.add_argument(
        "--ip-image",
        metavar="FILE",
        action="append",
        help="what the IP-Adapter makes the result like; may be given several times",
    )
    group.add_argument("--ip-scale", metavar="X", type=number, help="how strongly (default: 1)")


def chosen_control(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options that were given, as arguments of the pipeline."""
    single = ("control_scale", "control_start", "control_end", "adapter_scale", "adapter_end", "ip_scale")
    found = {name: getattr(arguments, name) for name in single}
    for name in ("control_image", "adapter_image"):
        files = getattr(arguments, name)
        if files is not None:
            entries = [None if file == "none" else file for file in files]
            found[name] = entries[0] if len(entries) == 1 else entries
    found["ip_image"] = arguments.ip_image
    found["guess_mode"] = arguments.guess_mode
    return {name: value for name, value in found.items() if value is not None and value is not False}


def _numbers(text: str) -> float | list[float]:
    """A number, or several with commas between."""
    values = [number(part) for part in text.split(",")]
    return values[0] if len(values) == 1 else values
