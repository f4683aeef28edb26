"""Guidance in JSON values, and what is refused: values, tables and denoisers that lack something."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fastdiff.errors import InputError
from fastdiff.samplers import (
    Guidance,
    Point,
    StepTable,
    make_table,
    read_guidance,
    sample,
    step_at,
)
from fastdiff.samplers.guidance import (
    APG,
    CFGPlusPlus,
    Interval,
    PerStep,
    Schedule,
)
from fastdiff.samplers.guidance.read import written
from tests.samplers.guidances import ALL, CLIPPED, LATENTS, TABLES, denoise


@pytest.mark.parametrize("guidance", [*ALL.values(), Guidance(0.6, CFGPlusPlus(), interval=Interval())])
def test_json_values_give_it_back(guidance: Guidance) -> None:
    text = json.dumps(written(guidance), allow_nan=False)
    assert read_guidance(json.loads(text)) == guidance


def test_short_forms() -> None:
    assert read_guidance({"scale": 4}) == Guidance(4)
    assert read_guidance({"scale": 4, "method": "apg", "schedule": "linear"}) == Guidance(
        4, APG(), Schedule("linear")
    )
    infinite = Guidance(4, APG(threshold=math.inf), interval=Interval(1.0))
    assert read_guidance(written(infinite)) == infinite


BAD: list[tuple[dict[str, Any], str]] = [
    ({}, "wanted an entry 'scale'"),
    ({"scale": 5, "strength": 1}, "no entry 'strength'; it has scale, method"),
    ({"scale": "5"}, "scale of guidance is '5', wanted a finite number"),
    ({"scale": math.nan}, "scale of guidance is nan"),
    ({"scale": True}, "scale of guidance is True"),
    ({"scale": 5, "method": "abg"}, "unknown guidance method 'abg'; did you mean apg"),
    ({"scale": 5, "method": 7}, "the guidance method is 7, wanted an object"),
    ({"scale": 5, "method": {"name": ["cfg"]}}, "unknown guidance method"),
    ({"scale": 5, "method": {"name": "cfg", "eta": 1}}, "'cfg' has no entry 'eta'; it has none"),
    ({"scale": 5, "method": {"name": "apg", "eta": math.inf}}, "eta of guidance 'apg' is inf"),
    ({"scale": 5, "method": {"name": "apg", "threshold": 0}}, "threshold of guidance 'apg' is 0"),
    (
        {"scale": 5, "method": {"name": "apg", "space": "x0"}},
        "space of guidance 'apg' is 'x0', wanted denoised",
    ),
    ({"scale": 5, "method": {"name": "apg", "base": "x"}}, "base of guidance 'apg' is 'x'"),
    ({"scale": 5, "method": {"name": "cfg_zero_star", "zero_steps": -1}}, "zero_steps .* is -1"),
    ({"scale": 5, "method": {"name": "perp_neg", "weight": None}}, "weight of guidance 'perp_neg' is None"),
    ({"scale": 5, "schedule": "square"}, "schedule 'square' is unknown; use one of constant, linear"),
    ({"scale": 5, "schedule": {"shape": "linear", "power": 2}}, "'linear' has no power"),
    ({"scale": 5, "schedule": {"shape": "power", "power": 0}}, "power .* is 0, wanted a number above 0"),
    ({"scale": 5, "schedule": {"shape": "sine", "floor": math.nan}}, "floor .* is nan"),
    ({"scale": 5, "schedule": {"factors": []}}, "factors .* wanted numbers"),
    ({"scale": 5, "schedule": {"factors": [1, "a"]}}, "factor .* is 'a'"),
    ({"scale": 5, "interval": [1, 2]}, "interval is .*wanted an object"),
    ({"scale": 5, "interval": {"low": 2, "high": 1}}, "interval is 2 to 1, wanted 0 ≤ low ≤ high"),
    ({"scale": 5, "interval": {"low": -1}}, "interval is -1 to inf"),
    ({"scale": 5, "interval": {"low": 0, "high": math.nan}}, "interval is 0 to nan"),
    ({"scale": 5, "interval": {"low": 0, "high": 2, "unit": "share"}}, "0 ≤ low ≤ high ≤ 1"),
    ({"scale": 5, "interval": {"unit": "steps"}}, "unit .* is 'steps', wanted sigma or share"),
    ({"scale": 5, "rescale": 1.5}, "rescale is 1.5, wanted 0 to 1"),
    ({"scale": 5, "original": 1}, "original of guidance is 1, wanted true or false"),
    ({"scale": 1, "method": "cfg_pp", "rescale": 0.5}, "'cfg_pp' cannot be rescaled"),
    ({"scale": 1, "method": "cfg_pp", "original": True}, "'cfg_pp' has no original formulation"),
    ({"scale": 1, "method": "perp_neg", "original": True}, "'perp_neg' has no original formulation"),
]


@pytest.mark.parametrize(("value", "says"), BAD)
def test_bad_values_are_named(value: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says) as caught:
        read_guidance(value)
    assert "\n" not in str(caught.value)


def test_parts_of_another_type() -> None:
    with pytest.raises(InputError, match="method of guidance is of type str, wanted one of"):
        Guidance(5.0, "apg")  # type: ignore[arg-type]


def placeless(table: StepTable) -> StepTable:
    return replace(table, steps=tuple(replace(step, point=None) for step in table.steps))


@pytest.mark.parametrize(
    ("guidance", "table", "says"),
    [
        (Guidance(0.6, CFGPlusPlus()), TABLES["dpmpp_2m"], "needs steps of first order.*use sampler 'ddim'"),
        (Guidance(0.6, CFGPlusPlus()), TABLES["pndm"], "needs steps of first order"),
        (Guidance(0.6, CFGPlusPlus()), make_table("ddim", CLIPPED, 5), "without history and clipping"),
        (Guidance(0.6, CFGPlusPlus()), placeless(TABLES["ddim"]), "needs steps of first order"),
        (Guidance(5.0, interval=Interval(0.1, 5)), placeless(TABLES["pndm"]), "'pndm' has steps without"),
        (Guidance(5.0, APG()), placeless(TABLES["ddim"]), "'apg' needs the noise level of every step"),
        (Guidance(5.0, schedule=PerStep((1.0, 2.0))), TABLES["ddim"], "2 entries.* makes 12 evaluations"),
    ],
)
def test_tables_that_cannot_have_it(guidance: Guidance, table: StepTable, says: str) -> None:
    with pytest.raises(InputError, match=says) as caught:
        guidance.check(table)
    assert "\n" not in str(caught.value)


def test_cfg_pp_at_a_level_where_the_step_stays() -> None:
    point = Point(3.0, 1.0, 2.0)
    table = StepTable("still", (step_at(point, point.to(point)),))
    with pytest.raises(InputError, match="stays at its noise level; use a spacing without repeated"):
        Guidance(0.6, CFGPlusPlus()).fold(table)


def test_what_does_not_fold() -> None:
    for guidance, name in ((ALL["apg"], "apg"), (ALL["rescale"], "rescale")):
        with pytest.raises(InputError, match=f"{name!r} is not linear"):
            guidance.fold(TABLES["ddim"])


def test_a_denoiser_without_the_outputs() -> None:
    def conditional(x: np.ndarray, timestep: float, guided: int) -> tuple[np.ndarray | None, ...]:
        return denoise(x, timestep, 0)

    with pytest.raises(InputError, match="'perp_neg' needs 3 outputs of the denoiser, found 1"):
        sample(TABLES["ddim"], conditional, LATENTS, guidance=ALL["perp neg"])
    with pytest.raises(InputError, match="denoiser gave no output without the prompt"):
        sample(TABLES["ddim"], conditional, LATENTS, guidance=ALL["plain"])
