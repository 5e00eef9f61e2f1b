"""One trial of a sweep under Ray Tune: its driver as an actor, its clients in the placement group that Tune has reserved for it."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import ray
from ray import tune

from raylora import config as configuration
from raylora.cluster.resources import Request
from raylora.core.files import write_text
from raylora.core.loading import uncollected
from raylora.plan import Plan
from raylora.sweep.ledger import pruned_after


class DriverActor(tune.Trainable):
    """As `driver.DriverActor`, moved on from report to report by Tune; its clients are actors in the trial's placement group."""

    @classmethod
    def default_resource_request(cls, config: dict[str, Any]) -> tune.PlacementGroupFactory:
        """The driver's bundle and one for each actor of its clients."""
        place: Place = config["place"]
        actor = {"CPU": place.request.cpus, **({"GPU": place.request.gpus} if place.request.gpus else {})}
        driver = {place.node: 0.001}  # run folders are on that machine: drivers too; they compute little and ask for no CPU
        return tune.PlacementGroupFactory([driver, *[actor for _ in place.request.groups]], strategy="PACK")

    def setup(self, config: dict[str, Any]) -> None:
        self.ready: list[Any] = []  # clients' actors while no trial has them
        self._begin(config["place"])

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """The next trial in the same processes: Tune gives a driver only trials that need what the one before it needed."""
        self._end()
        self._begin(new_config["place"])
        return True

    def _begin(self, place: Place) -> None:
        self.number, self.ledger = place.number, Path(place.ledger)
        self.trial = _running(place, self.ready)

    def step(self) -> dict[str, Any]:
        report = self.trial.advance()
        if report.status == "finished":
            from raylora.report.html import write_report

            with contextlib.suppress(Exception):  # a page that cannot be written does not undo the trial
                write_report(self.trial.folder)
        return {
            "round": report.round,
            "objective": report.objective,
            "lines": [dict(line) for line in report.lines],
            "status": report.status,
            "error": report.error,
            "done": report.status != "running",
        }

    def cleanup(self) -> None:
        """Called for a trial that was stopped, and for one that has ended, when no other is to follow here."""
        self._end()
        for actor in self.ready:
            ray.kill(actor)

    def _end(self) -> None:
        if pruned_after(self.ledger, self.number) is not None:  # else the time is up: it goes on from its checkpoint another day
            self.trial.prune()
        self.trial.close()


@dataclass(frozen=True)
class Place:
    """All that a trial's driver needs to know."""

    number: int
    plan: Plan  # without the weights
    weights: Any  # where Ray holds them
    folder: str
    ledger: str  # the file, on the same machine as the folder
    metric: str
    until: int | None
    request: Request
    node: str  # the resource of the machine with the sweep's folder

    @property
    def config_sha256(self) -> str:
        return self.plan.config.sha256()

    def __repr__(self) -> str:
        return f"trial {self.number}"  # Tune makes names of it

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self  # it does not change, and Tune copies what it is given


def _running(place: Place, ready: list[Any]) -> Any:
    """The trial, its clients in the actors that are `ready`: those of the trial before it, if it has left them.

    The command has planned it: this process, like that of a run's driver, computes with numpy alone and never loads torch.
    """
    from raylora.cluster.client_actor import RayExecutor, started

    ready += [] if ready else started(place.request)
    with uncollected():
        from raylora.sweep.trial import RunningTrial

    plan, folder = place.plan.with_weights(ray.get(place.weights)), Path(place.folder)

    def executor(plan: Plan) -> RayExecutor:
        return RayExecutor(plan.spec, place.weights, place.request, plan.config.placement.timeout_s, ready, keep=True)

    me = {"driver": {"node": ray.get_runtime_context().get_node_id(), "pid": os.getpid()}}
    folder.mkdir(parents=True, exist_ok=True)
    written = folder / "config.yaml"
    if written.is_file():  # it goes on: with the clients in a pass that were chosen when it began
        begun = plan.config.training.model_copy(update={"stack": configuration.load(written).training.stack})
        plan = replace(plan, config=plan.config.model_copy(update={"training": begun}))
    else:
        write_text(written, configuration.dump(plan.config))
    return RunningTrial(plan, folder, place.metric, executor, notes=me, until=place.until)
