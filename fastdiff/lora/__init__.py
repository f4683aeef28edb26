"""LoRA: low-rank updates of a model's weights (Hu et al. 2021), from a file to what a target takes.

``file.py`` reads a file, with one file per layout of its keys: ``kohya.py``, ``original_blocks.py``,
``peft.py``; ``stack.py`` adds several up. Imports NumPy and safetensors alone.
"""

from fastdiff.lora.file import Lora, Shapes, read_lora
from fastdiff.lora.stack import stack
from fastdiff.lora.update import LowRank

__all__ = ["Lora", "LowRank", "Shapes", "read_lora", "stack"]
