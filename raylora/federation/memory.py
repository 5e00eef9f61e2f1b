"""The largest memory of this process over a stretch of work, and how large it may become: on a CPU or on a GPU."""

from __future__ import annotations

import resource
from pathlib import Path
from types import TracebackType

import torch

from raylora.core.machine import free_bytes

SPARE = 0.8  # of what is free: the rest is for the others and for what was not measured


class Peak:
    """``with Peak("cpu") as peak: ...``, then ``peak.bytes``."""

    def __init__(self, device: str) -> None:
        self.device, self.bytes = device, 0

    def __enter__(self) -> Peak:
        if self.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        else:
            try:
                Path("/proc/self/clear_refs").write_text("5")  # Linux: the high-water mark starts again from what is resident now
            except OSError:
                pass  # then it is that of the whole process's life: never too small
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.bytes = int(torch.cuda.max_memory_allocated()) if self.device == "cuda" else _status("VmHWM")


def held(device: str) -> int:
    """Bytes that this process holds now."""
    return int(torch.cuda.memory_allocated()) if device == "cuda" else _status("VmRSS")


def limit(device: str, processes: int, share: float = 1.0) -> float:
    """Bytes that this process may reach beside others like it: its part of what is free; of a GPU, its `share` of it."""
    if device == "cuda":
        return SPARE * share * float(torch.cuda.get_device_properties(0).total_memory)
    return _status("VmRSS") + SPARE * free_bytes() / processes


def keep_to_share(device: str, share: float) -> None:
    """Of a GPU that several processes share, take no more than this share."""
    if device == "cuda" and share < 1:
        torch.cuda.set_per_process_memory_fraction(share)


def _status(name: str) -> int:
    try:
        with open("/proc/self/status", encoding="ascii") as file:
            return next(int(line.split()[1]) << 10 for line in file if line.startswith(name))
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
