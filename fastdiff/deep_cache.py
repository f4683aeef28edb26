"""DeepCache: deep features of the U-Net, kept over several evaluations.

X. Ma et al., "DeepCache: Accelerating Diffusion Models for Free" (2023). A full evaluation leaves features
behind, from which the evaluations up to the next full one compute the outermost layers alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastdiff.engine_dir import Engine
from fastdiff.errors import InputError

if TYPE_CHECKING:
    from fastdiff.denoise import Evaluation
    from fastdiff.targets.session import Session

__all__ = ["DeepCache", "FeatureReuse", "check_deep_cache", "read_deep_cache"]

Array = NDArray[np.float32]
_MODULE = "unet_shallow"


@dataclass(frozen=True)
class DeepCache:
    """One evaluation in ``every`` is full, counted from 0; ``every`` 1 is exact.

    With a ``center``, the number of an evaluation, the full ones lie closer together around it, the more so
    the larger ``power`` is (the paper's non-uniform 1:N). A power of 1 spaces them evenly. The authors' code
    takes roots of negative numbers there; here powers keep the sign of their base.
    """

    every: int
    center: float | None = None
    power: float = 1.4

    def full(self, total: int) -> frozenset[int]:
        """Numbers of the full evaluations among ``total``.

        Without a center 0, N, 2N, …. With one c, the whole parts of ``c + l^p`` for ``ceil(total / N)`` l
        evenly from ``(-c)^(1/p)`` to, excluded, ``(total - c)^(1/p)``, where powers keep the sign of their
        base; two that fall on one number count once. 0 is always among them.
        """
        if self.center is None or self.every == 1:
            return frozenset(range(0, total, self.every))
        count, center = math.ceil(total / self.every), min(self.center, float(total))
        low, high = _signed(-center, 1 / self.power), _signed(total - center, 1 / self.power)
        places = (low + (high - low) * index / count for index in range(count))
        # rounding may leave a place a little below the whole number that it is
        found = (math.floor(center + _signed(place, self.power) + 1e-9) for place in places)
        return frozenset({0, *(min(max(number, 0), total - 1) for number in found)})

    def setting(self) -> int | dict[str, Any]:
        """As the argument of a call, in JSON values."""
        return self.every if self.center is None else asdict(self)


def _signed(base: float, power: float) -> float:
    return math.copysign(abs(base) ** power, base)


def read_deep_cache(value: object) -> DeepCache | None:
    """A DeepCache from a whole number, a mapping of its fields, or itself; None stays None.

    Raises InputError.
    """
    if value is None or isinstance(value, DeepCache):
        fields: dict[str, Any] = {} if value is None else asdict(value)
    elif isinstance(value, Mapping):
        fields = dict(value)
    else:
        fields = {"every": value}
    if value is None:
        return None
    unknown = [key for key in fields if key not in ("every", "center", "power")]
    if unknown or "every" not in fields:
        wrong = f"has {unknown[0]!r}" if unknown else "lacks 'every'"
        raise InputError(f"deep_cache {wrong}: give a whole number, or every, center and power")
    every, center, power = fields["every"], fields.get("center"), fields.get("power", 1.4)
    if isinstance(every, bool) or not isinstance(every, (int, np.integer)) or every < 1:
        raise InputError(f"deep_cache is {every!r}: it must be a whole number, 1 or more; 1 is exact")
    if center is not None and not (_is_number(center) and center >= 0):
        raise InputError(f"center of deep_cache is {center!r}: it must be the number of a step, 0 or more")
    if not (_is_number(power) and power >= 1):
        raise InputError(f"power of deep_cache is {power!r}: it must be a number, 1 or more")
    if center is None and "power" in fields and fields["power"] != 1.4:
        raise InputError(f"deep_cache has a power of {power:g} and no center: give both, or leave power out")
    return DeepCache(int(every), None if center is None else float(center), float(power))


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def check_deep_cache(engine: Engine, adaptive: str | None, split_guidance: bool) -> None:
    """Whether an engine can reuse features in a call. Raises InputError.

    ``adaptive`` names a sampler that chooses its own steps, ``split_guidance`` says that the halves of
    guidance run on two devices.
    """
    if _MODULE not in engine.manifest.modules:
        raise InputError(
            f"deep_cache: {engine.path} was built without it; build it with fastdiff build CHECKPOINT "
            "--deep-cache, or leave deep_cache out"
        )
    if adaptive is not None:
        raise InputError(
            f"deep_cache with sampler {adaptive!r}, which chooses its own steps by the error that it sees: "
            "use another sampler, or leave deep_cache out"
        )
    if split_guidance:
        raise InputError("deep_cache with a guidance_device: the features stay on one; leave one of them out")


class FeatureReuse:
    """What computes the U-Net's output: the whole of it in ``full`` evaluations, the shallow part in others.

    Where the batch changes, as at the ends of a guidance interval, an evaluation is full as well.
    """

    def __init__(self, unet: Session, shallow: Session, full: frozenset[int]) -> None:
        self._unet = unet
        self._shallow = shallow
        self._full = full
        self._features: Array | None = None

    def __call__(self, evaluation: Evaluation, inputs: dict[str, NDArray[Any]]) -> Array:
        """[batch, channels, h, w] of the inputs of the U-Net."""
        kept = self._features
        if kept is None or evaluation.index in self._full or len(kept) != len(inputs["sample"]):
            outputs = self._unet(**inputs)
            self._features = outputs["deep_features"]
        else:
            outputs = self._shallow(**inputs, deep_features=kept)
        sample: Array = outputs["sample"]
        return sample
