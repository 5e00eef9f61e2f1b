"""MLflow on a real SQLite file: what a run tells it is read back by MLflow's own client; what fails there ends nothing."""

import json
import shutil
import sqlite3
import threading
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from mlflow import MlflowClient
from mlflow import __version__ as mlflow_version

from raylora import launch, provenance
from raylora.core.errors import InputError, RunError
from raylora.core.values import flat
from raylora.tracking import mlflow as ours
from raylora.tracking import store, writer
from raylora.tracking.mlflow import Tracker, resolved
from raylora.tracking.store import Node, Store


def tracked(found, uri: str, experiment: str = "hearts", client_runs: int = 16) -> Tracker:
    """Tell a tracker of a finished run what it would have been told."""
    tracker = Tracker(uri, experiment, found.config.name, found.config.as_dict(), launch.tags(found.config, "abc"), client_runs)
    for t in range(2):
        tracker.rounds([line for line in found.lines if line["round"] == t])
    tracker.finish(found.folder, found.summary)
    return tracker


def history(client: MlflowClient, run: str, key: str) -> list[tuple[int, float]]:
    return sorted((metric.step, metric.value) for metric in client.get_metric_history(run, key))


@pytest.mark.slow
def test_a_run_is_read_back_with_its_parameters_metrics_clients_and_files(runs, mlflow_uri, tmp_path):
    found = runs("disease", strategy={"name": "rate_my_lora", "temperature": 0.1})
    tracker = tracked(found, mlflow_uri)
    assert tracker.close() is None and tracker.run_id
    client = MlflowClient(tracking_uri=mlflow_uri)
    (experiment,) = [e for e in client.search_experiments() if e.name == "hearts"]
    everything = client.search_runs([experiment.experiment_id])
    run = client.get_run(tracker.run_id)
    assert run.info.status == "FINISHED" and run.data.params["lora.rank"] == "1" and run.data.params["strategy.temperature"] == "0.1"
    assert {
        "strategy": "rate_my_lora",
        "temperature": "0.1",
        "seed": "0",
        "data_sha256": "abc",
        "config_sha256": found.config.sha256(),
    }.items() <= run.data.tags.items()
    rounds = [line for line in found.lines if line["kind"] == "round"]
    assert history(client, run.info.run_id, "bytes_up") == [
        *((line["round"], line["bytes_up"]) for line in rounds),
        (2, found.summary["bytes_up"]),
    ]
    assert history(client, run.info.run_id, "weights.GE") == [(line["round"], line["weights"]["GE"]) for line in rounds]
    assert run.data.metrics["final/balanced_accuracy/mean"] == found.summary["final"]["balanced_accuracy"]["mean"]
    children = {r.data.tags["client"]: r for r in everything if r.data.tags.get("mlflow.parentRunId") == tracker.run_id}
    assert children.keys() == set(found.summary["clients"]) and len(everything) == 5
    losses = [(line["round"], line["loss"]) for line in found.lines if line.get("client") == "GE"]
    assert history(client, children["GE"].info.run_id, "loss") == losses and children["GE"].info.status == "FINISHED"
    names = {item.path for item in client.list_artifacts(tracker.run_id)}
    assert names >= {"config.yaml", "summary.json", "rounds.jsonl", "cases.parquet", "adapters"} and "checkpoints" not in names
    assert (tmp_path / "mlartifacts").is_dir(), "artifacts lie beside the database"
    local = client.download_artifacts(tracker.run_id, "adapters/global/head.safetensors", str(tmp_path))
    assert Path(local).read_bytes() == (found.folder / "adapters" / "global" / "head.safetensors").read_bytes()


@pytest.mark.slow
def test_data_and_environment_are_kept_with_the_run(runs, mlflow_uri, tmp_path):
    found = runs("disease")
    tracker = tracked(found, mlflow_uri)
    assert tracker.close() is None
    client = MlflowClient(tracking_uri=mlflow_uri)
    run = client.get_run(tracker.run_id)
    (given,) = run.inputs.dataset_inputs
    assert (given.dataset.name, given.dataset.digest) == ("mnms", "abc")
    assert json.loads(given.dataset.source) == {"data_sha256": "abc", "sets": [{"dataset": "mnms", "root": str(found.config.data.root)}]}
    local = Path(client.download_artifacts(tracker.run_id, "environment.txt", str(tmp_path))).read_text()
    assert f"mlflow=={mlflow_version}" in local.splitlines() and "torch==" in local
    assert len(run.data.tags["code_sha256"]) == 64


