"""MLflow, best effort: a thread of its own writes what a run tells it, and nothing that happens there ends or slows a run."""

from __future__ import annotations

import json
import queue
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from raylora.core.errors import InputError

NETWORK_DISKS = {"nfs", "nfs4", "cifs", "smb3", "smbfs", "fuse.sshfs", "lustre", "gpfs", "beegfs", "ceph", "9p"}
WAIT_S = 60.0  # for the last uploads after a run


def resolved(uri: str, folder: Path) -> str:
    """A relative SQLite path made absolute. Raises InputError for SQLite on a network disk, whose locks cannot be trusted."""
    if not uri.startswith("sqlite:///"):
        return uri
    path = (folder / uri.removeprefix("sqlite:///")).resolve()
    if kind := _network_disk(path):
        raise InputError(
            f"tracking.uri: {path} is on a network disk ({kind}), where SQLite's locks cannot be trusted; use a tracking server or a local path"
        )
    return f"sqlite:///{path}"


def _network_disk(path: Path) -> str | None:
    try:
        mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    except OSError:
        return None
    inside = [(len(point), kind) for point, kind in mounts if str(path).startswith(point.rstrip("/") + "/")]
    kind = max(inside)[1] if inside else ""
    return kind if kind in NETWORK_DISKS else None


