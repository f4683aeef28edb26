"""The two modules of a ControlNet: what it makes of its picture, once, and its residuals, in every step."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from fastdiff.build.modules.copies import with_submodule
from fastdiff.build.modules.named import Named, with_inputs
from fastdiff.build.modules.spec import ModuleSpec, block_sizes, latent
from fastdiff.config import ModelSpec, SizeRange, TensorSpec
from fastdiff.control.spec import FeatureSpec

__all__ = [
    "controlnet_embedding_spec",
    "controlnet_spec",
    "features",
    "position",
    "wrap_controlnet",
    "wrap_controlnet_embedding",
]

Tensors = tuple[TensorSpec, ...]


class _Embedding(nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model.controlnet_cond_embedding
        if model.config.controlnet_conditioning_channel_order == "bgr":
            first = self.model.conv_in
            conv = nn.Conv2d(first.in_channels, first.out_channels, first.kernel_size, padding=first.padding)
            conv.weight = nn.Parameter(first.weight.detach().flip(1), requires_grad=False)
            conv.bias = first.bias
            self.model = with_submodule(self.model, "conv_in", conv)

    def forward(self, control_image: Tensor) -> Any:
        return self.model(control_image)


class _ControlNet(Named):
    """The rest of the network. Scales, and the mean over the picture where residuals are pooled, are the
    caller's: they change without a rebuild.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = with_submodule(model, "controlnet_cond_embedding", nn.Identity())
        settings = {"controlnet_conditioning_channel_order": "rgb", "global_pool_conditions": False}
        self.model.__dict__["_internal_dict"] = type(model.config)({**model.config, **settings})

    def compute(self, given: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """The residuals, that of the middle last."""
        added = {name: given[name] for name in ("text_embeds", "time_ids") if name in given}
        down, mid = self.model(
            given["sample"],
            given["timestep"],
            given["encoder_hidden_states"],
            given["control_embedding"],
            added_cond_kwargs=added or None,
            return_dict=False,
        )
        return (*down, mid)


def wrap_controlnet_embedding(part: Any, inputs: Tensors, outputs: Tensors) -> nn.Module:
    """What a ``ControlNetModel`` makes of its picture alone."""
    return _Embedding(part)


def wrap_controlnet(part: Any, inputs: Tensors, outputs: Tensors) -> nn.Module:
    """The residuals of a ``ControlNetModel``."""
    return with_inputs(_ControlNet, tuple(tensor.name for tensor in inputs))(part)


def features(names: tuple[str, ...], sizes: tuple[FeatureSpec, ...]) -> tuple[TensorSpec, ...]:
    """Tensors on the levels of a U-Net."""
    return tuple(
        TensorSpec(
            name,
            "float32",
            ("batch", size.channels, *(_part(side, size.divisor) for side in ("height", "width"))),
        )
        for name, size in zip(names, sizes, strict=True)
    )


def _part(side: str, divisor: int) -> str:
    return side if divisor == 1 else f"{side}/{divisor}"


def controlnet_embedding_spec(name: str, model: ModelSpec) -> ModuleSpec:
    """The spec of ``controlnet_embedding``, ``controlnet_2_embedding`` and so on."""
    part = name.removesuffix("_embedding")
    net = model.control.controlnets[position(part)]
    factor, sides = model.vae_scale_factor, block_sizes(model)
    picture = ("batch", net.image_channels, f"{factor}*height", f"{factor}*width")
    return ModuleSpec(
        name,
        part,
        (TensorSpec("control_image", "float32", picture),),
        (TensorSpec("control_embedding", "float32", ("batch", net.channels, "height", "width")),),
        {"batch": SizeRange(), "height": sides, "width": sides},
    )


def controlnet_spec(name: str, model: ModelSpec) -> ModuleSpec:
    """The spec of ``controlnet``, ``controlnet_2`` and so on."""
    net, sides = model.control.controlnets[position(name)], block_sizes(model)
    hidden = ("batch", "tokens", model.hidden_size)
    added = (("text_embeds", model.pooled_size), ("time_ids", model.time_ids))
    return ModuleSpec(
        name,
        name,
        (
            TensorSpec("sample", "float32", latent(model)),
            TensorSpec("timestep", "float32", ("batch",)),
            TensorSpec("encoder_hidden_states", "float32", hidden),
            *(TensorSpec(label, "float32", ("batch", size)) for label, size in added if size),
            TensorSpec("control_embedding", "float32", ("batch", net.channels, "height", "width")),
        ),
        features(model.control.residual_names(), model.control.residuals),
        {"batch": SizeRange(), "height": sides, "width": sides, "tokens": SizeRange()},
    )


def position(name: str) -> int:
    """0 for ``controlnet``, 1 for ``controlnet_2``, and so on."""
    number = name.rpartition("_")[2]
    return int(number) - 1 if number.isdigit() else 0