@pytest.mark.slow
def test_many_clients_have_one_file_and_no_runs_of_their_own(runs, mlflow_uri, tmp_path):
    found = runs("disease")
    tracker = tracked(found, mlflow_uri, client_runs=3)
    assert tracker.close() is None
    client = MlflowClient(tracking_uri=mlflow_uri)
    assert len(client.search_runs([e.experiment_id for e in client.search_experiments()])) == 1
    table = pq.read_table(client.download_artifacts(tracker.run_id, "clients.parquet", str(tmp_path))).to_pylist()
    lines = [flat(line) for line in found.lines if line["kind"] == "client"]
    assert table == [{name: line.get(name) for name in table[0]} for line in lines] and set(table[0]) == {k for line in lines for k in line}


def test_where_clients_are_drawn_their_number_is_known_at_the_end():
    """Two of three take part in each round: no client has a run before it is clear that there are not too many."""
    lines = [[{"kind": "client", "round": t, "client": c, "loss": 0.5} for c in cohort] for t, cohort in enumerate(("ab", "bc", "ca"))]
    for client_runs, children in ((2, set()), (3, {"a", "b", "c"})):
        drawn = ours.ExperimentRuns(Node(key="x", name="x"), {"sampling": {"kind": "uniform"}}, client_runs)
        for t in range(3):
            drawn.rounds(lines[t], 0)
        assert drawn.children == {}
        drawn.end("KILLED", 0)
        assert drawn.children.keys() == children
        assert [name for name, _ in drawn.node.files] == ([] if children else ["clients.parquet"])
        assert all(len(node.metrics) == 2 and node.ended == ("KILLED", 0) for node in drawn.children.values())


@pytest.mark.slow
def test_a_run_that_fails_is_marked(runs, mlflow_uri):
    found = runs("disease")
    tracker = Tracker(mlflow_uri, "hearts", "x", found.config.as_dict(), {}, 16)
    tracker.rounds(found.lines)
    tracker.fail("KILLED")
    assert tracker.close() is None
    client = MlflowClient(tracking_uri=mlflow_uri)
    assert {r.info.status for r in client.search_runs([e.experiment_id for e in client.search_experiments()])} == {"KILLED"}


@pytest.mark.slow
@pytest.mark.parametrize("uri", ["sqlite:////proc/nowhere/mlflow.db", "nonsense://x", "http://127.0.0.1:9"])
def test_what_cannot_be_reached_is_said_once_and_ends_nothing(runs, uri, monkeypatch):
    monkeypatch.setattr(writer, "QUIET_S", 0.5)
    tracker = tracked(runs("disease"), uri)
    missing = tracker.close()
    assert missing is not None and missing.startswith(f"MLflow at {uri}") and "\n" not in missing
    assert tracker.run_id is None


def test_waiting_has_an_end(runs, monkeypatch):
    monkeypatch.setattr(writer, "WAIT_S", 0.2)
    free = threading.Event()
    monkeypatch.setattr(writer, "Store", lambda *_: free.wait(250))
    tracker = tracked(runs("disease"), "http://127.0.0.1:9")
    assert "still busy after 0.2 s" in (tracker.close() or "")
    free.set()
    tracker._writer._thread.join()


def everything(uri: str) -> list:
    client = MlflowClient(tracking_uri=uri)
    return client.search_runs([e.experiment_id for e in client.search_experiments()])


def points(uri: str) -> dict[tuple[str, str], list[tuple[int, float]]]:
    """(run name, metric) -> its history."""
    client, found = MlflowClient(tracking_uri=uri), everything(uri)
    return {(run.info.run_name, key): history(client, run.info.run_id, key) for run in found for key in run.data.metrics}


@pytest.mark.slow
def test_a_record_is_brought_later_and_only_once(runs, mlflow_uri):
    found = runs("disease")
    done = launch.upload(found.folder, mlflow_uri)
    client = MlflowClient(tracking_uri=mlflow_uri)
    run = client.get_run(done.run_id)
    assert run.info.status == "FINISHED" and run.data.tags["data_sha256"] == found.summary["data_sha256"] and not done.there
    assert len(history(client, done.run_id, "bytes_up")) == 3
    before, told = everything(mlflow_uri), points(mlflow_uri)
    assert len(before) == 5 and all(r.data.tags["client"] for r in before if r.info.run_id != done.run_id)
    again = launch.upload(found.folder, mlflow_uri)
    assert again.there and again.run_id == done.run_id and len(everything(mlflow_uri)) == 5 and points(mlflow_uri) == told


