"""MLflow's client API with a memory: runs as they should stand there, and how much of each stands there already.

Every write may fail and be tried again, by this process or by one that comes later, and leaves one copy of everything.
"""

from __future__ import annotations

import logging
import math
import os
import re
import sqlite3
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from raylora.core.values import flat

KEY, RECORD = "raylora.key", "raylora.record"  # tags: which run it is, and the hash of the summary that it holds all of
FOLDER = "raylora.folder"  # tag: where the run folder was
PARENT = "mlflow.parentRunId"
ENDED = ("FINISHED", "FAILED", "KILLED")
MOST_METRICS, MOST_PARAMS = 900, 100  # in one call; the server's limits are 1,000 in all, 100 of them parameters
LOCKED_S = 2.0  # how long a SQLite file may be locked before it counts as not to be reached


def now_ms() -> int:
    return int(time.time() * 1000)


@dataclass(eq=False, kw_only=True)
class Node:
    """One run. What is still to be written is in the fields; `Store.write` empties them."""

    key: str  # unique below its parent; that of a root is unique everywhere
    name: str
    parent: Node | None = None
    tags: Mapping[str, str] = field(default_factory=dict)  # those it is made with
    begun_ms: int = field(default_factory=now_ms)
    id: str | None = None
    known: bool = False  # it may be there already, with some of its values: look before writing
    again: bool = False  # it was ended, and goes on
    params: dict[str, str] = field(default_factory=dict)
    data: Mapping[str, str] | None = None  # of the dataset input: name, digest, source, profile
    metrics: list[tuple[str, float, int, int]] = field(default_factory=list)  # key, value, milliseconds, step
    files: list[Path | tuple[str, bytes]] = field(default_factory=list)  # a file or folder as it is; or a name and what is in it
    late: dict[str, str] = field(default_factory=dict)  # tags that say that all before them is there
    ended: tuple[str, int] | None = None  # status, milliseconds
    steps: dict[str, set[int]] = field(default_factory=dict)  # of a known run: what is there of a metric
    refused: bool = False  # the server does not take it (it was deleted there): nothing more is written

    def measure(self, values: Mapping[str, Any], step: int, at: int) -> None:
        """Take the numbers among nested values as metrics of a step."""
        for key, value in sorted(flat(values).items()):
            if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
                self.metrics.append((re.sub(r"[^\w\-. :/]", "_", key)[:250], float(value), at, step))

    @property
    def dirty(self) -> bool:
        if self.refused or (self.parent is not None and self.parent.refused):
            return False
        return self.id is None or self.again or bool(self.params or self.data or self.metrics or self.files or self.late or self.ended)


