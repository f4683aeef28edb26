"""Stand-ins of autoencoders."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fastdiff.compiled.stand_ins.refusals import refusing
from fastdiff.compiled.stand_ins.stand_in import StandIn, emptied
from fastdiff.targets import Session

__all__ = ["autoencoder"]


class _Coder(StandIn):
    """In place of the encoder or decoder of an autoencoder."""

    def forward(self, tensor: Tensor, *conditions: Any) -> Tensor:
        self.check_options(**{f"condition {index}": value for index, value in enumerate(conditions)})
        (label,) = (spec.name for spec in self.session.inputs)
        (output,) = self.run(**{label: tensor}).values()
        return output


def autoencoder(name: str, sessions: Mapping[str, Session], like: Any) -> Any:
    """In place of an autoencoder: diffusers' own class, with tiling, slicing and all that it computes around
    its encoder and its decoder, which are stand-ins.
    """
    clone = emptied(like)
    for half, child in like._modules.items():
        kept = None if child is None else copy.deepcopy(child) if half not in sessions else None
        clone._modules[half] = kept
    for half, session in sessions.items():
        clone._modules[half] = _Coder(f"{name}.{half}", session, getattr(like, half))
    return refusing(clone, name)
