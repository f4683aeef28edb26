"""From prompts to what the U-Net attends to: tokens, text encoders, one row of conditions per picture.

::

    options.py              arguments of a call that are about its prompts, checked
    sizes.py                what SDXL is told of a picture beside its prompt
    weighting.py            (word:1.3), [word], BREAK
    textual_inversion.py    files with vectors for a word of their own
    chunks.py               windows of 75 tokens with weights and vectors
    reader.py               all texts of a call as chunks
    encoder.py              chunks through the text encoders, as inputs of the U-Net
    none.py                 what stands for it in engines that take no prompt
"""

from fastdiff.prompts.encoder import PromptEncoder
from fastdiff.prompts.none import NoPrompts
from fastdiff.prompts.options import PromptOptions, TextOptions
from fastdiff.prompts.sizes import SizeConditioning

__all__ = ["NoPrompts", "PromptEncoder", "PromptOptions", "SizeConditioning", "TextOptions"]
