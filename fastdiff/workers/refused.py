"""Tasks that run on one device alone."""

from __future__ import annotations

from typing import Any, NoReturn

from fastdiff.errors import InputError

__all__ = ["OneDeviceTasks"]


class OneDeviceTasks:
    """The methods of `fastdiff.tasks.methods.Tasks`, each refused by name."""

    def img2img(self, *arguments: Any, **options: Any) -> NoReturn:
        """Raises InputError."""
        _refuse("img2img")

    def inpaint(self, *arguments: Any, **options: Any) -> NoReturn:
        """Raises InputError."""
        _refuse("inpaint")

    def upscale(self, *arguments: Any, **options: Any) -> NoReturn:
        """Raises InputError."""
        _refuse("upscale")

    def high_resolution(self, *arguments: Any, **options: Any) -> NoReturn:
        """Raises InputError."""
        _refuse("high_resolution")


def _refuse(task: str) -> NoReturn:
    raise InputError(
        f"{task} runs on one device, not on several at once: use fastdiff.load and num for several pictures"
    )
