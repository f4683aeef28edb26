"""What takes a component's place in a compiled pipeline: its config, its calls and results, another engine.

A stand-in is a torch module without weights, so that a pipeline finds its device and dtype as always. What
diffusers might ask of the component beyond that is refused by name; nothing is ignored.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastdiff.errors import InputError
from fastdiff.targets import Session

__all__ = ["StandIn", "autoencoder", "controlnet", "refuse", "several", "text_encoder", "unet"]


class MissingFeatureError(InputError, AttributeError):
    """Something of a diffusers component that its stand-in does not have."""


def refuse(name: str, attribute: str) -> MissingFeatureError:
    """The error for using ``attribute`` of the stand-in, or the pipeline, called ``name``."""
    return MissingFeatureError(
        f"{name} was compiled by fastdiff and has no {attribute}: change the original pipeline and compile it"
        " again"
    )


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

    def __deepcopy__(self, memo: dict[int, Any]) -> StandIn:
        raise refuse(self.name, "copies")


def _array(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return np.asarray(value)
    value = value.detach().cpu()
    return value.float().numpy() if value.is_floating_point() else value.numpy()


class _Denoiser(StandIn):
    """What U-Nets and ControlNets share."""

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


class _UNet(_Denoiser):
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
        block = self.session.inputs[0].factors()[2][0]
        height, width = (side // block for side in sample.shape[2:])
        return {
            spec.name: sample.new_zeros(
                (
                    len(sample),
                    int(spec.shape[1]),
                    *(f[0] * side for f, side in zip(spec.factors()[2:], (height, width), strict=True)),
                )
            )
            for spec in specs
        }


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

    stand_in: _Denoiser = self.stand_in
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
    clone = _emptied(like)
    clone.stand_in = _Denoiser(name, session, like)
    clone.forward = _controlnet_forward.__get__(clone)
    return _refusing(clone, name)


def several(like: Any, nets: Sequence[Any]) -> Any:
    """In place of a ``MultiControlNetModel``, whose networks these are in place of."""
    clone = _emptied(like)
    clone.nets = nn.ModuleList(nets)
    return _refusing(clone, "controlnet")


class _TextEncoder(StandIn):
    """In place of a ``CLIPTextModel`` or ``CLIPTextModelWithProjection``."""

    def __init__(self, name: str, session: Session, like: Any) -> None:
        super().__init__(name, session, like)
        self.config = like.config
        text = getattr(like, "text_model", like)
        # clip_skip puts the final norm after another layer
        self.text_model = nn.Module()
        self.text_model.final_layer_norm = copy.deepcopy(text.final_layer_norm).requires_grad_(False)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """As transformers' ``forward``. Raises InputError for an option that the module does not have."""
        from transformers.modeling_outputs import BaseModelOutputWithPooling
        from transformers.models.clip.modeling_clip import CLIPTextModelOutput

        self.check_options(
            attention_mask=attention_mask,
            position_ids=position_ids,
            output_attentions=output_attentions or None,
        )
        found = self.run(input_ids=input_ids)
        fields: dict[str, Any] = {"last_hidden_state": found["last_hidden_state"]}
        kind: Any = BaseModelOutputWithPooling
        if "text_embeds" in found:
            kind, fields["text_embeds"] = CLIPTextModelOutput, found["text_embeds"]
        else:
            fields["pooler_output"] = found["pooler_output"]
        if output_hidden_states:
            fields["hidden_states"] = found["hidden_states"].unbind(1)
        result = kind(**fields)
        return result.to_tuple() if return_dict is False else result


def text_encoder(name: str, session: Session, like: Any) -> StandIn:
    """In place of the text encoder ``like``."""
    return _TextEncoder(name, session, like)


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
    clone = _emptied(like)
    for half, child in like._modules.items():
        kept = None if child is None else copy.deepcopy(child) if half not in sessions else None
        clone._modules[half] = kept
    for half, session in sessions.items():
        clone._modules[half] = _Coder(f"{name}.{half}", session, getattr(like, half))
    return _refusing(clone, name)


def _emptied(module: Any) -> Any:
    """A copy of a module with its config and settings, and neither weights nor children."""
    clone = copy.copy(module)
    for table in ("_modules", "_parameters", "_buffers"):
        clone.__dict__[table] = type(module.__dict__[table])()
    return clone.eval()


_REFUSED = (
    "add_adapter",
    "disable_adapters",
    "disable_lora",
    "enable_adapters",
    "enable_gradient_checkpointing",
    "enable_group_offload",
    "enable_layerwise_casting",
    "enable_lora",
    "enable_xformers_memory_efficient_attention",
    "fuse_lora",
    "fuse_qkv_projections",
    "load_attn_procs",
    "load_lora_adapter",
    "load_state_dict",
    "push_to_hub",
    "save_pretrained",
    "set_adapter",
    "set_adapters",
    "set_attention_backend",
    "set_attention_slice",
    "set_attn_processor",
    "set_default_attn_processor",
    "unfuse_lora",
    "unload_lora",
)
"""Methods of diffusers' models that would do nothing to an engine."""


def _refusing(module: Any, name: str) -> Any:
    """The module with methods that raise in place of those that would be without effect."""
    for method in _REFUSED:
        if hasattr(type(module), method):

            def raises(*args: Any, _method: str = method, **kwargs: Any) -> None:
                raise refuse(name, _method)

            module.__dict__[method] = raises
    return module