class Breaking:
    """MLflow's client, until it has been called so many times; what is asked then is done, and its answer lost."""

    def __init__(self, client: MlflowClient, calls: int) -> None:
        self.client, self.calls = client, calls

    def __getattr__(self, name: str):
        def call(*values, **more):
            answer = getattr(self.client, name)(*values, **more)
            self.calls -= name not in ("search_runs", "get_run", "get_metric_history")
            if self.calls < 0:
                raise ConnectionError("gone")
            return answer

        return call


@pytest.mark.slow
def test_an_upload_that_breaks_anywhere_is_completed_without_a_second_copy_of_anything(runs, mlflow_uri, monkeypatch):
    found = runs("disease")
    whole = mlflow_uri.replace("mlflow.db", "whole.db")
    shutil.copy(mlflow_uri.removeprefix("sqlite:///"), whole.removeprefix("sqlite:///"))
    launch.upload(found.folder, whole)
    opened, broken = Store.__init__, []

    def breaking(self, uri, experiment):
        opened(self, uri, experiment)
        self.client = Breaking(self.client, 2 * len(broken))  # each try does more than the one before, and goes on where that broke

    monkeypatch.setattr(Store, "__init__", breaking)
    while len(broken) < 40:
        try:
            launch.upload(found.folder, mlflow_uri)
            break
        except RunError as error:
            broken.append(str(error))
    assert 4 < len(broken) < 40 and all("gone" in error for error in broken)
    assert points(mlflow_uri) == points(whole) and len(everything(mlflow_uri)) == 5
    assert {run.info.status for run in everything(mlflow_uri)} == {"FINISHED"}
    broken.clear()
    assert launch.upload(found.folder, mlflow_uri).there, "which is said without a single write"


def test_a_server_that_is_gone_for_days_is_asked_as_before():
    waits = [writer.patience_s(failures, writer.LONGEST_S) for failures in (1, 2, 3, 100, 5000)]
    assert waits == [1.0, 2.0, 4.0, 15.0, 15.0] and writer.patience_s(5000, 1.0) == 1.0


