"""docs/samplers.md names what there is."""

from __future__ import annotations

from pathlib import Path

from fastdiff.samplers import SAMPLERS

PAGE = Path(__file__).parents[2] / "docs" / "samplers.md"


def test_the_page_lists_every_sampler_as_the_registry_does() -> None:
    rows = {}
    for line in PAGE.read_text().partition("<!-- samplers -->")[2].splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 6 and cells[0].startswith("`"):
            rows[cells[0].strip("`")] = cells[1:]
    assert rows.keys() == SAMPLERS.keys(), "run python benchmarks/sampler_quality.py page"
    for name, (order, evaluations, noise, classes, paper) in rows.items():
        sampler = SAMPLERS[name]
        assert (int(order), int(evaluations)) == (sampler.order, sampler.evaluations)
        assert (noise == "yes") is sampler.stochastic
        assert [f"{part}Scheduler" for part in classes.split(", ") if part] == list(sampler.classes)
        assert paper == sampler.paper
