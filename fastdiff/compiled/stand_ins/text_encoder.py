"""Stand-ins of text encoders."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn

from fastdiff.compiled.stand_ins.stand_in import StandIn
from fastdiff.targets import Session

__all__ = ["text_encoder"]


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
