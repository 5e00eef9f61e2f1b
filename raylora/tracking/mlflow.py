"""MLflow, best effort: a thread of its own writes what runs tell it, and nothing that happens there ends or slows a run."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from raylora.core.errors import InputError
from raylora.core.values import flat
from raylora.tracking.store import ENDED, FOLDER, KEY, PARENT, RECORD, Node, Store, now_ms
from raylora.tracking.writer import Writer

NETWORK_DISKS = {"nfs", "nfs4", "cifs", "smb3", "smbfs", "fuse.sshfs", "lustre", "gpfs", "beegfs", "ceph", "9p"}
KEPT = Path("checkpoints") / "mlflow.json"  # in a run folder: the key of its run in MLflow
Line = Mapping[str, Any]


SCHEMES = ("sqlite", "http", "https", "file", "postgresql", "mysql", "mssql", "databricks", "databricks-uc", "uc")


def resolved(uri: str, folder: Path) -> str:
    """A relative SQLite path made absolute. Raises InputError for what is no tracking URI, and for SQLite on a network disk, whose locks
    cannot be trusted."""
    scheme, mark, rest = uri.partition("://")
    known = {*SCHEMES, *(point.name for point in metadata.entry_points(group="mlflow.tracking_store"))}
    if uri not in ("databricks", "databricks-uc", "uc") and (not mark or not rest or scheme.partition("+")[0] not in known):
        raise InputError(f"tracking.uri: expected SCHEME://..., SCHEME one of {', '.join(sorted(known))}, found {uri!r}")
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
    mounts = [
        (re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), point), kind) for point, kind in mounts
    ]  # a space is \040 there
    inside = [(len(point), kind) for point, kind in mounts if str(path).startswith(point.rstrip("/") + "/")]
    kind = max(inside)[1] if inside else ""
    return kind if kind in NETWORK_DISKS else None


class ExperimentRuns:
    """One experiment as nodes: its own run, and those of its clients below it."""

    def __init__(self, node: Node, config: Mapping[str, Any], client_runs: int) -> None:
        node.params = texts(config)
        node.data = data_of(config, node.tags.get("data_sha256", ""))
        self.node, self.client_runs = node, client_runs
        # Who takes part in a round may be drawn: how many clients there are is then known at the end.
        self.live = (config.get("sampling") or {}).get("kind", "all") == "all"
        self.children: dict[str, Node] = {}
        self.waiting: list[tuple[Line, int]] = []  # lines of clients that have no run, or none yet
        self.clients: set[str] = set()
        self.over = False  # its end was told

    def nodes(self) -> list[Node]:
        """The clients' first: the mark that all of a run is there comes last."""
        return [*self.children.values(), self.node]

    def rounds(self, lines: Sequence[Line], at: int) -> None:
        """Take lines of `rounds.jsonl`, written at a time (ms)."""
        for line in lines:
            if line["kind"] == "round":
                self.node.measure(_numbers(line), line["round"], at)
            elif line["kind"] == "client":
                self.clients.add(line["client"])
                self.waiting.append((line, at))
        if self.live:
            self._clients()

    def finish(self, folder: Path, summary: Mapping[str, Any], at: int) -> None:
        """Take the end: last metrics, everything in the folder but checkpoints, and the mark that all of it is there."""
        step = int(summary["rounds"])
        self.clients |= set(summary["clients"])
        self.node.measure(final_metrics(summary), step, at)
        self._clients()
        self._rest()
        for client in summary["clients"]:
            if client in self.children or len(self.clients) <= self.client_runs:
                own = {
                    f"final/{metric}": (block.get("per_client") or {}).get(client) for metric, block in (summary.get("final") or {}).items()
                }
                self._child(client, at).measure(own, step, at)
        self.node.files += [item for item in sorted(folder.iterdir()) if item.name != "checkpoints" and not item.name.startswith(".")]
        written = folder / "summary.json"
        mark = record_sha256(json.loads(written.read_text(encoding="utf-8")) if written.is_file() else summary)
        self.node.late = {RECORD: mark, FOLDER: str(folder.resolve())}
        self.end("FINISHED", at)

    def end(self, status: str, at: int) -> None:
        """FINISHED, FAILED, KILLED, or PRUNED: killed, with a tag."""
        if status == "PRUNED":
            self.node.late["pruned"] = "true"
        self._clients()
        self._rest()
        self.over = True
        for node in self.nodes():
            node.ended = ("KILLED" if status == "PRUNED" else status, at)

    def _clients(self) -> None:
        """Clients have runs of their own if they are few."""
        if len(self.clients) <= self.client_runs:
            for line, at in self.waiting:
                self._child(line["client"], at).measure(_numbers(line), line["round"], at)
            self.waiting.clear()

    def _child(self, client: str, at: int) -> Node:
        if client not in self.children:
            tags = {"client": client}
            self.children[client] = Node(key=f"client:{client}", name=client, parent=self.node, tags=tags, begun_ms=at)
        return self.children[client]

    def _rest(self) -> None:
        """Lines of clients without a run of their own, as one file."""
        if self.waiting:
            self.node.files.append(("clients.parquet", parquet([flat(line) for line, _ in self.waiting])))
            self.waiting.clear()


