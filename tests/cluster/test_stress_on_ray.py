"""A stress campaign on a real Ray: interrupted, gone on with, and what its page says against the runs of which it is made."""

import json
import signal

import pytest
import ray
import yaml
from mlflow import MlflowClient
from small_runs import settings
from struck import Struck

from raylora import cli
from raylora.report.runs import find_runs


def call(*words: object) -> int:
    return cli.guarded(lambda: cli.app([str(word) for word in words], standalone_mode=False))


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_a_campaign_from_the_command_line_to_its_page(prepared_folder, tmp_path, mlflow_uri, capsys):
    """Interrupted when its first experiment has ended, it goes on there; what a method cannot do is a gap with its reason."""
    base = settings(
        prepared_folder,
        clients={"by": "iid", "count": 5},
        training={"rounds": 1, "local_steps": 2, "lr": 0.02},
        placement={"cpus_per_client": 4.0, "clients_per_actor": 5},  # one at a time: the next takes over its processes
        tracking={"uri": mlflow_uri},
    )
    krum = {"strategy": {"name": "fedit", "reduce": {"name": "krum", "f": 1}}, "sampling": {"kind": "uniform", "fraction": 0.5}}
    dials = {"faults.byzantine": [0.0, 0.2], "faults.dropout": [0.0, 0.5]}
    strategies = {"median": {"strategy": {"name": "fedit", "reduce": "median"}}, "Krum": krum}
    common = {"faults.strength": 10.0, "network.step_s": 1.0}
    values = {"name": "two", "base": base, "strategies": strategies, "dials": dials, "common": common}
    (tmp_path / "stress.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    address = ray.get_runtime_context().gcs_address
    words = ["stress", "stress.yaml", "--output", "out", "--address", address]
    Struck(words, tmp_path, "finished", signal.SIGINT).end(130)
    ends = [json.loads(line) for line in (tmp_path / "out" / "ledger.jsonl").read_text().splitlines()]
    ended = [tmp_path / "out" / "trials" / f"{end['number']:03d}" for end in ends if end.get("status") == "finished"]
    done = {folder: (folder / "summary.json").read_bytes() for folder in ended}
    assert done and not (tmp_path / "out" / "stress.html").exists()
    assert call("stress", tmp_path / "stress.yaml", "--output", tmp_path / "out", "--json") == 0
    out, err = capsys.readouterr()
    assert "experiments: 8/8" in err and "Traceback" not in err
    assert {folder: (folder / "summary.json").read_bytes() for folder in done} == done, "what was done is not done again"
    client = MlflowClient(mlflow_uri)
    ids = [experiment.experiment_id for experiment in client.search_experiments()]
    assert len({run.info.run_name for run in client.search_runs(ids) if "strategy" in run.data.tags}) == 4
    found = json.loads(out.splitlines()[-1], parse_constant=pytest.fail)
    assert found == json.loads((tmp_path / "out" / "stress.json").read_text()) and "stress.html" in out
    assert [e["status"] for e in found["experiments"]] == ["finished", "refused"] * 4, found["experiments"]
    assert all("at least 5 clients in every round" in e["why"] for e in found["experiments"] if e["status"] == "refused")
    by = {(c["strategy"], c["held"]): c for c in found["curves"]}
    assert by["Krum", 0.0]["mean_height"]["value"] is None and all(p["mean"] is None for p in by["Krum", 0.0]["points"])
    for trial in find_runs([tmp_path / "out"]):
        point = by["median", trial.config["faults"]["dropout"]]["points"][trial.config["faults"]["byzantine"] > 0]
        own = trial.summary["final"]["dice"]
        assert point["mean"]["value"] == pytest.approx(own["mean"]) and point["mean"]["n"] == own["n"]
        assert point["worst"]["value"] == pytest.approx(min(own["per_client"].values()))
        assert point["virtual_seconds"] == trial.summary["virtual_seconds"] == 2.0
    for curve in found["curves"]:
        ends = [p["mean"] and p["mean"]["value"] for p in curve["points"]]
        assert curve["mean_height"]["value"] == (None if None in ends else pytest.approx(sum(ends) / 2))
    page = (tmp_path / "out" / "stress.html").read_text()
    assert "Robustness to faults.byzantine" in page and "at least 5 clients" in page and "https:" not in page
    assert call("stress", tmp_path / "stress.yaml", "--output", tmp_path / "out") == 0
    assert "experiment 1 of" not in capsys.readouterr().err, "nothing is left to do"
    assert call("stress", tmp_path / "stress.yaml", "training.lr=0.03", "--output", tmp_path / "out") == 2
    assert "holds another" in capsys.readouterr().err
