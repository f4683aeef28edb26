"""The modules of an open engine, each opened when it is first asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from fastdiff.devices import Device
from fastdiff.engine_dir import Engine
from fastdiff.lora import Shapes
from fastdiff.lora.stack import Updates
from fastdiff.lora.update import MODULES as LORA_MODULES

if TYPE_CHECKING:
    from fastdiff.targets.session import Session

__all__ = ["Modules"]


class Modules(Mapping[str, "Session"]):
    """The engine's modules by name, each opened when it is first asked for."""

    def __init__(
        self, engine: Engine, threads: int | None, device: Device | None, unet_threads: int | None
    ) -> None:
        self._engine = engine
        self._threads = threads
        self._device = device
        self._unet_threads = unet_threads
        self._open: dict[str, Session] = {}
        self.updates: Mapping[str, Updates] = {}

    def __getitem__(self, name: str) -> Session:
        if name not in self._engine.manifest.modules:
            raise KeyError(name)
        if name not in self._open:
            threads = self._unet_threads if name == "unet" else self._threads
            session = self._engine.open_module(name, threads, self._device)
            self._adapt(name, session, {}, self.updates)
            self._open[name] = session
        return self._open[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._engine.manifest.modules)

    def __len__(self) -> int:
        return len(self._engine.manifest.modules)

    def adaptable(self) -> Shapes:
        """Shapes of the weights that LoRAs may update, by module. Raises TargetError."""
        return {name: self[name].adaptable() for name, part in LORA_MODULES.items() if part == name in self}

    def set_adapters(self, updates: Mapping[str, Updates]) -> None:
        """Give each module its updates, those that are not named none; also when it is opened again.

        Raises what a session's ``set_adapters`` does, and all is as it was then.
        """
        before, self.updates = self.updates, updates
        try:
            for name, session in self._open.items():
                self._adapt(name, session, before, updates)
        except BaseException:
            self.updates = before
            for name, session in self._open.items():
                self._adapt(name, session, updates, before)
            raise

    @staticmethod
    def _adapt(
        name: str, session: Session, before: Mapping[str, Updates], updates: Mapping[str, Updates]
    ) -> None:
        """Give a module those of its part's updates that are for it, where there are or were some."""
        part = LORA_MODULES.get(name)
        if part is None or not (part in before or part in updates):
            return
        wanted = updates.get(part, {})
        if part != name and wanted:
            own = session.adaptable()
            wanted = {path: update for path, update in wanted.items() if path in own}
        session.set_adapters(wanted)

    def close(self) -> None:
        """Close those that are open."""
        while self._open:
            self._open.popitem()[1].close()
