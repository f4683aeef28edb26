"""diffusers as the oracle for controlled pictures, called with its own names."""

from __future__ import annotations

import inspect
import warnings
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from PIL.Image import Image

from tests.oracle import scheduler_of

__all__ = ["ControlOracle"]


class ControlOracle:
    """diffusers' pipelines of a checkpoint in float32 on one thread, a class and its extra parts each."""

    def __init__(self, checkpoint: Path, kind: str = "StableDiffusionPipeline") -> None:
        torch.set_num_threads(1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # names of arguments change from version to version
            self.base = getattr(diffusers, kind).from_pretrained(
                checkpoint,
                torch_dtype=torch.float32,
                local_files_only=True,
                **({} if "XL" in kind else {"safety_checker": None}),
            )

    def __call__(
        self, kind: str, parts: dict[str, Any], sampler: str, seed: int, ip_adapter: Path | None, **call: Any
    ) -> tuple[list[Image], np.ndarray]:
        """Pictures and final latents of a pipeline ``kind`` with further ``parts``."""
        last: dict[str, Any] = {}

        def keep(pipe: object, step: int, timestep: object, tensors: dict[str, Any]) -> dict[str, Any]:
            last.update(tensors)
            return {}

        def keep_old(step: int, timestep: object, latents: torch.Tensor) -> None:
            last["latents"] = latents

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            known = inspect.signature(getattr(diffusers, kind).__init__).parameters
            shared = {name: part for name, part in self.base.components.items() if name in known}
            pipe = getattr(diffusers, kind)(**shared, **parts)
            pipe.set_progress_bar_config(disable=True)
            name, options = scheduler_of(sampler)
            pipe.scheduler = getattr(diffusers, name).from_config(self.base.scheduler.config, **options)
            watch: dict[str, Any] = {"callback_on_step_end": keep}
            if "Adapter" in kind:
                watch = {"callback": keep_old}
            if ip_adapter is not None:
                scale = call.pop("ip_scale")
                pipe.load_ip_adapter(
                    str(ip_adapter.parent), subfolder="", weight_name=ip_adapter.name, local_files_only=True
                )
                pipe.set_ip_adapter_scale(scale)
            try:
                images = pipe(generator=torch.Generator().manual_seed(seed), **watch, **call).images
            finally:
                if ip_adapter is not None:
                    pipe.unload_ip_adapter()
        return images, last["latents"].numpy()
