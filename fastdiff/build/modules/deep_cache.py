"""DeepCache: a U-Net that also gives its deep features, and the shallow part that goes on from them.

X. Ma et al., "DeepCache: Accelerating Diffusion Models for Free" (2023), section 3. The skip connections of a
U-Net are counted from the outside, 0 being the one around everything but the first and last convolution.
``branch`` is the number of the connection at which the shallow part turns back: it computes connections 0 to
``branch`` and the layers that take them, and has from a full evaluation what came up from below::

    conv_in ── 0 ─────────────────────────────── last layer ── conv_out     branch 0
       └ layer ── 1 ──────────── last layer but one ┘                       branch 1
            └ layer ── 2 ── … ───────┘
                 └ … deep_features ┘

Branches are those of the outermost level, whose features are as large as the latents.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from fastdiff.build.modules.copies import copied, with_forward, with_submodule
from fastdiff.errors import InputError

__all__ = ["FEATURES", "deep_features", "shallow_unet", "with_deep_features"]

FEATURES = "deep_features"
"""The U-Net's second output, and the shallow part's input."""

_BLOCKS = ("DownBlock2D", "CrossAttnDownBlock2D", "UpBlock2D", "CrossAttnUpBlock2D")


def deep_features(unet: Mapping[str, Any], branch: int) -> int:
    """How many channels the features of a branch have, by the U-Net's config.

    Raises InputError for a branch or a U-Net for which there is none.
    """
    blocks = (*unet["down_block_types"], *unet["up_block_types"])
    if other := next((block for block in blocks if block not in _BLOCKS), None):
        raise InputError(f"deep_cache: the U-Net has blocks of type {other}: leave deep_cache out")
    layers = unet["layers_per_block"]
    most = layers if isinstance(layers, int) else int(layers[0])
    if isinstance(branch, bool) or not isinstance(branch, int) or not 0 <= branch <= most:
        raise InputError(
            f"deep_cache is {branch!r}: give a branch of the outermost level, a whole number from 0 to {most}"
        )
    channels = unet["block_out_channels"]
    return int(channels[0] if branch < most else channels[min(1, len(channels) - 1)])


def with_deep_features(wrapper: nn.Module, branch: int) -> nn.Module:
    """The module of a U-Net with its deep features as a second output."""
    model: Any = wrapper.model
    level, layer = _entry(model, branch)
    found: list[Tensor] = []
    if layer == 0:

        def note(forward: Any, *args: Any, **kwargs: Any) -> Any:
            found.append(kwargs["hidden_states"] if "hidden_states" in kwargs else args[0])
            return forward(*args, **kwargs)

        path = f"up_blocks.{level}"
    else:

        def note(forward: Any, *args: Any, **kwargs: Any) -> Any:
            result = forward(*args, **kwargs)
            found.append(result if isinstance(result, Tensor) else result[0])
            return result

        kind = "attentions" if hasattr(model.up_blocks[level], "attentions") else "resnets"
        path = f"up_blocks.{level}.{kind}.{layer - 1}"
    noting = copied(wrapper)
    noting.model = with_submodule(model, path, with_forward(model.get_submodule(path), note))
    inner = noting.forward

    def forward(*inputs: Tensor) -> tuple[Tensor, Tensor]:
        sample = inner(*inputs)
        return sample, found.pop()

    forward.__signature__ = inspect.signature(inner)  # type: ignore[attr-defined]
    noting.forward = forward
    return noting  # type: ignore[no-any-return]


def shallow_unet(wrapper: nn.Module, branch: int) -> nn.Module:
    """The shallow part of a U-Net's module: its inputs, then the features of a full evaluation."""
    given: list[Tensor] = []
    shallow = copied(wrapper)
    shallow.model = _truncated(wrapper.model, branch, given)
    inner = shallow.forward

    def forward(*inputs: Tensor) -> Tensor:
        given.append(inputs[-1])
        result: Tensor = inner(*inputs[:-1])
        given.clear()
        return result

    signature = inspect.signature(inner)
    features = inspect.Parameter(FEATURES, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = (*signature.parameters.values(), features)
    forward.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    shallow.forward = forward
    return shallow  # type: ignore[no-any-return]


class _Passing(nn.Module):
    """In place of the middle block: what comes out of it is replaced anyway."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return x


def _truncated(model: Any, branch: int, given: list[Tensor]) -> Any:
    """The model without what lies below the branch; ``given`` holds the features when it runs."""
    level, layer = _entry(model, branch)
    down: dict[str, nn.Module] = {}
    missing = branch
    for name, block in model.down_blocks.named_children():
        if missing == 0:
            break
        kept = min(missing, len(block.resnets))
        shortened = _layers(block, slice(kept))
        missing -= kept
        if missing == 0:
            shortened.downsamplers = None
        elif block.downsamplers is not None:
            missing -= 1
        down[name] = shortened

    def enter(forward: Any, *args: Any, **kwargs: Any) -> Any:
        if "hidden_states" in kwargs:
            return forward(*args, **{**kwargs, "hidden_states": given[0]})
        return forward(given[0], *args[1:], **kwargs)

    first = with_forward(_layers(model.up_blocks[level], slice(layer, None)), enter)
    twin = copied(model)
    twin.down_blocks = _named(down)
    twin.mid_block = _Passing()
    up = dict(model.up_blocks.named_children())
    twin.up_blocks = _named({str(level): first, **dict(list(up.items())[level + 1 :])})
    return twin


def _named(modules: Mapping[str, nn.Module]) -> nn.ModuleList:
    """A list whose items keep the numbers that they have in the whole model, and so their weights' names."""
    found = nn.ModuleList()
    found._modules = dict(modules)
    return found


def _layers(block: Any, kept: slice) -> Any:
    """A block with some of its layers."""
    twin = copied(block)
    for kind in ("resnets", "attentions"):
        if hasattr(block, kind):
            layers = list(getattr(block, kind).named_children())
            setattr(twin, kind, _named(dict(layers[kept])))
    return twin


def _entry(model: Any, branch: int) -> tuple[int, int]:
    """Block and layer on the way up that take the skip connection called ``branch``."""
    taken = 0
    for level in reversed(range(len(model.up_blocks))):
        count = len(model.up_blocks[level].resnets)
        if branch < taken + count:
            return level, count - 1 - (branch - taken)
        taken += count
    raise ValueError(f"branch {branch} of a U-Net with {taken} skip connections")
