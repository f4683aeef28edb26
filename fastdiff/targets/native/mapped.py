"""Module files that are open in this process: sessions of one file share its mapping.

The kernel keeps one copy of a file's pages however often and by however many processes it is mapped. What
sharing saves is the second table of pages, and that a process seems to hold its weights twice.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from pathlib import Path
from typing import Any

__all__ = ["open_mapped"]

_lock = threading.Lock()
_open: weakref.WeakValueDictionary[tuple[int, ...], Any] = weakref.WeakValueDictionary()


def open_mapped(path: Path) -> Any:
    """The ``_C.NativeModule`` of a file: the one that is open already, as long as the file is the same.

    It closes with the last reference to what is returned. Raises EngineDamagedError and EngineVersionError.
    """
    from fastdiff import _C

    with _lock:
        key: tuple[int, ...] | None = None
        with contextlib.suppress(OSError):  # of a file that is missing, the module says so itself
            status = path.stat()
            key = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
        module = None if key is None else _open.get(key)
        if module is None:
            module = _C.NativeModule(str(path))
            if key is not None:
                _open[key] = module
        return module
