"""What is measured: a module or a whole picture of one model at one size, and who does it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastdiff.config import ModelSpec
from fastdiff.manifest import decode, encode

__all__ = ["KINDS", "Case", "Job", "Picture"]

KINDS = {
    "run": "one call of a module",
    "step": "one guided step: U-Net, guidance and the sampler's update",
    "open": "opening a module whose files are in the page cache",
    "picture": "one picture of a process that is warm",
    "cold": "start of a process to the PNG on disk",
}
"""What a case times."""


@dataclass(frozen=True)
class Picture:
    """How pictures of the kinds ``picture`` and ``cold`` are made; the sampler is the checkpoint's own."""

    prompt: str = "a red circle left of a blue square"
    steps: int = 20
    guidance: float = 5.0
    seed: int = 0


@dataclass(frozen=True)
class Case:
    """One line of the results. ``module`` is empty for pictures; height and width are picture pixels.

    ``batch`` counts rows of the module's input, so guidance makes two of one picture. ``device`` is ``cpu``
    or ``cuda``, ``precision`` that of the contestants; all are compared with PyTorch in fp32 on that device.
    """

    model: str
    kind: str
    module: str
    batch: int
    height: int
    width: int
    device: str = "cpu"
    precision: str = "fp32"

    @property
    def label(self) -> str:
        """``scenes unet 64x64 batch 2``."""
        parts = [self.model]
        if self.module and self.module.replace("_", "-") not in self.model:
            parts.append(self.module)
        if self.kind != "run":
            parts.append(self.kind)
        label = f"{' '.join(parts)} {self.height}x{self.width} batch {self.batch}"
        return label if self.device == "cpu" else f"{label} {self.device} {self.precision}"

    def sizes(self, model: ModelSpec) -> dict[str, int]:
        """The symbolic sizes of a module's inputs, height and width in latent pixels."""
        factor = model.vae_scale_factor
        return {
            "batch": self.batch,
            "height": self.height // factor,
            "width": self.width // factor,
            "tokens": model.max_tokens,
        }


@dataclass(frozen=True)
class Job:
    """All that a worker is told about its case: everything here is plain, and goes to it as JSON.

    ``checkpoint`` holds the parts (``unet/``, ``vae/`` …), ``inputs`` and ``expected`` are .npz files,
    ``onnx`` and ``engine`` are empty for contestants that need none. ``limit`` is Agreement's.
    """

    contestant: str
    case: Case
    model: ModelSpec
    checkpoint: str
    inputs: str
    expected: str
    threads: int
    onnx: str = ""
    engine: str = ""
    vocab_size: int = 1
    limit: float | None = None
    picture: Picture = field(default_factory=Picture)

    def to_json(self) -> dict[str, Any]:
        """Nested plain values."""
        plain: dict[str, Any] = encode(self)
        return plain

    @staticmethod
    def from_json(document: dict[str, Any]) -> Job:
        """The inverse of ``to_json``."""
        job: Job = decode(Job, document, "job")
        return job

    @property
    def folder(self) -> Path:
        """The folder of the checkpoint."""
        return Path(self.checkpoint)
