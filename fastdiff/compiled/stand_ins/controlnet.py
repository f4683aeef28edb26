"""Stand-ins of ControlNets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastdiff.compiled.stand_ins.denoiser import Denoiser
from fastdiff.compiled.stand_ins.refusals import refusing
from fastdiff.compiled.stand_ins.stand_in import emptied
from fastdiff.targets import Session

__all__ = ["controlnet", "several"]


def _controlnet_forward(
    self: Any,
    sample: Tensor,
    timestep: Tensor | float,
    encoder_hidden_states: Tensor,
    controlnet_cond: Tensor,
    conditioning_scale: float = 1.0,
    class_labels: Tensor | None = None,
    timestep_cond: Tensor | None = None,
    attention_mask: Tensor | None = None,
    added_cond_kwargs: dict[str, Tensor] | None = None,
    cross_attention_kwargs: dict[str, Any] | None = None,
    guess_mode: bool = False,
    return_dict: bool = True,
) -> Any:
    """As diffusers' ``forward``; scaling and pooling are left to PyTorch."""
    from diffusers.models.controlnets.controlnet import ControlNetOutput

    stand_in: Denoiser = self.stand_in
    stand_in.check_options(attention_mask=attention_mask, cross_attention_kwargs=cross_attention_kwargs)
    inputs = stand_in.conditions(
        sample, encoder_hidden_states, class_labels, timestep_cond, added_cond_kwargs
    )
    if self.config.controlnet_conditioning_channel_order == "bgr":
        controlnet_cond = controlnet_cond.flip(1)
    found = stand_in.run(**inputs, sample=sample, timestep=timestep, condition=controlnet_cond)
    residuals = [found[spec.name] for spec in stand_in.session.outputs]
    pools = self.config.global_pool_conditions
    scales = torch.ones(len(residuals))
    if guess_mode and not pools:
        scales = torch.logspace(-1, 0, len(residuals))
    residuals = [
        residual * float(scale) * conditioning_scale
        for residual, scale in zip(residuals, scales, strict=True)
    ]
    if pools:
        residuals = [residual.mean((2, 3), keepdim=True) for residual in residuals]
    down, mid = residuals[:-1], residuals[-1]
    if not return_dict:
        return down, mid
    return ControlNetOutput(down_block_res_samples=tuple(down), mid_block_res_sample=mid)


def controlnet(name: str, session: Session, like: Any) -> Any:
    """In place of a ``ControlNetModel``; of its class, which pipelines ask for."""
    clone = emptied(like)
    clone.stand_in = Denoiser(name, session, like)
    clone.forward = _controlnet_forward.__get__(clone)
    return refusing(clone, name)


def several(like: Any, nets: Sequence[Any]) -> Any:
    """In place of a ``MultiControlNetModel``, whose networks these are in place of."""
    clone = emptied(like)
    clone.nets = nn.ModuleList(nets)
    return refusing(clone, "controlnet")
