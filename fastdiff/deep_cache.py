"""DeepCache: which evaluations of the U-Net are full; ``feature_reuse.py`` computes the others.

X. Ma et al., "DeepCache: Accelerating Diffusion Models for Free" (2023). A full evaluation leaves features
behind, from which the evaluations up to the next full one compute the outermost layers alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from fastdiff.errors import InputError

__all__ = ["DeepCache", "read_deep_cache"]


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
