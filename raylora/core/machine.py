"""What this machine has left, as far as the process may use it."""

from __future__ import annotations

from pathlib import Path


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