class Tracker:
    """Follows one run. Nothing that it is told blocks or raises; `where` and `close` wait, but not for a server that is silent."""

    def __init__(
        self,
        uri: str,
        experiment: str,
        name: str,
        config: Mapping[str, Any],
        tags: Mapping[str, str],
        client_runs: int = 16,
        folder: Path | None = None,
    ) -> None:
        """`folder`: the run folder, where the run's key is kept, so that a resumed run goes on in MLflow too."""
        self.uri, self.experiment = uri, experiment
        key, known = _key(folder)
        self._run = ExperimentRuns(Node(key=key, name=name, tags=dict(tags), known=known, again=known), config, client_runs)
        self._writer = Writer(uri, experiment, self._run.nodes)

    @property
    def run_id(self) -> str | None:
        return self._run.node.id

    @property
    def error(self) -> str | None:
        return self._writer.error

    def rounds(self, lines: Sequence[Line]) -> None:
        """Lines of `rounds.jsonl`."""
        at, kept = now_ms(), list(lines)
        self._writer.tell(lambda: self._run.rounds(kept, at))

    def finish(self, folder: Path, summary: Mapping[str, Any]) -> None:
        """The end: final metrics and the folder's artifacts."""
        at, kept = now_ms(), dict(summary)
        self._writer.tell(lambda: self._run.finish(folder, kept, at))

    def fail(self, status: str) -> None:
        """FAILED or KILLED."""
        at = now_ms()
        self._writer.tell(lambda: self._run.end(status, at))

    def where(self) -> dict[str, str] | None:
        """Where MLflow keeps the run, None if it does not. A short run may be over before MLflow has begun: this waits for it."""
        self._writer.wait(lambda: self.run_id is not None)
        return None if self.run_id is None else {"tracking_uri": self.uri, "experiment": self.experiment, "run_id": self.run_id}

    def close(self) -> str | None:
        """Wait for what is left, not for a server that is silent; None, or one line on what is missing in MLflow."""
        return self._writer.close()


class SweepTracker:
    """Follows a sweep: its run, the trials below it, their clients below them, written by one thread. Nothing here raises, and nothing
    but `close` waits."""

    def __init__(
        self,
        uri: str,
        experiment: str,
        name: str,
        values: Mapping[str, Any],
        tags: Mapping[str, str],
        client_runs: int,
        known: Mapping[int, str] | None = None,
        parent: str | None = None,
    ) -> None:
        """`parent` and `known` are the run ids of a sweep that is gone on with: what they hold already is not written twice. A tag
        "raylora.key" (unique to the sweep, kept with it) lets it be found again where the ids were lost."""
        self.uri, self.experiment = uri, experiment
        self._client_runs, self._known = client_runs, dict(known or {})
        kept = tags.get(KEY)
        again = parent is not None
        self._parent = Node(
            key=kept or uuid.uuid4().hex,
            name=name,
            tags=dict(tags),
            id=parent,
            known=again or kept is not None,
            again=again,
            params=texts(values),
        )
        self._trials: dict[int, ExperimentRuns] = {}
        self._writer = Writer(uri, experiment, self._nodes)

    def trial(self, number: int, name: str, config: Mapping[str, Any], tags: Mapping[str, str]) -> None:
        """A trial begins, or goes on."""
        at, values, said = now_ms(), dict(config), {**tags, "trial": str(number)}

        def begin() -> None:
            id = self._known.get(number)
            again = id is not None
            node = Node(key=trial_key(number), name=name, parent=self._parent, tags=said, begun_ms=at, id=id, known=again, again=again)
            self._trials[number] = ExperimentRuns(node, values, self._client_runs)

        self._writer.tell(begin)

    def rounds(self, number: int, lines: Sequence[Line]) -> None:
        """Lines of a trial's `rounds.jsonl`."""
        at, kept = now_ms(), list(lines)
        self._writer.tell(lambda: self._trials[number].rounds(kept, at))

    def finish(self, number: int, folder: Path, summary: Mapping[str, Any]) -> None:
        """A trial's end: final metrics and its folder's artifacts."""
        at, kept = now_ms(), dict(summary)
        self._writer.tell(lambda: self._trials[number].finish(folder, kept, at))

    def fail(self, number: int, status: str, summary: Mapping[str, Any]) -> None:
        """A trial's end before its last round: FAILED or PRUNED (in MLflow killed, with the tag `pruned`)."""
        at, mark = now_ms(), record_sha256(summary)

        def end() -> None:
            self._trials[number].node.late[RECORD] = mark
            self._trials[number].end(status, at)

        self._writer.tell(end)

    def end(self, status: str, folder: Path | None = None) -> None:
        """The sweep's end: FINISHED, FAILED or KILLED; the files (not the folders) of the sweep folder as artifacts.

        Trials that were under way are KILLED until the sweep goes on with them.
        """
        at = now_ms()

        def finish() -> None:
            for trial in self._trials.values():
                if not trial.over:
                    trial.end("KILLED", at)
            if folder is not None:
                self._parent.files += sweep_files(folder)
                if status == "FINISHED" and (folder / "sweep.json").is_file():
                    self._parent.late = {RECORD: record_sha256(json.loads((folder / "sweep.json").read_text(encoding="utf-8")))}
            self._parent.ended = (status, at)

        self._writer.tell(finish)

    def ids(self) -> tuple[str | None, dict[int, str]]:
        """The run ids of the sweep and of its trials, as far as they are known."""
        made = {number: trial.node.id for number, trial in list(self._trials.items())}
        return self._parent.id, {**self._known, **{number: id for number, id in made.items() if id is not None}}

    def close(self) -> str | None:
        """Wait for what is left, not for a server that is silent; None, or one line on what is missing in MLflow."""
        return self._writer.close()

    def _nodes(self) -> list[Node]:
        return [*(node for trial in self._trials.values() for node in trial.nodes()), self._parent]


