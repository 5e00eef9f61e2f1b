"""MLflow on a real SQLite file: what a run tells it is read back by MLflow's own client; what fails there ends nothing."""

import json
import shutil
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

from raylora import config as configuration
from raylora import launch
from raylora.core.errors import InputError, RunError
from raylora.tracking import mlflow as ours
from raylora.tracking import writer
from raylora.tracking.mlflow import Tracker, flat, resolved


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
def test_many_clients_have_no_runs_of_their_own(runs, mlflow_uri):
    tracker = tracked(runs("disease"), mlflow_uri, client_runs=3)
    assert tracker.close() is None
    client = MlflowClient(tracking_uri=mlflow_uri)
    assert len(client.search_runs([e.experiment_id for e in client.search_experiments()])) == 1


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
def test_what_cannot_be_reached_is_said_once_and_ends_nothing(runs, uri):
    tracker = tracked(runs("disease"), uri)
    missing = tracker.close()
    assert missing is not None and missing.startswith(f"MLflow at {uri}: ") and "\n" not in missing
    assert tracker.run_id is None


def test_waiting_has_an_end(runs, monkeypatch):
    monkeypatch.setattr(writer, "WAIT_S", 0.2)
    monkeypatch.setattr(writer, "Store", lambda *_: time.sleep(3))
    tracker = tracked(runs("disease"), "http://127.0.0.1:9")
    assert "still busy after 0.2 s" in (tracker.close() or "")


@pytest.mark.slow
def test_a_record_is_brought_later(runs, mlflow_uri):
    found = runs("disease")
    run_id = launch.upload(found.folder, mlflow_uri).run_id
    client = MlflowClient(tracking_uri=mlflow_uri)
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED" and run.data.tags["data_sha256"] == found.summary["data_sha256"]
    assert len(history(client, run_id, "bytes_up")) == 3
    everything = client.search_runs([e.experiment_id for e in client.search_experiments()])
    assert len(everything) == 5 and all(r.data.tags["client"] for r in everything if r.info.run_id != run_id)


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
    with pytest.raises(RunError, match=r"^MLflow at nonsense://x: "):
        launch.upload(found.folder, "nonsense://x")


def test_databases_are_found_from_the_working_folder_and_not_on_network_disks(tmp_path, monkeypatch):
    assert resolved("sqlite:///a/m.db", tmp_path) == f"sqlite:///{tmp_path}/a/m.db"
    assert resolved("sqlite:////abs/m.db", tmp_path) == "sqlite:////abs/m.db"
    assert resolved("http://x", tmp_path) == "http://x"
    monkeypatch.setattr(ours, "_network_disk", lambda path: "nfs")
    with pytest.raises(InputError, match=r"tracking.uri: .*m\.db is on a network disk \(nfs\)"):
        resolved("sqlite:///m.db", tmp_path)


def test_nested_values_have_dotted_names():
    assert flat({"a": {"b": {"c": 1}}, "d": [2]}) == {"a.b.c": 1, "d": [2]}
    assert flat(configuration.Config().as_dict())["data.phantom.patients"] == 100
