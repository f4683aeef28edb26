"""Checkpoints in one ``.safetensors`` file, in the layouts of the models' own code.

``layout.py`` says what a file holds, ``weights.py`` converts it part by part with diffusers' own functions,
``vocabulary.py`` finds the tokenizer, which such files lack, ``checkpoint.py`` puts them together.
"""

from __future__ import annotations

from fastdiff.build.single_file.checkpoint import FileCheckpoint, load_file

__all__ = ["FileCheckpoint", "load_file"]
