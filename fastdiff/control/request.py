"""What one call asks of all networks that control the U-Net, checked before anything is computed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fastdiff.config import ModelSpec
from fastdiff.control.controlnet import ControlNetRequest, check_controlnet, within
from fastdiff.control.ip_adapter import IpAdapterRequest, check_ip_adapter
from fastdiff.control.t2i_adapter import T2IAdapterRequest, check_t2i_adapter
from fastdiff.pictures import Picture

if TYPE_CHECKING:
    from fastdiff.request import Request

__all__ = ["ControlRequest", "check_control"]


@dataclass(frozen=True)
class ControlRequest:
    """The parts of a call; None for networks that it does not use."""

    controlnet: ControlNetRequest | None = None
    t2i_adapter: T2IAdapterRequest | None = None
    ip_adapter: IpAdapterRequest | None = None

    def __bool__(self) -> bool:
        return any(part is not None for part in (self.controlnet, self.t2i_adapter, self.ip_adapter))

    @property
    def changes(self) -> bool:
        """Whether what it adds differs from step to step."""
        adapter = self.t2i_adapter
        return self.controlnet is not None or (adapter is not None and adapter.end < 1)

    @property
    def counts(self) -> bool:
        """Whether it needs to know how many evaluations of the U-Net there are."""
        adapter = self.t2i_adapter
        net = self.controlnet is not None and not self.controlnet.whole
        return net or (adapter is not None and adapter.end < 1)

    def scales(self) -> list[tuple[str, str, float]]:
        """Option, network and value of the scale of each network that the call uses."""
        found: list[tuple[str, str, float]] = []
        for option, network, part in (
            ("control_scale", "ControlNet", self.controlnet),
            ("adapter_scale", "T2I-Adapter", self.t2i_adapter),
        ):
            if part is None:
                continue
            names = [f"{option} {index}" for index in range(len(part.scales))]
            names = [option] if len(names) == 1 else names
            each = zip(names, part.scales, part.pictures, strict=True)
            found += [(name, network, scale) for name, scale, used in each if used]
        if self.ip_adapter is not None:
            found.append(("ip_scale", "IP-Adapter", self.ip_adapter.scale))
        return found

    def idle(self, request: Request, evaluations: int) -> list[str]:
        """The options that leave a network without effect in all ``evaluations`` of a call's U-Net."""
        found: list[str] = []
        if self.controlnet is not None:
            spans = zip(self.controlnet.pictures, self.controlnet.starts, self.controlnet.ends, strict=True)
            found += [
                f"control_start {start:g} and control_end {end:g}"
                for used, start, end in spans
                if used and not any(within(index, evaluations, start, end) for index in range(evaluations))
            ]
        if self.t2i_adapter is not None and int(request.steps * self.t2i_adapter.end) == 0:
            found.append(f"adapter_end {self.t2i_adapter.end:g}")
        return found

    def settings(self) -> dict[str, Any]:
        """Keyword arguments of the pipeline that repeat the parts whose pictures are files."""
        found: dict[str, Any] = {}
        for name, part in self._parts():
            if all("file" in record for record in self._records()[name]):
                found.update(part.settings())
        return found

    def metadata(self) -> dict[str, Any]:
        """What a picture's metadata says of the pictures; settings that these repeat are not among it."""
        found: dict[str, Any] = {}
        for name, part in self._parts():
            records = self._records()[name]
            found[name] = records
            if not all("file" in record for record in records):
                # the settings alone do not repeat the picture
                given = part.settings()
                found.update({key: value for key, value in given.items() if not key.endswith("_image")})
        return {"control": found} if found else {}

    def _parts(self) -> list[tuple[str, ControlNetRequest | T2IAdapterRequest | IpAdapterRequest]]:
        parts = (
            ("control_image", self.controlnet),
            ("adapter_image", self.t2i_adapter),
            ("ip_image", self.ip_adapter),
        )
        return [(name, part) for name, part in parts if part is not None]

    def _records(self) -> dict[str, list[dict[str, str]]]:
        """Every picture, by the argument that gave it."""
        found: dict[str, list[dict[str, str]]] = {}
        if self.controlnet is not None:
            found["control_image"] = [_record(one) for each in self.controlnet.pictures for one in each]
        if self.t2i_adapter is not None:
            found["adapter_image"] = [_record(one) for each in self.t2i_adapter.pictures for one in each]
        if self.ip_adapter is not None:
            given = [_record(one) for one in self.ip_adapter.pictures]
            found["ip_image"] = given or [{"embeds": "given"}]
        return found


def _record(picture: Picture) -> dict[str, str]:
    """What a picture's metadata says of another that steered it."""
    return {
        **({} if picture.file is None else {"file": picture.file}),
        "sha256": picture.source["sha256"],
    }


def check_control(model: ModelSpec, request: Request, options: Mapping[str, Any]) -> ControlRequest:
    """The options of ``Pipeline.__call__`` that control the U-Net, by name. Raises InputError."""
    return ControlRequest(
        check_controlnet(
            model,
            request,
            image=options["control_image"],
            scale=options["control_scale"],
            start=options["control_start"],
            end=options["control_end"],
            guess=options["guess_mode"],
        ),
        check_t2i_adapter(
            model,
            request,
            image=options["adapter_image"],
            scale=options["adapter_scale"],
            end=options["adapter_end"],
        ),
        check_ip_adapter(
            model,
            request,
            image=options["ip_image"],
            scale=options["ip_scale"],
            embeds=options["ip_embeds"],
        ),
    )