@pytest.mark.slow
def test_a_database_that_is_locked_holds_nobody_up_and_is_written_when_it_is_free(runs, mlflow_uri, monkeypatch):
    found = runs("disease")
    monkeypatch.setattr(store, "LOCKED_S", 0.2)
    other = sqlite3.connect(mlflow_uri.removeprefix("sqlite:///"), isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    asking, probe = set(), store.probe
    monkeypatch.setattr(store, "probe", lambda uri: asking.add(threading.current_thread().name) or probe(uri))
    monkeypatch.setattr(writer, "QUIET_S", 60)  # a machine that stands still for seconds is no silence
    tracker = tracked(found, mlflow_uri)
    until = time.monotonic() + 240
    while tracker.error is None and time.monotonic() < until:
        time.sleep(0.05)
    assert "locked" in (tracker.error or "") and asking == {"mlflow"}, "the writer's own thread has waited, and nobody else"
    other.execute("ROLLBACK")
    assert tracker.close() is None
    launched = everything(mlflow_uri)
    assert len(launched) == 5 and {run.info.status for run in launched} == {"FINISHED"}
    assert points(mlflow_uri)["tiny", "bytes_up"][-1] == (2, found.summary["bytes_up"])


@pytest.mark.slow
def test_a_database_that_stays_locked_is_not_waited_for_and_the_record_comes_later(runs, mlflow_uri, monkeypatch):
    found = runs("disease")
    monkeypatch.setattr(store, "LOCKED_S", 0.2)
    monkeypatch.setattr(writer, "QUIET_S", 1.0)
    monkeypatch.setattr(writer, "WAIT_S", 1.5)
    other = sqlite3.connect(mlflow_uri.removeprefix("sqlite:///"), isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    began = time.monotonic()
    tracker = tracked(found, mlflow_uri)
    assert tracker.where() is None and "database is locked" in (tracker.close() or "") and time.monotonic() - began < 100
    tracker._writer._thread.join()  # in a process that goes on it would try for a while
    other.execute("ROLLBACK")
    assert everything(mlflow_uri) == []
    assert not launch.upload(found.folder, mlflow_uri).there
    assert len(everything(mlflow_uri)) == 5 and launch.upload(found.folder, mlflow_uri).there


@pytest.mark.slow
def test_a_run_that_is_resumed_goes_on_in_the_same_place(runs, mlflow_uri, tmp_path):
    """Killed after its first round was told; the second process tells that round again, as after a checkpoint that was older."""
    found = runs("disease")
    folder = tmp_path / "run"
    shutil.copytree(found.folder, folder)
    (folder / "checkpoints" / "mlflow.json").unlink(missing_ok=True)
    for last in (False, True):
        tracker = Tracker(mlflow_uri, "hearts", "tiny", found.config.as_dict(), {"data_sha256": "abc"}, 16, folder)
        for t in range(2 if last else 1):
            tracker.rounds([line for line in found.lines if line["round"] == t])
        tracker.finish(folder, found.summary) if last else tracker.fail("KILLED")
        assert tracker.close() is None
    whole = tracked(found, mlflow_uri, "whole")
    assert whole.close() is None
    client = MlflowClient(tracking_uri=mlflow_uri)
    ids = {e.name: e.experiment_id for e in client.search_experiments()}
    resumed, whole = ({run.info.run_name: run for run in client.search_runs([ids[name]])} for name in ("hearts", "whole"))
    assert resumed.keys() == whole.keys() and {run.info.status for run in resumed.values()} == {"FINISHED"}
    for name, run in resumed.items():
        assert all(history(client, run.info.run_id, k) == history(client, whole[name].info.run_id, k) for k in whole[name].data.metrics)


@pytest.mark.slow
def test_a_run_that_is_brought_later_keeps_the_code_that_made_it(runs, mlflow_uri, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(runs("disease").folder, folder)
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["code"] == provenance.code() and len(summary["code"]["sha256"]) == 64
    (folder / "summary.json").write_text(json.dumps({**summary, "code": {"sha256": "0" * 64, "commit": None}}))
    launch.upload(folder, mlflow_uri)
    tags = [run.data.tags for run in everything(mlflow_uri) if "strategy" in run.data.tags]
    assert {tag["code_sha256"] for tag in tags} == {"0" * 64} and not any("mlflow.source.git.commit" in tag for tag in tags)
    (folder / "summary.json").write_text(json.dumps({**summary, "code": 3}))
    with pytest.raises(InputError, match="code: expected an object, found '3'"):
        launch.upload(folder, mlflow_uri)


def test_what_is_not_finished_is_not_uploaded(runs, tmp_path):
    found = runs("disease")
    with pytest.raises(InputError, match="no finished run"):
        launch.upload(tmp_path, "sqlite:///x.db")
    shutil.copy(found.folder / "config.yaml", tmp_path)
    with pytest.raises(InputError, match="no finished run"):
        launch.upload(tmp_path, "sqlite:///x.db")
    (tmp_path / "summary.json").write_text(json.dumps({**found.summary, "status": "failed"}))
    with pytest.raises(InputError, match="no finished run"):
        launch.upload(tmp_path, "sqlite:///x.db")
    with pytest.raises(InputError, match="--uri: expected a tracking server"):
        launch.upload(found.folder)
    for word in ("nonsense://x", "mlflow.db", "sqlite:", "http://", "://x"):
        with pytest.raises(InputError, match=r"tracking.uri: expected SCHEME://\.\.\., SCHEME one of .*sqlite.*, found '"):
            launch.upload(found.folder, word)


def test_a_database_that_cannot_be_made_is_said_at_once(runs, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "text.db").write_text("this is no database " * 99)
    folder, began = runs("disease").folder, time.monotonic()
    for path, said in (
        ("/proc/a.db", "unable to open"),
        (tmp_path / "file" / "a.db", "File exists"),
        (tmp_path / "text.db", "not a database"),
    ):
        with pytest.raises(RunError, match=f"^MLflow at sqlite:///{path}: .*{said}"):
            launch.upload(folder, f"sqlite:///{path}")
    assert time.monotonic() - began < 30


def test_databases_are_found_from_the_working_folder_and_not_on_network_disks(tmp_path, monkeypatch):
    assert resolved("sqlite:///a/m.db", tmp_path) == f"sqlite:///{tmp_path}/a/m.db"
    assert resolved("sqlite:////abs/m.db", tmp_path) == "sqlite:////abs/m.db"
    assert resolved("http://x", tmp_path) == "http://x"
    with monkeypatch.context() as mounted:
        mounted.setattr(ours.Path, "read_text", lambda self: "a / ext4 rw\nb:/x /mnt/My\\040Share nfs4 rw\n")
        assert ours._network_disk(Path("/mnt/My Share/m.db")) == "nfs4" and ours._network_disk(Path("/mnt/other/m.db")) is None
    monkeypatch.setattr(ours, "_network_disk", lambda path: "nfs")
    with pytest.raises(InputError, match=r"tracking.uri: .*m\.db is on a network disk \(nfs\)"):
        resolved("sqlite:///m.db", tmp_path)
