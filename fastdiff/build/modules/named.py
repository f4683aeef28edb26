"""Modules whose inputs are chosen by name."""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any

from torch import Tensor, nn

__all__ = ["Named", "with_inputs"]


class Named(nn.Module):
    """A module that computes from tensors by name; ``with_inputs`` says which it is given, in what order."""

    names: tuple[str, ...]

    def compute(self, given: dict[str, Tensor]) -> Any:
        """The outputs for ``given``."""
        raise NotImplementedError(type(self).__name__)


@cache
def with_inputs(base: type[Named], names: tuple[str, ...]) -> type[Named]:
    """The class with these inputs. The exporter reads their names and number from ``forward``'s signature."""

    def forward(self: Named, *arrays: Tensor) -> Any:
        return self.compute(dict(zip(self.names, arrays, strict=True)))

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [inspect.Parameter(name, kind) for name in ("self", *names)]
    forward.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return type(base.__name__, (base,), {"names": names, "forward": forward})
