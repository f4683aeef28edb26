"""What sessions of one file share: its mapping, or the session of a library that holds its weights.

It closes with the last session that uses it.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any

__all__ = ["open_shared"]

_lock = threading.Lock()
_open: weakref.WeakValueDictionary[Hashable, Any] = weakref.WeakValueDictionary()


def open_shared(path: Path, options: Hashable, create: Callable[[], Any]) -> Any:
    """What ``create`` made of a file, as long as somebody refers to that and the file is the same.

    ``options`` are what else it was made with; things that differ in them are not shared.
    """
    with _lock:
        key: Hashable = None
        with contextlib.suppress(OSError):  # of a file that is missing, whoever opens it says so
            status = path.stat()
            key = (options, status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
        found = None if key is None else _open.get(key)
        if found is None:
            found = create()
            if key is not None:
                _open[key] = found
        return found
