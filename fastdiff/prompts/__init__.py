"""From prompts to what the U-Net attends to: tokens, text encoders, one row of conditions per picture."""

from fastdiff.prompts.encoder import PromptEncoder
from fastdiff.prompts.none import NoPrompts

__all__ = ["NoPrompts", "PromptEncoder"]
