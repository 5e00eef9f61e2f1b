"""Processes as /proc shows them: families, CPU time, memory. Needs Python only, so that it runs in every peer's environment."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any


def children(pid: int) -> list[int]:
    """The processes that a process has started and that are there."""
    return [child for child, parent in _parents().items() if parent == pid]


def family(pid: int) -> list[int]:
    """The process and all its descendants."""
    parents, found = _parents(), [pid]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found


def _parents() -> dict[int, int]:
    """Process -> the one that started it."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            found[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        except (OSError, IndexError):
            continue
    return found


def title(pid: int) -> str:
    """What a process calls itself, empty if it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ").strip()
    except OSError:
        return ""


def cpu_seconds(pid: int) -> float:
    """CPU time of the process, its descendants, and those of them that have ended."""
    ticks = 0
    for member in family(pid):
        try:
            ticks += sum(map(int, Path(f"/proc/{member}/stat").read_text().rpartition(")")[2].split()[11:15]))
        except OSError:
            continue
    return ticks / os.sysconf("SC_CLK_TCK")


def pss(pid: int) -> int:
    """The proportional set size of a process in bytes, 0 if it has ended."""
    return _rolled_up(pid).get("Pss", 0)


def held(pid: int) -> int:
    """The part of `pss` that no file holds: unlike the pages of libraries it does not change with who else has them open."""
    sizes = _rolled_up(pid)
    return sizes.get("Pss_Anon", 0) + sizes.get("Pss_Shmem", 0)


def _rolled_up(pid: int) -> dict[str, int]:
    """What the kernel says of a process's memory, in bytes; empty if it has ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return {}
    return {name: 1024 * int(size.split()[0]) for name, _, size in (line.partition(":") for line in lines[1:])}


class _Heap(ctypes.Structure):
    """`struct mallinfo2` of glibc."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")
    ]


def heap_in_use() -> int:
    """Bytes that this process has asked of malloc and not given back. Unlike `pss` they do not grow while freed pieces spread over a heap."""
    found = _mallinfo()()
    return int(found.uordblks + found.hblkhd)


@cache
def _mallinfo() -> Callable[[], Any]:
    function = ctypes.CDLL(None).mallinfo2
    function.restype = _Heap
    return function
