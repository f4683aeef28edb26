"""A module with a part exchanged, its own weights shared and untouched."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn

__all__ = ["replaced"]


def replaced(module: Any, path: str, child: nn.Module) -> Any:
    """``module`` with ``child`` at ``path``, such as ``"adapter.unshuffle"``; ``module`` itself stays."""
    head, _, rest = path.partition(".")
    result = copy.copy(module)
    parts = dict(module._modules)
    parts[head] = replaced(parts[head], rest, child) if rest else child
    result.__dict__["_modules"] = parts
    return result
