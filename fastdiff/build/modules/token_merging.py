"""Token merging: self-attention of a U-Net's finest level on fewer tokens.

D. Bolya and J. Hoffman, "Token Merging for Fast Stable Diffusion" (2023). In each transformer block of the
level with the largest pictures that has attention, tokens are matched by the block's input, merged behind its
first norm, and taken apart after the self-attention, before the residual. Cross-attention and the
feed-forward layer see every token: the paper finds merging there to cost more than it gains.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from torch import Tensor, nn

from fastdiff.build.modules.copies import copied, with_forward, with_submodule
from fastdiff.errors import InputError
from fastdiff.kernels import library

__all__ = ["check_token_merging", "with_merged_tokens"]

_MOST = Fraction(3, 4)


def check_token_merging(unet: Mapping[str, Any], ratio: float) -> int:
    """A share of merged tokens as a percentage. Raises InputError for one that cannot be, or a U-Net without.

    ``unet`` is the U-Net's config, empty where there is none.
    """
    number = isinstance(ratio, (int, float)) and not isinstance(ratio, bool)
    if not (number and 0 <= ratio <= 0.75 and round(100 * ratio) == 100 * Fraction(str(ratio))):
        raise InputError(
            f"token_merging is {ratio!r}: it must be the share of merged tokens, 0 to 0.75 in steps of 0.01"
        )
    if ratio and not any(str(block).startswith("CrossAttn") for block in unet.get("down_block_types", ())):
        raise InputError("token_merging: the U-Net has no transformer blocks: leave token_merging out")
    return round(100 * ratio)


def with_merged_tokens(wrapper: nn.Module, percent: int) -> nn.Module:
    """The module of a U-Net with merged tokens on its finest level with attention."""
    share = Fraction(percent, 100)
    model: Any = wrapper.model
    attends = [getattr(block, "has_cross_attention", False) for block in model.down_blocks]
    down = attends.index(True)
    up = len(model.up_blocks) - 1 - down
    for path in (f"down_blocks.{down}", f"up_blocks.{up}"):
        block = model.get_submodule(path)
        for index in range(len(block.attentions)):
            place = f"{path}.attentions.{index}"
            model = with_submodule(model, place, _merging(model.get_submodule(place), share))
    merging = copied(wrapper)
    merging.model = model
    return merging  # type: ignore[no-any-return]


def _merging(transformer: Any, share: Fraction) -> Any:
    """A transformer over the pixels of a picture whose self-attentions merge tokens."""
    sides: list[Any] = []
    plans: list[Tensor] = []

    def sized(forward: Any, *args: Any, **kwargs: Any) -> Any:
        picture = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
        sides[:] = picture.shape[2:]
        return forward(*args, **kwargs)

    def match(forward: Any, x: Tensor) -> Any:
        picture = x.view(x.shape[0], sides[0], sides[1], x.shape[2])
        plans[:] = [library.token_match(picture, share.numerator, share.denominator)]
        return forward(x)

    def merge(forward: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        merged = library.token_merge(x, plans[0], share.numerator, share.denominator)
        return library.token_unmerge(forward(merged, *args, **kwargs), plans[0])

    for index, block in enumerate(transformer.transformer_blocks):
        place = f"transformer_blocks.{index}"
        transformer = with_submodule(transformer, f"{place}.norm1", with_forward(block.norm1, match))
        transformer = with_submodule(transformer, f"{place}.attn1", with_forward(block.attn1, merge))
    return with_forward(transformer, sized)
