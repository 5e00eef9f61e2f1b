"""What a machine offers and what runs on it: read here, and on every node of a Ray cluster."""

from __future__ import annotations

import os
import platform
import shutil
from importlib import metadata
from pathlib import Path
from typing import Any

from raylora.cluster import resources
from raylora.core.machine import free_bytes
from raylora.provenance import code_sha256

COMPUTES = ("ray", "torch", "numpy", "pyarrow", "safetensors")  # what must be the same on all nodes
WAIT_S = 60.0


def here() -> dict[str, Any]:
    """CPUs (by affinity and quota), memory, shared memory and disk in bytes, GPUs, versions, and a hash of raylora's code."""
    return {
        "node": platform.node(),
        "cpus": len(os.sched_getaffinity(0)),
        "quota": _quota(),
        "gpus": int(resources.local().gpus),
        "memory_bytes": _memory(),
        "shm_bytes": _free("/dev/shm"),
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in COMPUTES}},
        "code": code_sha256(),
    }


def nodes(address: str) -> list[dict[str, Any]]:
    """`here` on every node that is alive; {"node", "error"} for one that does not answer. Raises InputError if nothing is at the address."""
    import ray

    from raylora.cluster import session

    with session.opened(address):
        asked = {}
        for node in ray.nodes():
            if node["Alive"]:
                strategy = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node_id=node["NodeID"], soft=False)
                task = ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=strategy)(here)
                asked[node["NodeManagerAddress"], node["NodeID"][:8]] = task.remote()
        found = []
        for (where, id), reference in asked.items():
            try:
                found.append({**ray.get(reference, timeout=WAIT_S), "node": f"{where} ({id})"})
            except Exception as error:  # whatever it is, this node is of no use
                found.append({"node": f"{where} ({id})", "error": f"{type(error).__name__}: {' '.join(str(error).split())[-200:]}"})
        return found


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _quota() -> float | None:
    """The CPUs that a control group grants, None without a limit."""
    try:
        most, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return None if most == "max" else int(most) / int(period)
    except (OSError, ValueError):
        return None


def _memory() -> int:
    try:
        return free_bytes()
    except OSError:
        return 0


def _free(folder: str) -> int:
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return 0