@dataclass(frozen=True)
class Uploaded:
    """What an upload did."""

    run_id: str
    there: bool  # all of it was there already
    trials: int = 0  # of a sweep: those that were brought


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A run folder whose run has ended, and what it is known by in MLflow."""

    folder: Path
    name: str
    summary: Mapping[str, Any]
    config: Mapping[str, Any]
    tags: Mapping[str, str]
    client_runs: int
    rounds: Sequence[Line] = ()  # of rounds.jsonl

    @property
    def finished(self) -> bool:
        return self.summary.get("status") == "finished"


def upload(run: Finished, uri: str, experiment: str) -> Uploaded:
    """Put a finished run into MLflow from its folder, or what of it is missing there. Raises whatever MLflow raises."""
    return _bring(Store(uri, experiment), run, _kept(run.folder) or f"record:{record_sha256(run.summary)}", None)


def upload_sweep(folder: Path, sweep: Mapping[str, Any], trials: Mapping[int, Finished], uri: str, experiment: str) -> Uploaded:
    """Put a sweep (the contents of its `sweep.json`) and its ended trials into MLflow, or what of them is missing there."""
    store, record = Store(uri, experiment), record_sha256(sweep)
    key = sweep_key(str(sweep["sha256"]), folder / "ledger.jsonl") if "sha256" in sweep else f"record:{record}"
    there = _whole_sweep(store, record, key)
    parent = Node(
        key=key,
        name=str(sweep.get("name") or folder.name),
        tags={name: str(sweep[name]) for name in ("task",) if name in sweep},
        id=_known_id(store, sweep) if there is None else there.info.run_id,
        known=True,
        params=texts({name: sweep[name] for name in ("objective", "search", "scheduler", "space", "seeds") if name in sweep}),
    )
    # each trial by its own mark: a sweep that was killed may have ended one that MLflow never heard of
    done = [_bring(store, trial, trial_key(number), parent, {"trial": str(number)}) for number, trial in sorted(trials.items())]
    brought = sum(not each.there for each in done)
    if there is None:
        parent.files = sweep_files(folder)
        parent.late, parent.ended = {RECORD: record}, ("FINISHED" if sweep.get("status") == "finished" else "KILLED", now_ms())
        store.write(parent)
    return Uploaded(str(parent.id), there is not None and not brought, brought)


def _whole(store: Store, record: str, tags: Mapping[str, str] | None = None) -> Any | None:
    """The run that holds all of this record, has these tags, and has ended; None if there is none."""
    there = store.find({RECORD: record, **(tags or {})})
    return there if there is not None and there.info.status in ENDED else None


def _whole_sweep(store: Store, record: str, key: str) -> Any | None:
    """The same of a sweep. Two sweeps may come to the same, and are two: another folder's run is this one's only if that folder has moved."""
    if (there := _whole(store, record, {KEY: key})) is not None:
        return there
    ended = [run for run in store.every({RECORD: record}) if run.info.status in ENDED]
    return next((run for run in ended if not Path(run.data.tags.get(KEY, "").partition(":")[2]).is_file()), None)


def _bring(store: Store, run: Finished, key: str, parent: Node | None, more: Mapping[str, str] | None = None) -> Uploaded:
    under = {} if parent is None else {PARENT: parent.id}
    if None not in under.values() and (there := _whole(store, record_sha256(run.summary), under)) is not None:
        return Uploaded(there.info.run_id, True)
    at = now_ms()
    begun = at - int(1000 * (run.summary.get("wall_seconds") or 0))
    node = Node(
        key=key,
        name=run.name,
        parent=parent,
        tags={**run.tags, **(more or {})},
        begun_ms=begun,
        id=_known_id(store, run.summary),
        known=True,
    )
    for each in told(node, run, at).nodes():
        store.write(each)
    return Uploaded(str(node.id), False)


def told(node: Node, run: Finished, at: int) -> ExperimentRuns:
    """What would have been told of a run while it ran."""
    runs = ExperimentRuns(node, run.config, run.client_runs)
    runs.rounds(run.rounds, at)
    if run.finished:
        runs.finish(run.folder, run.summary, at)
    else:
        runs.end("PRUNED" if run.summary.get("status") == "pruned" else "FAILED", at)
        node.late[RECORD] = record_sha256(run.summary)
    return runs


def _known_id(store: Store, summary: Mapping[str, Any]) -> str | None:
    """The run that was begun while the experiment ran, if this store has it."""
    run_id = (summary.get("mlflow") or {}).get("run_id")
    return run_id if run_id and store.get(run_id) is not None else None


def trial_key(number: int) -> str:
    return f"trial:{number}"


def sweep_key(sha256: str, ledger: Path) -> str:
    """The tag "raylora.key" of a sweep, by the hash of what it is and where its ledger lies."""
    return f"{sha256}:{ledger.resolve()}"


def sweep_files(folder: Path) -> list[Path | tuple[str, bytes]]:
    """The files of a sweep folder, without its trials'."""
    return [item for item in sorted(folder.iterdir()) if item.is_file() and not item.name.startswith(".")]


