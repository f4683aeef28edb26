"""The syntax of weights: what it means, and that text without it stays as it is."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastdiff.errors import InputError
from fastdiff.prompts.weighting import BREAK, Span, read_weights, unclosed

pytestmark = pytest.mark.smoke

UP, DOWN = 1.1, 1 / 1.1
PROMPTS = [
    ("a (red) circle", [("a ", 1), ("red", UP), (" circle", 1)]),
    ("((a))", [("a", UP * UP)]),
    ("[a] [[b]]", [("a", DOWN), (" ", 1), ("b", DOWN * DOWN)]),
    ("(a:1.3)(b: 0.5 )", [("a", 1.3), ("b", 0.5)]),
    ("(a (b:1.5) c:2)", [("a ", 2), ("b", 3), (" c", 2)]),
    ("(a [b])", [("a ", UP), ("b", UP * DOWN)]),
    ("(a:-0.5) (b:+2)", [("a", -0.5), (" ", 1), ("b", 2)]),
    ("(a:.5) (b:0)", [("a", 0.5), (" ", 1), ("b", 0)]),
    ("(a:5e-1) (b:1.)", [("a", 0.5), (" b", 1)]),
    ("(a:b) (nan) (c:red 2)", [("a:b", UP), (" ", 1), ("nan", UP), (" ", 1), ("c:red 2", UP)]),
    # what is not closed reaches to the end, what was not opened is text
    ("a (b [c", [("a ", 1), ("b ", UP), ("c", UP * DOWN)]),
    ("a) b] :1.3)", [("a) b] :1.3)", 1)]),
    ("[a:1.5]", [("a:1.5", DOWN)]),
    # escapes
    (r"\(a\) \[b\] \\ (\(c\):2)", [(r"(a) [b] \ ", 1), ("(c)", 2)]),
    (r"a\b\ c", [(r"a\b\ c", 1)]),
    # neighbours of one weight are one text
    ("(re)(d)", [("red", UP)]),
    ("", [("", 1)]),
    ("()", [("", 1)]),
    ("(dusk:\n1.2)", [("dusk", 1.2)]),
]


@pytest.mark.parametrize(("prompt", "wanted"), PROMPTS)
def test_spans(prompt: str, wanted: list[tuple[str, float]]) -> None:
    found = read_weights(prompt)
    assert [span.text for span in found] == [text for text, _ in wanted]
    assert [span.weight for span in found] == pytest.approx([weight for _, weight in wanted])


@pytest.mark.parametrize(
    ("prompt", "end"),
    [
        ("a (red:1.3 circle", "(red:1.3 circle"),
        ("a (b) [c (d:2) e", "[c (d:2) e"),
        ("a ((b) c", "((b) c"),
        ("(a) [b] (c:2) d) e] :)", ""),
        (r"\( \[ a", ""),
        ("a :(", "("),
        ("", ""),
    ],
)
def test_brackets_that_are_not_closed(prompt: str, end: str) -> None:
    assert unclosed(prompt) == end


def test_break() -> None:
    found = read_weights("(a  BREAK\nb:2) BREAK BREAKS (BREAK)")
    texts = [None if span is BREAK else (span.text, span.weight) for span in found]
    assert texts == [("a", 2), None, ("b", 2), None, ("BREAKS ", 1), None]
    assert not any(math.isnan(span.weight) for span in found if span is not BREAK)


@given(st.text(alphabet=st.characters(blacklist_characters="()[]\\", blacklist_categories=("Cs",))))
def test_text_without_syntax_is_one_span(text: str) -> None:
    if "BREAK" not in text:
        assert read_weights(text) == [Span(text)]


@given(st.text(alphabet="abein ():[].,1\\"))
def test_every_text_has_weights_or_one_line(text: str) -> None:
    try:
        spans = read_weights(text)
    except InputError as error:
        says = str(error)
        assert "\n" not in says
        assert "weight" in says
    else:
        assert all(math.isfinite(span.weight) for span in spans)


@pytest.mark.parametrize(
    ("prompt", "says"),
    [
        ("(a:1.2.3)", r"':1\.2\.3\)', whose weight is no number: write one such as"),
        ("(a:.)", "no number"),
        ("(a:nan)", r"':nan\)', whose weight is no number"),
        ("(a: -NaN )", "no number"),
        ("(a:1,3)", r"':1,3\)', whose weight is no number"),
        ("(a:inf)", "gives 'a' a weight of inf: it must be from -100 to 100"),
        ("(a:-Infinity)", "weight of -inf"),
        ("((a:inf):0)", "weight of nan"),
        ("(a:1e3)", "weight of 1000"),
        ("(:1.3)", r"gives nothing a weight of 1.3: write words before ':1.3\)', or take it out"),
        ("a ( BREAK :2) b", "gives nothing a weight of 2"),
        ("(a:101)", "gives 'a' a weight of 101: it must be from -100 to 100"),
        ("((a:20):-20)", "weight of -400"),
        ("(a:" + "9" * 400 + ")", "weight of inf"),
    ],
)
def test_weights_that_are_none(prompt: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        read_weights(prompt)
