"""A session as a torch module, and copies of modules that have no weights."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastdiff.compiled.stand_ins.refusals import refuse
from fastdiff.errors import InputError
from fastdiff.targets import Session

__all__ = ["StandIn", "emptied"]


class StandIn(nn.Module):
    """A session as a torch module: tensors in, tensors of the pipeline's dtype and device out.

    ``name`` is what messages call it. ``marker`` is a parameter without elements that carries dtype and
    device, and follows ``.to(dtype)`` as weights do; another device is refused.
    """

    marker: nn.Parameter

    def __init__(self, name: str, session: Session, like: nn.Module) -> None:
        super().__init__()
        weight = next(like.parameters())
        empty = torch.empty(0, dtype=weight.dtype, device=weight.device)
        self.marker = nn.Parameter(empty, requires_grad=False)
        self.name = name
        self.session = session
        self.requires_grad_(False).eval()

    @property
    def dtype(self) -> torch.dtype:
        """Of results: the component's, whatever the engine computes in."""
        return self.marker.dtype

    @property
    def device(self) -> torch.device:
        """Where the pipeline keeps its tensors."""
        return self.marker.device

    def run(self, **inputs: Any) -> dict[str, Tensor]:
        """The module's outputs. Nothing is copied between PyTorch and NumPy for float32 on the CPU."""
        if self.session.takes_tensors and self.device.type == "cuda":
            on_device = self._on_device(inputs)
            # the session's own tensors are valid until its next call only
            return {name: value.to(self.dtype, copy=True) for name, value in on_device.items()}
        arrays = {name: _array(value) for name, value in inputs.items()}
        results = self.session(**arrays)
        return {
            name: torch.from_numpy(np.asarray(value)).to(self.device, self.dtype)
            for name, value in results.items()
        }

    def _on_device(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """A call on the GPU: the declared dtypes, one timestep for each row."""
        batch = len(inputs[self.session.inputs[0].name])
        tensors = {}
        for spec in self.session.inputs:
            kind = getattr(torch, spec.dtype)
            value = torch.as_tensor(inputs[spec.name], device=self.device).to(kind)
            repeats = spec.shape == ("batch",) and value.numel() == 1
            tensors[spec.name] = (value.reshape(1).expand(batch) if repeats else value).contiguous()
        return self.session.run_tensors(tensors)

    def check_options(self, **options: Any) -> None:
        """Raises InputError naming the first option that is given: the compiled module cannot honour it."""
        for option, value in options.items():
            if value is not None and not (isinstance(value, dict) and not value):
                raise InputError(
                    f"{self.name} was compiled by fastdiff and takes no {option}: leave it out, or use the"
                    " original pipeline"
                )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> StandIn:
        moved = fn(self.marker.data)
        if moved.device != self.marker.device:
            raise InputError(
                f"{self.name} was compiled by fastdiff for {self.marker.device.type} and cannot move to"
                f" {moved.device.type}: move the original pipeline there and compile it again"
            )
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def __getattr__(self, attribute: str) -> Any:
        try:
            return super().__getattr__(attribute)
        except AttributeError:
            # before __init__ has set the name, and for what Python and PyTorch look for
            name = self.__dict__.get("name")
            if name is None or attribute.startswith("_"):
                raise
            raise refuse(name, attribute) from None

    def load_state_dict(self, *arguments: Any, **options: Any) -> Any:
        """Refused: the engine has its weights."""
        raise refuse(self.name, "load_state_dict")

    def __deepcopy__(self, memo: dict[int, Any]) -> StandIn:
        raise refuse(self.name, "copies")

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Neither pickled nor copied: a session belongs to its process."""
        raise refuse(self.name, "copies")


def _array(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return np.asarray(value)
    value = value.detach().cpu()
    return value.float().numpy() if value.is_floating_point() else value.numpy()


def emptied(module: Any) -> Any:
    """A copy of a module with its config and settings, and neither weights nor children."""
    clone = copy.copy(module)
    for table in ("_modules", "_parameters", "_buffers"):
        clone.__dict__[table] = type(module.__dict__[table])()
    return clone.eval()
