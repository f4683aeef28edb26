"""Turns, statistics and groups, on contestants whose times are made up."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from fastdiff.bench import measure
from fastdiff.bench.measure import Measurement, Pace, measure_all, quantile, spread
from fastdiff.errors import InputError
from tests.bench.made_up import FakeRunner, Machine

pytestmark = pytest.mark.smoke


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "_SETTLE_SECONDS", 0.0)


def run(machine: Machine, *runners: FakeRunner, pace: Pace | None = None) -> dict[str, Measurement]:
    chosen = Pace(rounds=4) if pace is None else pace
    found = measure_all(runners, chosen, available=machine.available, clock=machine.clock)
    assert [m.name for m in found] == [runner.name for runner in runners]
    assert not any(runner.running for runner in runners), "every process is ended"
    return {m.name: m for m in found}


@pytest.mark.parametrize("count", [1, 2, 3, 10, 101])
@pytest.mark.parametrize("q", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_quantiles_are_numpys(count: int, q: float) -> None:
    values = np.random.default_rng(count).standard_normal(count).tolist()
    assert quantile(values, q) == pytest.approx(float(np.quantile(values, q)), rel=1e-12)


def test_spread() -> None:
    # by hand: order statistics 1…11, so p10 is the second and p90 the tenth
    assert spread([11, 1, 6, 2, 3, 4, 5, 7, 8, 9, 10]) == measure.Spread(6, 2, 10, 11)
    with pytest.raises(ValueError, match="no values"):
        spread([])


def test_rounds_alternate_and_turn_round() -> None:
    machine = Machine()
    run(machine, *(FakeRunner(name, machine) for name in "abc"), pace=Pace(rounds=3))
    # one to warm up, then three rounds, the second one backwards
    assert "".join(machine.turns) == "abc" + "abc" + "cba" + "abc"


def test_figures_and_ratios() -> None:
    machine = Machine()
    # the warm-up takes the first value, the four rounds the others
    ours = FakeRunner("ours", machine, (9.0, 1.0, 2.0, 3.0, 4.0))
    theirs = FakeRunner("theirs", machine, (9.0, 5.0, 5.0, 5.0, 50.0))
    found = run(machine, ours, theirs)
    assert found["ours"].spread == spread([1000, 2000, 3000, 4000])
    assert found["ours"].ratio == 1.0
    assert found["theirs"].ratio == pytest.approx(5000 / 2500)
    assert found["theirs"].base == "ours"
    assert (found["theirs"].load_s, found["theirs"].cold_s) == (0.25, 1.0)
    assert found["theirs"].peak_rss == 10**10


def test_short_calls_are_repeated_within_a_turn() -> None:
    machine = Machine()
    found = run(machine, FakeRunner("short", machine, (0.01,)), FakeRunner("long", machine, (3.0,)))
    assert found["short"].spread is not None
    assert found["short"].spread.calls == 4 * 10
    assert found["long"].spread is not None
    assert found["long"].spread.calls == 4


def test_time_ends_the_rounds() -> None:
    machine = Machine()
    pace = Pace(seconds=10.0, least=3, most=50)
    found = run(machine, FakeRunner("a", machine, (1.0,)), FakeRunner("b", machine, (3.0,)), pace=pace)
    # 2 × 10 s at 4 s a round
    assert found["b"].spread is not None
    assert found["b"].spread.calls == 5
    assert pace.goes_on(2, math.inf, 1), "the least number of rounds whatever it takes"
    assert not pace.goes_on(50, 0.0, 1)


def test_outputs_that_disagree_are_not_timed() -> None:
    machine = Machine()
    wrong = FakeRunner("wrong", machine, errors=(2e-3,))
    found = run(machine, FakeRunner("ours", machine), wrong, FakeRunner("right", machine))
    assert found["wrong"].status == "refused"
    assert "relative L2 error 2.0e-03, allowed 1e-03" in found["wrong"].reason
    assert found["wrong"].spread is None
    assert found["wrong"].ratio is None
    assert "wrong" not in machine.turns
    assert found["right"].ratio == 1.0


@pytest.mark.parametrize("error", [math.nan, math.inf])
def test_results_that_are_no_numbers_are_refused(error: float) -> None:
    machine = Machine()
    found = run(machine, FakeRunner("a", machine, errors=(error,)))["a"]
    assert found.status == "refused"
    assert found.agreement is None, "JSON has no such number"
    assert f"relative L2 error {error}" in found.reason


def test_outputs_that_change_while_timed_are_refused() -> None:
    machine = Machine()
    found = run(machine, FakeRunner("ours", machine), FakeRunner("drifts", machine, errors=(0.0, 0.5)))
    assert found["drifts"].status == "refused"
    assert "after 4 calls" in found["drifts"].reason
    assert (found["drifts"].spread, found["drifts"].ratio) == (None, None)


@pytest.mark.parametrize("turn", [0, 3], ids=["warming up", "in the third round"])
def test_a_process_that_dies_leaves_the_others_running(turn: int) -> None:
    machine = Machine()
    dies = FakeRunner("dies", machine, fails_at=turn)
    found = run(machine, FakeRunner("ours", machine), dies, FakeRunner("other", machine))
    assert found["dies"].status == "failed"
    assert "killed" in found["dies"].reason
    assert found["dies"].spread is None
    assert found["other"].spread is not None
    assert found["other"].spread.calls == 4


def test_a_first_one_that_dies_is_no_base_for_the_next_group() -> None:
    machine = Machine(free=25)
    dies = FakeRunner("dies", machine, fails_at=2)
    found = run(machine, dies, *(FakeRunner(name, machine) for name in "abc"))
    assert found["dies"].status == "failed"
    assert (found["a"].ratio, found["a"].base) == (None, "")
    assert (found["b"].base, found["c"].base) == ("b", "b")


def test_without_the_first_one_ratios_refer_to_the_next() -> None:
    machine = Machine()
    found = run(
        machine, FakeRunner("gone", machine, missing=True), FakeRunner("a", machine), FakeRunner("b", machine)
    )
    assert found["gone"].status == "failed"
    assert found["b"].base == "a"


def test_mapped_files_take_memory_too() -> None:
    """They would be read from the disk again in every turn."""
    machine = Machine(free=100)
    runners = [
        FakeRunner("a", machine, memory=60, mapped=True),
        FakeRunner("p", machine, memory=30),
        FakeRunner("q", machine, memory=30),
    ]
    found = run(machine, *runners)
    assert [found[name].group for name in ("a", "p", "q")] == [0, 0, 1]


def test_what_does_not_fit_together_is_measured_in_groups() -> None:
    machine = Machine(free=25)
    runners = [FakeRunner(name, machine) for name in ("ours", "p", "q", "r")]
    # the first one slows down to half its speed in the second group: ratios must not mix groups
    runners[0].seconds = (1.0,) * 5 + (2.0,) * 5 + (4.0,) * 5
    found = run(machine, *runners)
    assert [runner.starts for runner in runners] == [1, 1, 1, 1], "nobody is opened twice"
    assert [found[name].group for name in ("p", "q", "r")] == [0, 1, 2]
    assert [found[name].ratio for name in ("p", "q", "r")] == pytest.approx([0.2, 0.1, 0.05])
    assert found["ours"].spread is not None
    assert found["ours"].spread.calls == 12
    assert machine.free == 25


def test_what_does_not_fit_at_all_says_how_much_it_needs() -> None:
    machine = Machine(free=25)
    large = FakeRunner("large", machine, memory=20)
    found = run(machine, FakeRunner("ours", machine), large, FakeRunner("small", machine, memory=5))
    assert found["large"].status == "failed"
    assert "smaller size" in found["large"].reason
    assert large.starts == 0
    assert found["small"].status == "ok"


def test_an_interrupt_ends_every_process() -> None:
    machine = Machine()
    runners = [FakeRunner(name, machine) for name in "ab"]

    def interrupt(what: str, done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure_all(runners, Pace(rounds=9), available=machine.available, say=interrupt, clock=machine.clock)
    assert not any(runner.running for runner in runners)


@pytest.mark.parametrize("changes", [{"rounds": 0}, {"seconds": 0.0}, {"seconds": math.nan}])
def test_pace_refuses(changes: dict[str, float]) -> None:
    with pytest.raises(InputError, match="give"):
        replace(Pace(), **changes)
