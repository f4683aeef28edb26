"""ControlNets, T2I-Adapters and IP-Adapters as they are published: read, checked against the U-Net, loaded.

``additions.py`` joins what a build was given, a file each reads one kind. Only safetensors are read.
"""

from fastdiff.build.control.additions import Additions, add_control

__all__ = ["Additions", "add_control"]
