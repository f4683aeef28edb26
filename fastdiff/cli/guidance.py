"""The options of ``fastdiff generate`` that say how a picture is guided."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from fastdiff.cli.values import number, whole

if TYPE_CHECKING:
    from fastdiff.samplers import Guidance

__all__ = ["add_guidance", "chosen_guidance"]

_METHODS = ("cfg", "cfg_pp", "cfg_zero_star", "apg", "perp_neg")
_SCALE, _CFG_PP_SCALE = 5.0, 0.6
# option, field, the methods that have it
_FIELDS = (
    ("apg_eta", "eta", "apg"),
    ("apg_momentum", "momentum", "apg"),
    ("apg_threshold", "threshold", "apg"),
    ("zero_steps", "zero_steps", "cfg_zero_star"),
    ("perp_neg_weight", "weight", "perp_neg"),
)


def add_guidance(parser: argparse.ArgumentParser) -> None:
    """Add the options, in a group of their own."""
    group = parser.add_argument_group("guidance", "how strongly, how and when the prompt pulls")
    group.add_argument(
        "--guidance",
        metavar="G",
        type=number,
        help="scale; 1 switches guidance off and halves the time (default: 5; for "
        "models that are told the scale 8.5; for cfg_pp 0.6, of 0 to 1)",
    )
    group.add_argument(
        "--guidance-method",
        metavar="NAME",
        choices=_METHODS,
        help="cfg, classifier-free guidance; cfg_pp, which keeps the unconditional noise, for small scales; "
        "cfg_zero_star, for flow models; apg, for high scales without oversaturation; perp_neg, a third "
        "evaluation for a negative prompt that overlaps with the prompt (default: cfg)",
    )
    group.add_argument(
        "--guidance-rescale",
        metavar="PHI",
        type=number,
        help="0 to 1, such as 0.7: against overexposure by high scales (default: 0)",
    )
    group.add_argument(
        "--guidance-interval",
        metavar="LOW,HIGH",
        help="guide only between two noise levels, such as 0.28,5.42, or two shares of the steps, such as "
        "20%%,80%%; the steps outside take half the time (default: all)",
    )
    group.add_argument(
        "--guidance-schedule",
        metavar="NAME",
        help="constant, linear, inverse_linear, cosine, sine, v_shape, lambda_shape, or power:P and "
        "powered_cosine:P with a power P; or scales for each evaluation, such as 7,6,5 (default: constant)",
    )
    group.add_argument(
        "--guidance-floor", metavar="G", type=number, help="the scale's minimum with --guidance-schedule"
    )
    group.add_argument(
        "--apg-eta",
        metavar="E",
        type=number,
        help="share of the part along the prediction that apg keeps (default: 0)",
    )
    group.add_argument(
        "--apg-momentum",
        metavar="B",
        type=number,
        help="weight of the earlier steps in apg, negative to push away (default: -0.5)",
    )
    group.add_argument(
        "--apg-threshold",
        metavar="R",
        type=number,
        help="largest norm of the guidance in apg, inf for none (default: 15)",
    )
    group.add_argument(
        "--zero-steps", metavar="N", type=whole, help="first steps that cfg_zero_star skips (default: 1)"
    )
    group.add_argument(
        "--perp-neg-weight", metavar="W", type=number, help="weight of the negative prompt (default: 1)"
    )


def chosen_guidance(arguments: argparse.Namespace) -> float | Guidance | None:
    """A number for plain guidance, else a Guidance; None where nothing was given.

    Raises InputError for options that do not go together.
    """
    from fastdiff.errors import InputError
    from fastdiff.samplers import read_guidance

    method = arguments.guidance_method or "cfg"
    value: dict[str, Any] = {"method": {"name": method}}
    for option, field, owner in _FIELDS:
        given = getattr(arguments, option)
        if given is not None and method != owner:
            raise InputError(
                f"--{option.replace('_', '-')} with guidance method {method}: it is for "
                f"--guidance-method {owner}; leave one of the two out"
            )
        if given is not None:
            value["method"][field] = given
    if arguments.guidance_rescale is not None:
        value["rescale"] = arguments.guidance_rescale
    if arguments.guidance_interval is not None:
        value["interval"] = _interval(arguments.guidance_interval)
    scale = arguments.guidance
    if scale is None and value == {"method": {"name": "cfg"}} and arguments.guidance_schedule is None:
        return None
    if arguments.guidance_schedule is not None:
        value["schedule"] = _schedule(arguments.guidance_schedule, arguments.guidance_floor)
        if "factors" in value["schedule"]:
            if scale is not None:
                raise InputError("--guidance beside a --guidance-schedule of scales: leave one out")
            scale = 1.0
    elif arguments.guidance_floor is not None:
        raise InputError("--guidance-floor without --guidance-schedule: give a schedule, or leave it out")
    if scale is None:
        scale = _CFG_PP_SCALE if method == "cfg_pp" else _SCALE
    if value == {"method": {"name": "cfg"}}:
        return float(scale)
    if scale > 2 and method == "cfg_pp":
        raise InputError(
            f"guidance is {scale:g} with method cfg_pp, whose scales are from 0 to 1: use one such as "
            f"{_CFG_PP_SCALE:g}"
        )
    if scale <= 1 and method not in ("cfg_pp", "perp_neg") and "factors" not in value.get("schedule", {}):
        raise InputError(
            f"guidance is {scale:g}, which switches it off: use more than 1, or leave the other options of "
            "guidance out"
        )
    return read_guidance({"scale": scale, **value})


def _interval(text: str) -> dict[str, Any]:
    from fastdiff.errors import InputError

    parts = text.split(",")
    shares = all(part.strip().endswith("%") for part in parts)
    try:
        low, high = (float(part.strip().removesuffix("%") if shares else part) for part in parts)
    except ValueError:
        raise InputError(
            f"--guidance-interval is {text!r}: give two noise levels, such as 0.28,5.42, or two shares of "
            "the steps, such as 20%,80%"
        ) from None
    if shares:
        return {"low": low / 100, "high": high / 100, "unit": "share"}
    return {"low": low, "high": high, "unit": "sigma"}


def _schedule(text: str, floor: float | None) -> dict[str, Any]:
    from fastdiff.errors import InputError

    name, colon, power = text.partition(":")
    try:
        if name[:1].isdigit() or "," in name:
            if floor is not None:
                raise InputError("--guidance-floor beside scales for each evaluation: leave it out")
            return {"factors": [float(part) for part in text.split(",")]}
        return {"shape": name, "floor": floor, **({"power": float(power)} if colon else {})}
    except ValueError:
        raise InputError(
            f"--guidance-schedule is {text!r}: give a name, a name and a power, such as power:2, or numbers "
            "with commas"
        ) from None
