"""Nested phases as one fraction."""

from __future__ import annotations

from fastdiff.targets.tensorrt.progress import BuildProgress


def test_steps_within_a_step_count() -> None:
    seen: list[float] = []
    progress = BuildProgress(seen.append)
    progress.start("build", None, 4)
    progress.step("build", 0)
    progress.start("tactics", "build", 10)
    progress.step("tactics", 4)
    progress.start("node", "tactics", 2)
    progress.step("node", 0)
    progress.finish("node")
    progress.finish("tactics")
    progress.step("build", 1)
    # 1/4, half of the next quarter, half of its next tenth, the whole quarter
    assert [round(value, 4) for value in seen] == [0.25, 0.375, 0.3875, 0.5]


def test_never_goes_back_and_never_beyond_one() -> None:
    seen: list[float] = []
    progress = BuildProgress(seen.append)
    progress.start("build", None, 2)
    progress.start("graph", "build", 1)
    progress.step("graph", 0)
    progress.finish("graph")
    progress.start("tactics", "build", 3)
    progress.step("tactics", 0)  # less than what "graph" had reached
    progress.finish("tactics")
    progress.step("build", 0)
    progress.step("build", 1)
    progress.step("build", 2)  # one more than was announced
    assert seen == [0.5, 1.0]


def test_thousands_of_steps_are_not_thousands_of_reports() -> None:
    seen: list[float] = []
    progress = BuildProgress(seen.append)
    progress.start("build", None, 50_000)
    for step in range(50_000):
        progress.step("build", step)
    assert 900 <= len(seen) <= 1001
    assert seen[-1] > 0.998


def test_unknown_phases_are_no_errors() -> None:
    progress = BuildProgress(lambda fraction: None)
    progress.step("nobody began it", 0)
    progress.finish("nobody began it")
