"""What a pipeline offers its callers for LoRAs."""

from __future__ import annotations

import os
from collections.abc import Mapping

from fastdiff.lora.loaded import Loras

__all__ = ["TakesLoras"]


class TakesLoras:
    """The methods of a Pipeline and of a PipelinePool, over their ``_loras``."""

    _loras: Loras

    def load_lora(self, path: str | os.PathLike[str], scale: float = 1.0, name: str | None = None) -> str:
        """Let the LoRA of a ``.safetensors`` file have its effect, times ``scale``, beside those that have
        theirs. Nothing is built again. Returns its name, by default the file's without its ending.

        Raises InputError, which names the key, for a file that is no LoRA, for another model, or of a kind
        that is not supported; TargetError where the engine's target takes none. docs/lora.md lists them.
        """
        return self._loras.load(path, scale, name)

    def set_loras(self, scales: Mapping[str, float]) -> None:
        """Give the loaded LoRAs that are named these scales, and all others 0: no effect."""
        self._loras.set(scales)

    def unload_loras(self, *names: str) -> None:
        """Forget the LoRAs that are named, without names all: pictures are the engine's own again."""
        self._loras.unload(*names)

    @property
    def loras(self) -> dict[str, float]:
        """The scales of the loaded LoRAs by name, in the order of loading."""
        return self._loras.scales
