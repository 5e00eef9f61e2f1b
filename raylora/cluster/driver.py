"""The driver actor, and the start and end of Ray around it."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import RayError, RayTaskError

from raylora.cluster import resources
from raylora.cluster.local import ENVIRONMENT, spared
from raylora.core.errors import InputError, MachineError, RunError
from raylora.core.loading import uncollected

if TYPE_CHECKING:
    from raylora.config import Training
    from raylora.federation.spec import SiteSpec
    from raylora.planned import Plan

Event = Mapping[str, Any]


class DriverActor:
    """Owns the strategy, the rounds and the run folder of one experiment; its clients are actors that it starts and ends."""

    def run(
        self,
        plan: Plan,
        weights: Sequence[Any],
        out: str,
        resume: bool,
        notes: Mapping[str, Any],
        request: resources.Request,
        ready: list[Any],
    ) -> Iterator[Event]:
        """Stream the events of `experiment.run_experiment`. `request`: what the plan's clients need, as whoever checked it found; `ready`: the
        actors of it.

        The plan was made where the command runs, `weights` is where Ray holds its own: this process computes with numpy alone and never
        loads torch.
        """
        with uncollected():
            from raylora import experiment
            from raylora.cluster.client_actor import RayExecutor

        plan = plan.with_weights(ray.get(weights[0]))
        timeout_s = plan.config.placement.timeout_s

        def executor(plan: Plan) -> RayExecutor:
            return RayExecutor(plan.spec, weights[0], request, timeout_s, ready)

        me = {"driver": {"node": ray.get_runtime_context().get_node_id(), "pid": os.getpid()}}
        yield from experiment.run_experiment(plan, Path(out), executor, resume=resume, notes={**me, **notes})


def request_of(plan: Any, has: resources.Available, resume: bool = False) -> resources.Request:
    """The actors of a plan. A run that goes on may find a smaller machine: then more clients share an actor than it asked for.

    Raises InputError for what does not fit, and for a GPU that is asked for without a share: Ray would not know that it is taken.
    """
    place = plan.config.placement
    resources.require_share(place.gpus_per_client, plan.config.training.device)
    frames = 2 if plan.config.task == "segmentation" else 1
    weights = {site.id: round_cost(site, plan.config.training, frames) for site in plan.spec.sites}
    try:
        return _request(plan, weights, place.clients_per_actor, has)
    except InputError:
        if not resume:
            raise
        return _request(plan, weights, "auto", has)


def _request(plan: Any, weights: Mapping[str, float], clients_per_actor: int | str, has: resources.Available) -> resources.Request:
    place, stack = plan.config.placement, plan.config.training.stack
    return resources.request(
        weights,
        cpus_per_client=place.cpus_per_client,
        gpus_per_client=place.gpus_per_client,
        clients_per_actor=clients_per_actor,
        available=has,
        stack=1 if stack == "auto" else stack,
        together=stack != 1,
        passive=[site.id for site in plan.spec.sites if not site.training],
    )


def round_cost(site: SiteSpec, training: Training, frames: int) -> float:
    """What a site computes in a round, about, in training samples: those it trains on, and a third of each one it scores.

    Its rating cases are scored twice, the test patients once in the whole run.
    """
    if not site.training:
        trained = 0.0
    elif training.local_steps is not None:
        trained = float(training.local_steps * training.batch_size)
    else:
        trained = float((training.local_epochs or 1) * frames * len(site.training))
    return trained + frames * (2 * len(site.rating) + len(site.test) / training.rounds) / 3


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
def session(address: str | None, *, environments: bool = False) -> Iterator[None]:
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
        said = " ".join(str(error).split())[:300]
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


def run(
    plan: Plan, out: Path, *, address: str | None, resume: bool, notes: Mapping[str, Any], request: resources.Request
) -> Iterator[Event]:
    """Run one experiment in a driver actor, its clients in the actors of `request`, and stream its events. Raises InputError or RunError as
    the experiment did."""
    from raylora.cluster.client_actor import started

    with session(address):
        kind = ray.remote(num_cpus=0)(DriverActor)
        here = ray.get_runtime_context().get_node_id()
        strategy = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
            node_id=here, soft=False
        )  # the run folder is on this machine
        driver = kind.options(scheduling_strategy=strategy).remote()
        ready = started(request)  # its processes come up beside the driver's
        weights = [ray.put(dict(plan.weights))]  # once: in a list it is handed on as a reference
        try:
            stream = driver.run.options(num_returns="streaming")
            for reference in stream.remote(plan.with_weights({}), weights, str(out), resume, notes, request, ready):
                yield ray.get(reference)
        except RayTaskError as error:
            raise _own(error.cause, out) from error
        except RayError as error:  # its process, its node or Ray itself is gone
            raise MachineError(f"the driver was lost: {str(error).splitlines()[0]}") from None
        finally:
            for actor in (driver, *ready):
                ray.kill(actor)


def _own(cause: BaseException, out: Path) -> Exception:
    """What went wrong in the driver as one of our errors."""
    if isinstance(cause, InputError | RunError):
        return type(cause)(str(cause))
    if isinstance(cause, OSError) and cause.strerror:
        return MachineError(f"{cause.filename or out}: {cause.strerror}")
    return RunError(f"{type(cause).__name__}: {' '.join(str(cause).split())[:300]}")
