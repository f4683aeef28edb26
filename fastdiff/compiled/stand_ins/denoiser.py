"""What the stand-ins of U-Nets and ControlNets share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fastdiff.compiled.stand_ins.stand_in import StandIn
from fastdiff.errors import InputError
from fastdiff.targets import Session

__all__ = ["Denoiser"]


class Denoiser(StandIn):
    """A session with a denoiser's conditions as inputs, and the config of the model ``like``."""

    def __init__(self, name: str, session: Session, like: Any) -> None:
        super().__init__(name, session, like)
        self.config = like.config
        self._names = {spec.name for spec in session.inputs}

    def conditions(
        self,
        sample: Tensor,
        encoder_hidden_states: Tensor | None,
        class_labels: Tensor | None,
        timestep_cond: Tensor | None,
        added: Mapping[str, Any] | None,
    ) -> dict[str, Any]:
        """The inputs that the module has of these. Raises InputError for one too many or too few."""
        given = {
            "encoder_hidden_states": encoder_hidden_states,
            "class_labels": class_labels,
            "timestep_cond": timestep_cond,
            **(added or {}),
        }
        given = {name: value for name, value in given.items() if value is not None}
        self.check_options(**{name: value for name, value in given.items() if name not in self._names})
        for spec in self.session.inputs:
            if spec.name == "timestep_cond" and spec.name not in given:
                # its projection has no bias: zeros are what leaving it out gives
                given[spec.name] = sample.new_zeros((len(sample), int(spec.shape[1])))
        needed = ("encoder_hidden_states", "class_labels", "text_embeds", "time_ids")
        if missing := [name for name in needed if name in self._names and name not in given]:
            raise InputError(f"{self.name} needs {', '.join(missing)}")
        return given
