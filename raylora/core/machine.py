"""What this machine is and has left, as far as the process may use it."""

from __future__ import annotations

import functools
import platform
from pathlib import Path

CHOOSES_KERNELS = ("vendor_id", "cpu family", "model", "flags", "CPU implementer", "CPU part", "Features")


def free_bytes() -> int:
    """Memory: of the machine, or of the control group (a container, a Slurm job) if that is less. Raises OSError where Linux does not say."""
    with open("/proc/meminfo", encoding="ascii") as file:
        left = next(int(line.split()[1]) << 10 for line in file if line.startswith("MemAvailable"))
    try:
        most = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
        return left if most == "max" else max(0, min(left, int(most) - used))
    except (OSError, ValueError):
        return left


@functools.cache
def kind_of_cpu() -> str:
    """What libraries choose their kernels by, and with them the order of sums: maker, model and instructions, as far as the system tells."""
    try:
        first = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split("\n\n")[0]
    except OSError:
        return platform.processor()
    return "\n".join(line for line in first.splitlines() if line.partition(":")[0].strip() in CHOOSES_KERNELS)
