"""What stands for the prompt encoder in an engine that takes no prompt."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastdiff.errors import InputError
from fastdiff.prompts.encoder import Branches

if TYPE_CHECKING:
    from fastdiff.request import Request
    from fastdiff.tokenizer import ClipTokenizer

__all__ = ["NoPrompts"]


class NoPrompts:
    """One branch without inputs, and nothing to forget."""

    def branches(self, request: Request) -> Branches:
        """One branch."""
        return [{}]

    @property
    def tokenizer(self) -> ClipTokenizer:
        """Raises InputError: there is none."""
        raise InputError("this engine takes no prompt and has no tokenizer")

    def forget(self) -> None:
        """Nothing."""
