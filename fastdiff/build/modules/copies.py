"""Modules that differ from another in a few places and share its weights under the same names."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from torch import nn

__all__ = ["copied", "with_forward", "with_submodule"]


def copied(module: nn.Module) -> Any:
    """The module with a list of submodules of its own: those, and all weights, are the same objects."""
    twin = copy.copy(module)
    twin._modules = dict(module._modules)
    return twin


def with_submodule(module: nn.Module, path: str, new: nn.Module) -> Any:
    """The module with ``new`` where ``path``, such as ``"up_blocks.0.attentions.1"``, leads."""
    name, _, rest = path.partition(".")
    twin = copied(module)
    old = twin._modules[name]
    assert old is not None
    twin._modules[name] = with_submodule(old, rest, new) if rest else new
    return twin


def with_forward(module: nn.Module, around: Callable[..., Any]) -> Any:
    """The module with ``around(forward, *args, **kwargs)`` as its forward, given the one that it had.

    No module is put around it, so that its weights keep their names.
    """
    twin = copied(module)
    forward = twin.forward
    twin.forward = lambda *args, **kwargs: around(forward, *args, **kwargs)
    return twin
