"""Experiments of a few seconds on the tiny cohort, in process: what most tests of the federation look at."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from raylora import config as configuration
from raylora import experiment, planning
from raylora.config import Config
from raylora.core.types import Broadcast, ClientUpdate
from raylora.federation.answers import Outcome
from raylora.federation.build import build_host
from raylora.federation.executor import InProcess
from raylora.federation.rounds import Stack

GRID = {"spacing_mm": [2.25, 2.25, 10.0], "size": [16, 16, 4]}
UNET = {"channels": [4, 6, 8], "kernels": [[3, 3, 1], [3, 3, 1], [3, 3, 3]], "strides": [[1, 1, 1], [2, 2, 1], [2, 2, 1]]}
VIT = {"patch": [8, 8, 2], "width": 16, "depth": 2, "heads": 2}
TASKS: Mapping[str, dict[str, Any]] = {
    "segmentation": {"model": {"name": "unet", "sizes": UNET}},
    "disease": {"model": {"name": "vit", "sizes": VIT}},
}
COMMON = {
    "name": "tiny",
    "lora": {"rank": 1, "alpha": 2.0},
    "training": {"rounds": 2, "local_steps": 2, "batch_size": 3, "lr": 0.02},
    "evaluation": {"bootstrap": 50, "overlays": 0},
    "tracking": {"uri": None},
}


def settings(root: Path, task: str = "segmentation", **overrides: Any) -> dict[str, Any]:
    """The tiny experiment as a mapping for YAML; overrides are dotted keys with "__" for the dot."""
    values = {
        **COMMON,
        **TASKS[task],
        "task": task,
        "data": {"dataset": "mnms", "root": str(root), "fractions": [0.5, 0.125, 0.125, 0.25], **GRID},
    }
    values = json.loads(json.dumps(values))
    for key, value in overrides.items():
        *parents, last = key.split("__")
        target = values
        for parent in parents:
            target = target.setdefault(parent, {})
        target[last] = value
    return values


def tiny(root: Path, task: str = "segmentation", **overrides: Any) -> Config:
    return configuration.from_dict(settings(root, task, **overrides))


class Watched(InProcess):
    """The in-process executor, with a copy of every message that crosses."""

    def __init__(self, host) -> None:
        super().__init__(host)
        self.sent: list[tuple[str, Broadcast]] = []
        self.received: list[ClientUpdate] = []

    def train(self, stacks: Sequence[Stack]) -> Iterator[Outcome]:
        self.sent += [item for stack in stacks for item in stack]
        for outcome in super().train(stacks):
            self.received.append(outcome.update)
            yield outcome


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A run and what it said on the way."""

    folder: Path
    config: Config
    plan: planning.Plan
    summary: dict[str, Any]
    sent: list[tuple[str, Broadcast]] = field(repr=False)
    received: list[ClientUpdate] = field(repr=False)
    events: list[Mapping[str, Any]] = field(repr=False)

    @property
    def hashes(self) -> dict[str, str]:
        return self.summary["adapter_sha256"]

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "rounds.jsonl").read_text().splitlines()]


def run(config: Config, out: Path, executor: Callable[[planning.Plan], Any] | None = None, **options: Any) -> Finished:
    """Run an experiment in this process; its clients too, unless another executor is given."""
    plan = planning.make_plan(config)
    watched: list[Watched] = []

    def in_process(plan: planning.Plan) -> Watched:
        watched.append(Watched(build_host(plan.spec, plan.weights)))
        return watched[-1]

    out.mkdir(parents=True, exist_ok=True)
    (out / "config.yaml").write_text(configuration.dump(config))
    events = list(experiment.run_experiment(plan, out, executor or in_process, **options))
    sent, received = ([*one.sent], [*one.received]) if (one := next(iter(watched), None)) else ([], [])
    return Finished(folder=out, config=config, plan=plan, summary=events[-1]["summary"], events=events, sent=sent, received=received)


class Runs:
    """Each configuration is run once."""

    def __init__(self, prepared: Path, folder: Path) -> None:
        self.prepared, self.folder = prepared, folder
        self.done: dict[str, Finished] = {}

    def __call__(self, task: str = "segmentation", **overrides: Any) -> Finished:
        key = json.dumps([task, overrides], sort_keys=True)
        if key not in self.done:
            self.done[key] = run(tiny(self.prepared, task, **overrides), self.folder / str(len(self.done)))
        return self.done[key]
