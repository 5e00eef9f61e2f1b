"""The driver actor, and one experiment in it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import RayError, RayTaskError

from raylora.cluster import resources
from raylora.cluster.session import opened
from raylora.core.errors import InputError, MachineError, RunError, named
from raylora.core.loading import uncollected

if TYPE_CHECKING:
    from raylora.plan import Plan

Event = Mapping[str, Any]


class DriverActor:
    """Owns the strategy, the rounds and the run folder of one experiment; its clients are actors that it starts and ends."""

    def run(
        self,
        plan: Plan,
        weights: Sequence[Any],
        out: str,
        resume: bool,
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
        yield from experiment.run_experiment(plan, Path(out), executor, resume=resume, notes=me)


def run(plan: Plan, out: Path, *, address: str | None, resume: bool, request: resources.Request) -> Iterator[Event]:
    """Run one experiment in a driver actor, its clients in the actors of `request`, and stream its events. Raises InputError or RunError as
    the experiment did."""
    from raylora.cluster.client_actor import started

    with opened(address):
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
            for reference in stream.remote(plan.with_weights({}), weights, str(out), resume, request, ready):
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
    return RunError(named(cause))
