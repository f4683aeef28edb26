"""Reads of a shared object what the dynamic linker will look for, without tools that may not be installed."""

from __future__ import annotations

import struct
from pathlib import Path

__all__ = ["needed"]

PT_LOAD, PT_DYNAMIC = 1, 2
DT_NEEDED, DT_STRTAB = 1, 5


def needed(path: Path) -> set[str]:
    """The NEEDED entries of a 64-bit ELF file in the machine's byte order."""
    data = path.read_bytes()
    if data[:4] != b"\x7fELF" or data[4] != 2:
        raise ValueError(f"{path} is no 64-bit ELF file")
    table, size, count = (*struct.unpack_from("=Q", data, 32), *struct.unpack_from("=HH", data, 54))
    segments = [struct.unpack_from("=IIQQQQQQ", data, table + size * index) for index in range(count)]
    loads = [
        (address, start, length) for kind, _, start, address, _, length, *_ in segments if kind == PT_LOAD
    ]
    (start, length) = next(
        (start, length) for kind, _, start, _, _, length, *_ in segments if kind == PT_DYNAMIC
    )
    entries = [struct.unpack_from("=qQ", data, start + 16 * index) for index in range(length // 16)]
    address = next(value for tag, value in entries if tag == DT_STRTAB)
    strings = next(address - base + start for base, start, length in loads if base <= address < base + length)
    names = [strings + value for tag, value in entries if tag == DT_NEEDED]
    return {data[name : data.index(b"\0", name)].decode() for name in names}