def texts(values: Mapping[str, Any]) -> dict[str, str]:
    """Parameters, as MLflow takes them."""
    return {key[:250]: str(value)[:6000] for key, value in sorted(flat(values).items())}


def _numbers(line: Line) -> dict[str, Any]:
    return {key: value for key, value in line.items() if key != "round"}


def final_metrics(summary: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of a summary that stand as last metrics."""
    final: dict[str, Any] = {}
    for metric, block in (summary.get("final") or {}).items():
        low, high = block.get("ci95") or (None, None)
        values = {**{key: block.get(key) for key in ("mean", "pooled", "frozen", "n")}, "ci95_low": low, "ci95_high": high}
        final |= {f"final/{metric}/{key}": value for key, value in values.items()}
    return {**final, **{key: summary.get(key) for key in ("bytes_up", "bytes_down", "wall_seconds", "virtual_seconds", "epsilon")}}


def data_of(config: Mapping[str, Any], sha256: str) -> dict[str, str] | None:
    """The prepared data of an experiment as MLflow's dataset input; None where nothing is said of it."""
    data = config.get("data")
    if not data or not sha256:
        return None
    sets = data["dataset"] if isinstance(data["dataset"], list) else [{"dataset": data["dataset"], "root": data.get("root")}]
    source = {"data_sha256": sha256, "sets": sets}
    return {
        "name": "+".join(item["dataset"] for item in sets),
        "digest": sha256,
        "source": json.dumps(source),
        "profile": json.dumps({"clients": config.get("clients")}),
    }


def record_sha256(summary: Mapping[str, Any]) -> str:
    """Of a summary without where MLflow keeps it."""
    return hashlib.sha256(json.dumps({k: v for k, v in summary.items() if k != "mlflow"}, sort_keys=True).encode()).hexdigest()


def parquet(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Rows with whatever keys they have, as one Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = list(dict.fromkeys(name for row in rows for name in row))
    buffer = io.BytesIO()
    pq.write_table(pa.table({name: [row.get(name) for row in rows] for name in names}), buffer)
    return buffer.getvalue()


def _kept(folder: Path) -> str | None:
    """The key that was given to a folder's run."""
    try:
        return str(json.loads((folder / KEPT).read_text(encoding="utf-8"))["key"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _key(folder: Path | None) -> tuple[str, bool]:
    """The key of a folder's run, kept there; and whether it was there already."""
    if folder is not None and (kept := _kept(folder)):
        return kept, True
    key = uuid.uuid4().hex
    if folder is not None:
        with contextlib.suppress(OSError):  # it will not be found again, which is no reason to stop
            (folder / KEPT).parent.mkdir(parents=True, exist_ok=True)
            (folder / KEPT).write_text(json.dumps({"key": key}), encoding="utf-8")
    return key, False
