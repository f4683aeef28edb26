"""diffusers' scheduler classes as their source has them, also those that need packages to import."""

from __future__ import annotations

import ast
import functools
import inspect
from pathlib import Path
from typing import Any

import diffusers


@functools.cache
def scheduler_parameters() -> dict[str, dict[str, Any]]:
    """The parameters of every scheduler class with their defaults, by class name."""
    found: dict[str, dict[str, Any]] = {}
    folder = Path(inspect.getfile(diffusers)).parent / "schedulers"
    for path in sorted(folder.rglob("scheduling_*.py")):
        for node in ast.parse(path.read_text()).body:
            if not isinstance(node, ast.ClassDef) or not node.name.endswith("Scheduler"):
                continue
            for method in node.body:
                if isinstance(method, ast.FunctionDef) and method.name == "__init__":
                    found[node.name] = _parameters(method.args)
    return found


def _parameters(arguments: ast.arguments) -> dict[str, Any]:
    assert not arguments.kwonlyargs, "keyword-only parameters are not looked at"
    names = [argument.arg for argument in arguments.args[1:]]
    defaults = [_value(default) for default in arguments.defaults]
    return dict(zip(names, [None] * (len(names) - len(defaults)) + defaults, strict=True))


def _value(default: ast.expr) -> Any:
    """None for what is no literal, such as float("inf")."""
    try:
        return ast.literal_eval(default)
    except ValueError:
        return None
