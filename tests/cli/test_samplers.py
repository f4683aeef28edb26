"""``fastdiff samplers``, and samplers' options on the command line."""

from __future__ import annotations

import json

import pytest

from fastdiff.cli.values import option
from fastdiff.samplers import SAMPLERS
from tests.cli.run import run_here

Capture = pytest.CaptureFixture[str]


def test_lists_every_sampler(capfd: Capture) -> None:
    result = run_here(capfd, "samplers")
    assert result.status == 0
    _, *lines = result.output.splitlines()
    assert [line.split()[0] for line in lines] == list(SAMPLERS)
    rows = json.loads(run_here(capfd, "samplers", "--json").output)
    assert [row["name"] for row in rows] == list(SAMPLERS)
    assert all(row["paper"] and row["order"] >= 1 and row["evaluations_per_step"] >= 1 for row in rows)


def test_shows_the_options_of_one(capfd: Capture) -> None:
    shown = json.loads(run_here(capfd, "samplers", "euler", "--json").output)
    assert "use_karras_sigmas" in shown["options"]
    assert shown["diffusers_classes"] == ["EulerDiscreteScheduler"]
    assert "use_karras_sigmas" in run_here(capfd, "samplers", "euler").output


def test_unknown_sampler(capfd: Capture) -> None:
    result = run_here(capfd, "samplers", "dpmpp2m")
    result.assert_refused("did you mean dpmpp_")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("use_karras_sigmas=true", ("use_karras_sigmas", True)),
        ("rho=7", ("rho", 7)),
        ("sigma_min=0.03", ("sigma_min", 0.03)),
        ("sigmas=14.6, 3,0.5", ("sigmas", [14.6, 3, 0.5])),
        ("timestep_spacing=trailing", ("timestep_spacing", "trailing")),
        ("sigma_min=null", ("sigma_min", None)),
        ("solver_type=", ("solver_type", "")),
    ],
)
def test_option_values(text: str, wanted: tuple[str, object]) -> None:
    assert option(text) == wanted
