"""The connection to Ray: one that is there, or one that is started here and stopped afterwards; and what the cluster behind it offers."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Iterator
from typing import Any

import ray

from raylora.cluster import resources
from raylora.cluster.local import ENVIRONMENT, spared
from raylora.core.errors import InputError, RunError, one_line


def connected() -> bool:
    """Whether this process has a connection to Ray already."""
    return bool(ray.is_initialized())


def available() -> resources.Available:
    """What the connected cluster has, node by node."""
    nodes = tuple((n["Resources"].get("CPU", 0.0), n["Resources"].get("GPU", 0.0)) for n in ray.nodes() if n["Alive"])
    cpus, gpus = (sum(values) for values in zip(*nodes, strict=True))
    return resources.Available(cpus=cpus, gpus=gpus, where="the Ray cluster", nodes=nodes)


def taken_by_others(request: resources.Request) -> str | None:
    """Words about what the actors wait for, if others hold a part of it."""
    free, wanted = ray.available_resources(), {"CPU": request.cpus * len(request.groups), "GPU": request.gpus * len(request.groups)}
    short = [
        f"{free.get(kind, 0.0):g} of {amount:g} {kind}s are free" for kind, amount in wanted.items() if free.get(kind, 0.0) < amount - 1e-6
    ]
    return f"the Ray cluster is busy ({', '.join(short)}): the run begins once others have ended" if short else None


@contextlib.contextmanager
def opened(address: str | None, *, environments: bool = False) -> Iterator[None]:
    """Connect to a Ray cluster, or start one here and stop it afterwards. A connection that is open already is used and left open.

    `environments`: whether Ray will be asked for runtime environments, as Tune does for its trials.
    """
    if ray.is_initialized():
        yield
        return
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR", "include_dashboard": False, "configure_logging": True}
    if address is None:
        options |= {"address": "local", "object_store_memory": _store_bytes(), "num_cpus": int(resources.local().cpus)}
    else:
        _require_listener(address)
        options = {"address": address, "log_to_driver": False, "logging_level": "ERROR"}
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")
    if address is None:  # what Ray's processes are started with
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
    try:
        with _own_sigterm(), spared(environments=environments) if address is None else contextlib.nullcontext():
            ray.init(**options)
    except Exception as error:  # Ray says a plain Exception where a node does not come up in time
        said = one_line(error)
        if address is None:
            where = " (RAY_TMPDIR or TMPDIR says where it keeps its files)" if isinstance(error, OSError) else ""
            raise RunError(f"Ray does not start: {said}{where}") from None
        if os.environ.get("RAY_AUTH_MODE") != "token":  # Ray says no more than that it cannot connect
            said += "; one that `ray start` made may ask for its token: export RAY_AUTH_MODE=token (docs/cluster.md)"
        raise InputError(f"--address {address}: Ray does not answer: {said}") from None
    try:
        yield
    finally:
        ray.shutdown()


def _require_listener(address: str) -> None:
    """Raise InputError if nobody listens at HOST:PORT: Ray itself would try for two minutes."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not (host and port.isdecimal()):  # "auto"
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise InputError(f"--address {address}: nobody listens there ({getattr(error, 'strerror', None) or error})") from None


@contextlib.contextmanager
def _own_sigterm() -> Iterator[None]:
    """Ray puts a handler of its own in the place of whatever was there, which ends the process with sys.exit: ours comes back."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    except SystemExit:  # terminated while Ray was starting
        raise KeyboardInterrupt from None
    finally:
        signal.signal(signal.SIGTERM, before)


def _store_bytes(most: int = 1 << 30) -> int:
    """A quarter of shared memory, at most 1 GiB: shards are memory-mapped, so the store holds weights and adapters only."""
    try:
        stats = os.statvfs("/dev/shm")
    except OSError:
        return 256 << 20
    return int(max(80 << 20, min(most, stats.f_bavail * stats.f_frsize // 4)))