class Tracker:
    """Follows one run. `tell` never blocks and never raises; `close` waits a bounded time and says what went wrong."""

    def __init__(
        self, uri: str, experiment: str, name: str, config: Mapping[str, Any], tags: Mapping[str, str], client_runs: int = 16
    ) -> None:
        self.uri, self.experiment, self.client_runs = uri, experiment, client_runs
        self.run_id: str | None = None
        self.error: str | None = None
        self._begun = threading.Event()
        self._queue: queue.Queue[tuple[str, Any] | None] = queue.Queue()
        self._thread = threading.Thread(target=self._work, args=(name, dict(config), dict(tags)), daemon=True)
        self._thread.start()

    def rounds(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Lines of `rounds.jsonl`."""
        self._queue.put(("rounds", list(lines)))

    def finish(self, folder: Path, summary: Mapping[str, Any]) -> None:
        """The end: final metrics and the folder's artifacts."""
        self._queue.put(("finish", (folder, summary)))

    def fail(self, status: str) -> None:
        self._queue.put(("status", status))

    def where(self) -> dict[str, str] | None:
        """Where MLflow keeps the run, None if it does not. A short run may be over before MLflow has begun: this waits a bounded time."""
        self._begun.wait(WAIT_S)
        return None if self.run_id is None else {"tracking_uri": self.uri, "experiment": self.experiment, "run_id": self.run_id}

    def close(self) -> str | None:
        """Wait for what is left (a bounded time); None, or one line on what is missing in MLflow."""
        self._queue.put(None)
        self._thread.join(WAIT_S)
        if self._thread.is_alive():
            return f"MLflow at {self.uri} is still busy after {WAIT_S:g} s"
        return self.error

    def _work(self, name: str, config: Mapping[str, Any], tags: Mapping[str, str]) -> None:
        try:
            log = RunLog(self.uri, self.experiment, name, config, tags, self.client_runs)
            self.run_id = log.run_id
            self._begun.set()
            while (item := self._queue.get()) is not None:
                kind, value = item
                if kind == "rounds":
                    log.rounds(value)
                elif kind == "finish":
                    log.finish(*value)
                else:
                    log.end(value)
        except Exception as error:
            self.error = f"MLflow at {self.uri}: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
        finally:
            self._begun.set()


class RunLog:
    """One run (and its clients' child runs) through MLflow's client API."""

    def __init__(
        self,
        uri: str,
        experiment: str,
        name: str,
        config: Mapping[str, Any],
        tags: Mapping[str, str],
        client_runs: int,
        parent: str | None = None,
    ) -> None:
        import logging
        import os

        os.environ.setdefault("MLFLOW_ENABLE_ASYNC_LOGGING", "false")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # its own seven take minutes, and a run waits for its end
        logging.getLogger("mlflow").setLevel(logging.ERROR)
        logging.getLogger("alembic").setLevel(logging.ERROR)
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param, RunTag

        self._metric, self._param, self._tag = Metric, Param, RunTag
        self.client = MlflowClient(tracking_uri=uri)
        self.client_runs, self.children = client_runs, {}
        self.experiment_id = experiment_id(self.client, uri, experiment)
        every = {**tags, **({"mlflow.parentRunId": parent} if parent else {})}
        self.run_id = self.client.create_run(self.experiment_id, run_name=name, tags=every).info.run_id
        self.client.log_batch(self.run_id, params=[Param(key, str(value)[:6000]) for key, value in sorted(flat(config).items())])

    def rounds(self, lines: Sequence[Mapping[str, Any]]) -> None:
        clients = {line["client"] for line in lines if line["kind"] == "client"}
        for line in lines:
            if line["kind"] == "round":
                self._log(self.run_id, line, line["round"])
            elif len(clients) <= self.client_runs:
                self._log(self._child(line["client"]), line, line["round"])

    def finish(self, folder: Path, summary: Mapping[str, Any]) -> None:
        t = int(summary["rounds"])
        final = {f"final/{metric}/{key}": block[key] for metric, block in summary["final"].items() for key in ("mean", "pooled", "frozen")}
        sums = {key: summary[key] for key in ("bytes_up", "bytes_down", "wall_seconds")}
        self._log(self.run_id, {**final, **sums}, t)
        for client, run in self.children.items():
            own = {f"final/{metric}": block["per_client"].get(client) for metric, block in summary["final"].items()}
            self._log(run, own, t)
        for item in sorted(folder.iterdir()):
            if item.name == "checkpoints" or item.name.startswith("."):
                continue
            if item.is_dir():
                self.client.log_artifacts(self.run_id, str(item), item.name)
            else:
                self.client.log_artifact(self.run_id, str(item))
        self.end("FINISHED")

    def end(self, status: str) -> None:
        for run in (*self.children.values(), self.run_id):
            self.client.set_terminated(run, status)

    def _child(self, client: str) -> str:
        if client not in self.children:
            tags = {"mlflow.parentRunId": self.run_id, "client": client}
            self.children[client] = self.client.create_run(self.experiment_id, run_name=client, tags=tags).info.run_id
        return self.children[client]

    def _log(self, run: str, values: Mapping[str, Any], step: int) -> None:
        now = int(time.time() * 1000)
        numbers = {
            key: value
            for key, value in flat(values).items()
            if isinstance(value, int | float) and not isinstance(value, bool) and key != "round"
        }
        metrics = [self._metric(key, float(value), now, step) for key, value in sorted(numbers.items())]
        for start in range(0, len(metrics), 1000):
            self.client.log_batch(run, metrics=metrics[start : start + 1000])


def experiment_id(client: Any, uri: str, name: str) -> str:
    """The experiment's id, made if need be; artifacts of a local database lie beside it."""
    found = client.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    place = Path(uri.removeprefix("sqlite:///")).parent / "mlartifacts" if uri.startswith("sqlite:///") else None
    try:
        return str(client.create_experiment(name, artifact_location=place.as_uri() if place else None))
    except Exception:
        found = client.get_experiment_by_name(name)  # another process was first
        if found is None:
            raise
        return str(found.experiment_id)


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as dotted keys."""
    result: dict[str, Any] = {}
    for key, value in values.items():
        result |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return result


def upload(folder: Path, uri: str, experiment: str, client_runs: int, config: Mapping[str, Any], tags: Mapping[str, str]) -> str:
    """Put a finished run into MLflow from its folder; returns the run's id."""
    summary = json.loads((folder / "summary.json").read_text())
    log = RunLog(uri, experiment, summary["name"], config, tags, client_runs)
    by_round: dict[int, list[Mapping[str, Any]]] = {}
    for line in (folder / "rounds.jsonl").read_text().splitlines():
        item = json.loads(line)
        by_round.setdefault(item["round"], []).append(item)
    for lines in by_round.values():
        log.rounds(lines)
    log.finish(folder, summary)
    return log.run_id