class Store:
    """An MLflow experiment, made if need be. Raises whatever MLflow raises."""

    def __init__(self, uri: str, experiment: str) -> None:
        quiet()
        from mlflow import MlflowClient

        self.uri = uri
        probe(uri)
        self.client = MlflowClient(tracking_uri=uri)
        self.experiment_id = experiment_id(self.client, uri, experiment)

    def find(self, tags: Mapping[str, str]) -> Any | None:
        """The latest run of this experiment with these tags, None if there is none."""
        return next(iter(self.every(tags, 1)), None)

    def every(self, tags: Mapping[str, str], most: int = 1000) -> list[Any]:
        """The runs of this experiment with these tags, the latest first."""
        quoted = {name: f'"{value}"' if "'" in value else f"'{value}'" for name, value in tags.items()}
        said = " and ".join(f"tags.`{name}` = {value}" for name, value in quoted.items())
        return list(self.client.search_runs([self.experiment_id], said, max_results=most))

    def get(self, run_id: str) -> Any | None:
        """A run by its id, None if this server does not have it, or not in this experiment."""
        try:
            run = self.client.get_run(run_id)
        except Exception as error:
            if refusal(error):
                return None
            raise
        return run if run.info.experiment_id == self.experiment_id and run.info.lifecycle_stage == "active" else None

    def write(self, node: Node, worked: Callable[[], None] = lambda: None) -> None:
        """Bring a run to where it should stand; called again after a failure it goes on with what is missing.

        `worked` is called after each step that worked.
        """
        if not node.dirty:
            return
        probe(self.uri)
        self._open(node)
        if node.again:
            self.client.update_run(node.id, status="RUNNING")
            node.again = False
        worked()
        self._log(node, worked)
        if node.data is not None:
            self._input(node)
            node.data = None
        while node.files:
            self._file(node, node.files[0])
            node.files.pop(0)
            worked()
        if node.late:
            from mlflow.entities import RunTag

            self.client.log_batch(node.id, tags=[RunTag(name, value) for name, value in node.late.items()])
            node.late = {}
        if node.ended is not None:
            self.client.set_terminated(node.id, *node.ended)
            node.ended = None
        worked()

    def _open(self, node: Node) -> None:
        if node.id is not None:
            return
        if node.parent is not None:
            self._open(node.parent)
        above = {PARENT: str(node.parent.id)} if node.parent is not None else {}
        if node.known or (node.parent is not None and node.parent.known):
            there = self.find({KEY: node.key, **above})
            if there is not None:
                node.id, node.known = there.info.run_id, True
                node.again = node.again or (node.ended is None and there.info.status in ENDED)
        if node.id is None:
            node.known = True  # should the answer be lost, the next try looks first
            tags = {**node.tags, **above, KEY: node.key}
            node.id = self.client.create_run(self.experiment_id, start_time=node.begun_ms, run_name=node.name, tags=tags).info.run_id
            node.known = False

    def _log(self, node: Node, worked: Callable[[], None]) -> None:
        """Parameters and metrics, as many in a call as it takes."""
        from mlflow.entities import Metric, Param

        if node.known and node.params:  # they are never another value, and MLflow refuses one that reads otherwise
            there = self.client.get_run(node.id).data.params
            node.params = {key: text for key, text in node.params.items() if key not in there}
        if node.known:
            node.metrics = [item for item in node.metrics if item[3] not in self._steps(node, item[0])]
        while node.params or node.metrics:
            params = list(node.params.items())[:MOST_PARAMS]
            metrics = node.metrics[:MOST_METRICS]
            self.client.log_batch(node.id, metrics=[Metric(*item) for item in metrics], params=[Param(key, text) for key, text in params])
            for key, _ in params:
                del node.params[key]
            del node.metrics[:MOST_METRICS]
            worked()

    def _steps(self, node: Node, key: str) -> set[int]:
        if key not in node.steps:
            node.steps[key] = {metric.step for metric in self.client.get_metric_history(node.id, key)}
        return node.steps[key]

    def _input(self, node: Node) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        data = dict(node.data or {})
        dataset = Dataset(data["name"][:500], data["digest"][:36], "local", data["source"], profile=data["profile"])
        self.client.log_inputs(node.id, [DatasetInput(dataset, [InputTag("mlflow.data.context", "federated")])])

    def _file(self, node: Node, item: Path | tuple[str, bytes]) -> None:
        if isinstance(item, tuple):
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / item[0]
                path.write_bytes(item[1])
                self.client.log_artifact(node.id, str(path))
        elif item.is_dir():
            self.client.log_artifacts(node.id, str(item), item.name)
        elif item.exists():
            self.client.log_artifact(node.id, str(item))


def refusal(error: Exception) -> bool:
    """Whether MLflow answered, and the answer was no: another try would change nothing."""
    return getattr(error, "error_code", None) in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "INVALID_STATE")


def experiment_id(client: Any, uri: str, name: str) -> str:
    """The experiment's id, made if need be; artifacts of a local database lie beside it."""
    found = client.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    place = Path(uri.removeprefix("sqlite:///")).parent / "mlartifacts" if uri.startswith("sqlite:///") else None
    try:
        kind = {"mlflow.experimentKind": "custom_model_development"}  # which of its faces MLflow's pages show
        return str(client.create_experiment(name, artifact_location=place.as_uri() if place else None, tags=kind))
    except Exception:
        found = client.get_experiment_by_name(name)  # another process was first
        if found is None:
            raise
        return str(found.experiment_id)


def probe(uri: str) -> None:
    """Raises OSError or sqlite3.Error for a database that is locked or cannot be made: MLflow itself would try for minutes each time."""
    path = uri.removeprefix("sqlite:///")
    if path != uri:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        database = sqlite3.connect(path, timeout=LOCKED_S, isolation_level=None)
        try:
            database.execute("BEGIN IMMEDIATE")
            database.execute("ROLLBACK")
        finally:
            database.close()


def unchanged_s(uri: str) -> float:
    """Seconds since a SQLite file was last written by anybody; infinite for what is no such file."""
    path = uri.removeprefix("sqlite:///")
    try:
        return math.inf if path == uri else max(0.0, time.time() - os.stat(path).st_mtime)
    except OSError:
        return math.inf


def quiet() -> None:
    """No words of MLflow's own among ours, nothing sent to its makers, and no minutes of waiting for a server that is not there."""
    for name, value in {
        "MLFLOW_ENABLE_ASYNC_LOGGING": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_LOGGING_LEVEL": "ERROR",  # its import sets its loggers' level
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # the writer tries again by itself
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    }.items():
        os.environ.setdefault(name, value)
    for logger in ("mlflow", "alembic"):
        logging.getLogger(logger).setLevel(logging.ERROR)
