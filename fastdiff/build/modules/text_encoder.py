"""Modules of text encoders: token ids and vectors of textual inversion in, hidden states out.

::

    input_ids ─table─▶ + added_embeds ─▶ layers ─▶ hidden states ─▶ last_hidden_state, hidden_states
                                                            └─at the end token─▶ text_embeds

The table has two more rows than the vocabulary, all zero: a token whose id is one of theirs is its
vector in ``added_embeds`` alone, which is zero for all others. Two, because of models whose configuration
names end token 2: they pool where the largest id stands (transformers kept that for old checkpoints), so that
of the added tokens one must be larger than the rest.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from fastdiff.build.modules.spec import ModuleSpec
from fastdiff.config import ModelSpec, SizeRange, TensorSpec, TextEncoderSpec

__all__ = ["text_encoder_spec", "wrap_text_encoder"]

_ADDED_ROWS = 2


class _TextEncoder(nn.Module):
    """Of engines whose model names no text encoders: the hidden state that is used, and nothing else."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor) -> Any:
        return self.model(input_ids).last_hidden_state


class _Table(nn.Module):
    """A token embedding with rows of zeros at its end, whose result ``added`` is added to."""

    def __init__(self, embedding: nn.Embedding) -> None:
        super().__init__()
        rows = embedding.weight.detach()
        zeros = rows.new_zeros((_ADDED_ROWS, rows.shape[1]))
        self.weight = nn.Parameter(torch.cat([rows, zeros]), requires_grad=False)
        self.added: Tensor | None = None

    def forward(self, ids: Tensor) -> Tensor:
        found = nn.functional.embedding(ids, self.weight)
        return found if self.added is None else found + self.added


class _States(nn.Module):
    """Hidden states of a ``CLIPTextModel``, with or without projection, in the order of clip-skip.

    ``penultimate``: from the last but one on, as they are; otherwise from the last, each after the final
    norm. The last layer is left out where nothing needs it.
    """

    def __init__(self, model: Any, penultimate: bool) -> None:
        super().__init__()
        text = getattr(model, "text_model", model)
        table = _Table(text.embeddings.token_embedding)
        projected, encoder = hasattr(model, "text_projection"), text.encoder
        if penultimate and not projected:
            encoder = _replaced(encoder, layers=nn.ModuleList(list(encoder.layers)[:-1]))
        embeddings = _replaced(text.embeddings, token_embedding=table)
        text = _replaced(text, embeddings=embeddings, encoder=encoder)
        self.model = _replaced(model, text_model=text) if hasattr(model, "text_model") else text
        self._penultimate = penultimate
        self._unused = 1 if penultimate and projected else 0

    def forward(self, input_ids: Tensor, added_embeds: Tensor) -> tuple[Tensor, ...]:
        text = getattr(self.model, "text_model", self.model)
        states: list[Tensor] = []

        def keep(layer: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
            states.extend([] if states else [arguments[0]])
            states.append(output if isinstance(output, Tensor) else output[0])

        hooks = [layer.register_forward_hook(keep) for layer in text.encoder.layers]
        text.embeddings.token_embedding.added = added_embeds
        try:
            result = self.model(input_ids)
        finally:
            text.embeddings.token_embedding.added = None
            for hook in hooks:
                hook.remove()
        ordered = states[::-1][self._unused :]
        stacked = torch.cat([state.unsqueeze(1) for state in ordered], dim=1)
        last = ordered[0] if self._penultimate else result.last_hidden_state
        if not self._penultimate:
            stacked = text.final_layer_norm(stacked)
        pooled = getattr(result, "text_embeds", None)
        return (last, stacked) if pooled is None else (last, stacked, pooled)


def _replaced(module: Any, **children: nn.Module) -> Any:
    """A copy of a module with other children; all else is shared, and the module stays as it was."""
    clone = copy.copy(module)
    clone._modules = {**module._modules, **children}
    return clone


def wrap_text_encoder(part: Any, states: str | None = None) -> nn.Module:
    """The module around a ``CLIPTextModel`` or ``CLIPTextModelWithProjection``.

    ``states`` are which hidden states it gives, as in the options of its spec.
    """
    return _TextEncoder(part) if states is None else _States(part, states == "penultimate")


def text_encoder_spec(name: str, model: ModelSpec) -> ModuleSpec:
    """The spec of a text encoder."""
    encoder = next((each for each in model.text_encoders if each.module == name), None)
    window = model.max_tokens if encoder is None else encoder.window
    ids = TensorSpec("input_ids", "int64", ("batch", "tokens"))
    shapes = {"batch": SizeRange(), "tokens": SizeRange(1, window)}
    if encoder is None or not encoder.layers:
        last = TensorSpec("last_hidden_state", "float32", ("batch", "tokens", model.hidden_size))
        return ModuleSpec(name, name, (ids,), (last,), shapes)
    hidden = encoder.hidden_size
    added = TensorSpec("added_embeds", "float32", ("batch", "tokens", hidden))
    options = {"states": "penultimate" if encoder.penultimate else "normalised"}
    return ModuleSpec(name, name, (ids, added), _outputs(encoder), shapes, options=options)


def _outputs(encoder: TextEncoderSpec) -> tuple[TensorSpec, ...]:
    hidden = encoder.hidden_size
    outputs = [
        TensorSpec("last_hidden_state", "float32", ("batch", "tokens", hidden)),
        TensorSpec("hidden_states", "float32", ("batch", encoder.layers, "tokens", hidden)),
    ]
    if encoder.pooled_size:
        outputs.append(TensorSpec("text_embeds", "float32", ("batch", encoder.pooled_size)))
    return tuple(outputs)
