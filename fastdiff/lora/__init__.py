"""LoRA: low-rank updates of a model's weights (Hu et al. 2021), from a file to what a target takes.

``file.py`` reads a file, with one file per layout of its keys: ``kohya.py``, ``original_blocks.py``,
``peft.py``. ``stack.py`` adds several up, ``loaded.py`` keeps those of an open engine, ``interface.py`` has
what callers see. Imports NumPy and safetensors alone.
"""

from fastdiff.lora.file import Lora, Shapes, read_lora
from fastdiff.lora.loaded import Loras
from fastdiff.lora.stack import stack
from fastdiff.lora.update import LowRank

__all__ = ["Lora", "Loras", "LowRank", "Shapes", "read_lora", "stack"]
