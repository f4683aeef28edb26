"""What takes a component's place in a compiled pipeline: its config, its calls and results, another engine.

A stand-in is a torch module without weights, so that a pipeline finds its device and dtype as always. What
diffusers might ask of the component beyond that is refused by name; nothing is ignored.
"""

from __future__ import annotations

from fastdiff.compiled.stand_ins.autoencoder import autoencoder
from fastdiff.compiled.stand_ins.controlnet import controlnet, several
from fastdiff.compiled.stand_ins.refusals import refuse
from fastdiff.compiled.stand_ins.stand_in import StandIn
from fastdiff.compiled.stand_ins.text_encoder import text_encoder
from fastdiff.compiled.stand_ins.unet import unet

__all__ = ["StandIn", "autoencoder", "controlnet", "refuse", "several", "text_encoder", "unet"]
