"""Stand-ins of U-Nets."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from fastdiff.compiled.stand_ins.denoiser import Denoiser
from fastdiff.compiled.stand_ins.stand_in import StandIn
from fastdiff.errors import InputError
from fastdiff.targets import Session

__all__ = ["unet"]


class _UNet(Denoiser):
    def __init__(self, name: str, session: Session, like: Any) -> None:
        super().__init__(name, session, like)
        if like.config.get("addition_embed_type") == "text_time":
            # pipelines compare its width with what they are about to pass
            self.add_embedding = nn.Module()
            self.add_embedding.linear_1 = _Width(like.add_embedding.linear_1.in_features)

    def _predict(self, inputs: dict[str, Any], kind: Any, return_dict: bool) -> Any:
        output = self.run(**inputs)["sample"]
        return kind(sample=output) if return_dict else (output,)


class _Width(nn.Module):
    """What is left of a linear layer: how wide its inputs are."""

    def __init__(self, in_features: int) -> None:
        super().__init__()
        self.in_features = in_features


class _ConditionalUNet(_UNet):
    """In place of a ``UNet2DConditionModel``."""

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        encoder_hidden_states: Tensor,
        class_labels: Tensor | None = None,
        timestep_cond: Tensor | None = None,
        attention_mask: Tensor | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
        added_cond_kwargs: dict[str, Tensor] | None = None,
        down_block_additional_residuals: tuple[Tensor, ...] | None = None,
        mid_block_additional_residual: Tensor | None = None,
        down_intrablock_additional_residuals: tuple[Tensor, ...] | None = None,
        encoder_attention_mask: Tensor | None = None,
        return_dict: bool = True,
    ) -> Any:
        """As diffusers' ``forward``. Raises InputError for an option that the module does not have."""
        from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput

        self.check_options(
            attention_mask=attention_mask,
            cross_attention_kwargs=cross_attention_kwargs,
            down_intrablock_additional_residuals=down_intrablock_additional_residuals,
            encoder_attention_mask=encoder_attention_mask,
        )
        inputs = self.conditions(
            sample, encoder_hidden_states, class_labels, timestep_cond, added_cond_kwargs
        )
        inputs |= self._residuals(sample, down_block_additional_residuals, mid_block_additional_residual)
        inputs |= {"sample": sample, "timestep": timestep}
        return self._predict(inputs, UNet2DConditionOutput, return_dict)

    def _residuals(
        self, sample: Tensor, down: tuple[Tensor, ...] | None, mid: Tensor | None
    ) -> dict[str, Tensor]:
        """A ControlNet's residuals by name, zeros where the module has them and none are given."""
        if "mid_residual" not in self._names:
            self.check_options(
                down_block_additional_residuals=down,
                mid_block_additional_residual=mid,
            )
            return {}
        specs = [spec for spec in self.session.inputs if "residual" in spec.name]
        if down is not None and mid is not None:
            if len(down) != len(specs) - 1:
                raise InputError(
                    f"{self.name} needs {len(specs) - 1} residuals of its way down, found {len(down)}"
                )
            return dict(zip((spec.name for spec in specs), (*down, mid), strict=True))
        self.check_options(down_block_additional_residuals=down, mid_block_additional_residual=mid)
        block = int(self.session.inputs[0].factors()[2][0])
        blocks = {"height": sample.shape[2] // block, "width": sample.shape[3] // block, "batch": len(sample)}
        zeros = {}
        for spec in specs:
            shape = [int(factor * (blocks[symbol] if symbol else 1)) for factor, symbol in spec.factors()]
            zeros[spec.name] = sample.new_zeros(shape)
        return zeros


class _UnconditionalUNet(_UNet):
    """In place of a ``UNet2DModel``."""

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        class_labels: Tensor | None = None,
        return_dict: bool = True,
    ) -> Any:
        """As diffusers' ``forward``."""
        from diffusers.models.unets.unet_2d import UNet2DOutput

        inputs = self.conditions(sample, None, class_labels, None, None)
        inputs |= {"sample": sample, "timestep": timestep}
        return self._predict(inputs, UNet2DOutput, return_dict)


def unet(name: str, session: Session, like: Any) -> StandIn:
    """In place of the U-Net ``like``."""
    kind = _ConditionalUNet if type(like).__name__ == "UNet2DConditionModel" else _UnconditionalUNet
    return kind(name, session, like)
