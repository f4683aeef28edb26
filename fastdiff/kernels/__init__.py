"""Kernels: one stem per op.

``<op>.py`` holds the public function on NumPy arrays, run by the compiled ``fastdiff._C``. ``reference.py``,
the specification in plain PyTorch, and ``library.py``, which registers the ops with ``torch.library``, import
torch and are therefore imported only by name.
"""

from __future__ import annotations

from fastdiff.kernels.attention import attention
from fastdiff.kernels.conv2d import conv2d, pack_conv2d
from fastdiff.kernels.elementwise import elementwise
from fastdiff.kernels.embedding import embedding
from fastdiff.kernels.group_norm_silu import group_norm_silu
from fastdiff.kernels.layer_norm import layer_norm
from fastdiff.kernels.linear import linear, pack_linear
from fastdiff.kernels.resample import avg_pool2d, upsample_nearest2d
from fastdiff.kernels.scheduler_step import scheduler_step
from fastdiff.kernels.timestep_embedding import timestep_embedding
from fastdiff.kernels.token_match import token_match
from fastdiff.kernels.token_merge import token_merge
from fastdiff.kernels.token_unmerge import token_unmerge

__all__ = [
    "attention",
    "avg_pool2d",
    "conv2d",
    "elementwise",
    "embedding",
    "group_norm_silu",
    "layer_norm",
    "linear",
    "pack_conv2d",
    "pack_linear",
    "scheduler_step",
    "timestep_embedding",
    "token_match",
    "token_merge",
    "token_unmerge",
    "upsample_nearest2d",
]
