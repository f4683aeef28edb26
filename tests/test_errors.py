"""The error tree as its docstring draws it, and the package's public names."""

from __future__ import annotations

import inspect
import re

import pytest

import fastdiff
from fastdiff import errors

pytestmark = pytest.mark.smoke


def classes() -> dict[str, type]:
    return {
        name: value
        for name, value in vars(errors).items()
        if inspect.isclass(value) and issubclass(value, BaseException)
    }


def test_all_is_complete_and_sorted() -> None:
    assert errors.__all__ == sorted(classes())


def test_the_docstring_draws_the_tree() -> None:
    drawing = (errors.__doc__ or "").partition("Each message")[0]
    lines = re.findall(r"^ {4}([│├└─ ]*)(\w+Error)\b", drawing, re.MULTILINE)
    assert {name for _, name in lines} == {name for name in classes() if name.endswith("Error")}
    path: list[str] = []
    for branch, name in lines:
        depth = len(branch) // 4
        path[depth:] = [name]
        if depth:
            assert classes()[name].__mro__[1].__name__ == path[depth - 1], name


def test_input_error_is_a_value_error() -> None:
    assert issubclass(errors.InputError, ValueError)
    assert issubclass(errors.FastdiffWarning, UserWarning)


def test_public_names() -> None:
    assert fastdiff.__all__ == sorted(fastdiff.__all__)
    assert set(errors.__all__) < set(fastdiff.__all__)
    for name in fastdiff.__all__:
        assert getattr(fastdiff, name) is not None
        assert name in dir(fastdiff)
    with pytest.raises(AttributeError, match="no attribute 'laod'"):
        fastdiff.laod  # noqa: B018
