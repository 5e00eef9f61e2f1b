"""Sweeps on a real Ray: the same numbers as plain runs, within what was reserved, through kills."""

import contextlib
import json
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray
import yaml
from here import without_ray
from mlflow import MlflowClient
from ray._private.state import actors
from small_runs import run, settings, tiny

from raylora import config as configuration
from raylora import launch_sweep
from raylora.cluster.resources import Available, fitting
from raylora.cluster.sweep import Followed, share
from raylora.core.errors import InputError, MachineError
from raylora.sweep import space
from raylora.sweep.ledger import Ledger
from raylora.sweep.search import Listed
from raylora.sweep.state import summary_of

pytestmark = pytest.mark.ray


def write(folder, root, base=None, **changes):
    """A sweep file beside its base experiment: two actors of two clients a trial, two trials at once."""
    placement = {"cpus_per_client": 0.25, "clients_per_actor": 2}
    (folder / "base.yaml").write_text(yaml.safe_dump(settings(root, **{"placement": placement, **(base or {})})))
    values = {"name": "ranks", "base": "base.yaml", "space": {"lora.rank": {"grid": [1, 2]}}, "seeds": [0, 1], "limits": {"concurrent": 2}}
    (folder / "sweep.yaml").write_text(yaml.safe_dump({**values, **changes}))
    return folder / "sweep.yaml"


def plain_hashes(found, out):
    """The hash of each trial's written config, run in this process."""
    hashes = {}
    for row in found["trials"]:
        config = configuration.load(out / row["folder"] / "config.yaml")
        hashes[row["number"]] = run(config, out / "plain" / str(row["number"])).hashes
    return hashes


def alive():
    """The class and process of each living actor of this Ray."""
    states = "ALIVE", "PENDING_CREATION", "DEPENDENCIES_UNREADY"
    return [(actor["ActorClassName"], actor["Pid"]) for actor in actors().values() if actor["State"] in states]


def has_torch(pid):
    try:
        return "libtorch" in Path(f"/proc/{pid}/maps").read_text()
    except OSError:
        return False


class Watch(threading.Thread):
    """Counts living actors, and notes which kinds of them load torch, until it is told to end."""

    def __init__(self):
        super().__init__(daemon=True)
        self.most, self.classes, self.with_torch, self.over = 0, set(), set(), threading.Event()

    def run(self):
        while not self.over.wait(0.1):
            found = alive()
            self.most, self.classes = max(self.most, len(found)), self.classes | {name for name, _ in found}
            self.with_torch |= {name for name, pid in found if pid and has_torch(pid)}


@pytest.mark.usefixtures("ray_cluster")
def test_trials_are_plain_runs_within_what_was_reserved(prepared_folder, tmp_path, mlflow_uri):
    path = write(tmp_path, prepared_folder, {"tracking": {"uri": mlflow_uri, "experiment": "sweeps"}})
    before = len(alive())
    watch = Watch()
    watch.start()
    out, found = launch_sweep.sweep(path, (), tmp_path / "out")
    watch.over.set()
    watch.join()
    assert found["status"] == "finished"
    assert [row["status"] for row in found["trials"]] == ["finished"] * 4
    assert {row["number"]: row["adapter_sha256"] for row in found["trials"]} == plain_hashes(found, out)
    assert before < watch.most <= before + 2 * (1 + 2)  # two trials at once: a driver and two clients' actors each
    assert {"DriverActor", "ClientActor"} <= watch.classes
    assert "ClientActor" in watch.with_torch and "DriverActor" not in watch.with_torch
    until = time.monotonic() + 120
    while len(alive()) > before and time.monotonic() < until:
        time.sleep(0.1)
    assert len(alive()) <= before  # one that another test has ended may have been on its way out
    assert not ray.util.placement_group_table() or all(g["state"] == "REMOVED" for g in ray.util.placement_group_table().values())

    processes = {}  # of clients, by that of the driver they were with
    for row in found["trials"]:
        summary = summary_of(out / row["folder"])
        processes.setdefault(summary["driver"]["pid"], []).append([actor["pid"] for actor in summary["actors"]])
    assert len(processes) < 4, "a driver has more than one trial"
    assert all(pids == first for first, *others in processes.values() for pids in others), "and so have its clients' actors"

    best = found["best"]
    means = {rank: sum(r["objective"] for r in found["trials"] if r["values"]["lora.rank"] == rank) / 2 for rank in (1, 2)}
    assert best["values"]["lora.rank"] == max(means, key=means.get)
    assert "<html" in (out / "comparison.html").read_text()

    ledger = [json.loads(line) for line in (out / "ledger.jsonl").read_text().splitlines()]
    told = [number for line in ledger if line["kind"] == "mlflow" for number in line["trials"]]
    assert sorted(told) == ["0", "1", "2", "3"], "each trial's run id once"
    client = MlflowClient(mlflow_uri)
    runs = client.search_runs([client.get_experiment_by_name("sweeps").experiment_id])
    parent = [r for r in runs if "mlflow.parentRunId" not in r.data.tags]
    assert [(r.info.run_name, r.info.status) for r in parent] == [("ranks", "FINISHED")]
    trials = {r.info.run_name: r for r in runs if r.data.tags.get("mlflow.parentRunId") == parent[0].info.run_id}
    assert sorted(trials) == [f"ranks-{number:03d}" for number in range(4)]
    for row in found["trials"]:
        summary = json.loads((out / row["folder"] / "summary.json").read_text())
        entry = trials[f"ranks-{row['number']:03d}"]
        assert entry.data.metrics["final/dice/mean"] == summary["final"]["dice"]["mean"]
        assert entry.data.metrics["validation.dice"] == row["objective"]
        assert entry.data.params["lora.rank"] == str(row["values"]["lora.rank"])
        children = [r for r in runs if r.data.tags.get("mlflow.parentRunId") == entry.info.run_id]
        assert sorted(r.info.run_name for r in children) == summary["clients"]

    _, same = launch_sweep.sweep(path, (), tmp_path / "out")  # nothing is left to do
    assert same["trials"] == found["trials"]


@pytest.mark.usefixtures("ray_cluster")
def test_a_sweep_that_has_run_long_enough_goes_on_when_asked_again_and_median_stopping_prunes_what_falls_behind(prepared_folder, tmp_path):
    """Trials one after the other: the fourth is behind the median of three by its second round."""
    base = {"task": "disease", "training__rounds": 4, "placement": {"cpus_per_client": 0.25, "clients_per_actor": 4}}
    path = write(
        tmp_path, prepared_folder, base, space={"training.lr": {"grid": [0.03, 0.029, 0.028, 1e-6]}}, seeds=[0],
        objective={"metric": "likelihood"}, scheduler={"kind": "median"}, limits={"concurrent": 1},
    )  # fmt: skip
    began = time.monotonic()
    _, found = launch_sweep.sweep(path, ["limits.hours=0.0005"], tmp_path / "out")  # 1.8 s: too few for a trial
    assert found["status"] == "stopped" and found["counts"]["finished"] == 0 and time.monotonic() - began < 60
    _, found = launch_sweep.sweep(path, ["limits.hours=1"], tmp_path / "out")
    assert [row["status"] for row in found["trials"]] == ["finished"] * 3 + ["pruned"]
    assert found["trials"][3]["rounds"] < 4


@pytest.mark.usefixtures("ray_cluster")
def test_what_does_not_fit_is_said_at_once(prepared_folder, tmp_path):
    path = write(tmp_path, prepared_folder)
    with pytest.raises(InputError, match="placement"):
        launch_sweep.sweep(path, ["placement.cpus_per_client=1000"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("ray_cluster")
def test_a_trial_that_cannot_be_is_named_before_anything_starts(prepared_folder, tmp_path):
    path = write(tmp_path, prepared_folder, space={"lora.blocks": {"grid": ["all", 99]}})
    with pytest.raises(InputError, match=r"trial 2 \(lora.blocks 99\)"):
        launch_sweep.sweep(path, (), tmp_path / "out")
    with pytest.raises(InputError, match="data.fractions: no client has a validation patient"):
        launch_sweep.sweep(write(tmp_path, prepared_folder), ["data.fractions=[0.7,0.0001,0.0,0.29]"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_trials_that_the_machine_stops_are_not_ended_and_two_in_a_row_end_the_sweep(prepared_folder, tmp_path):
    settings = space.load(write(tmp_path, prepared_folder))
    trials = {number: SimpleNamespace(number=number, folder=str(number)) for number in range(4)}
    told = []
    with contextlib.closing(Ledger(tmp_path / "out", settings.sha256())) as ledger:
        followed = Followed(Listed([]), ledger, tmp_path, trials, lambda what, trial, result: told.append((what, trial.number)))

        def ends(number, **result):
            ended = SimpleNamespace(config={"place": SimpleNamespace(number=number)}, last_result=result)
            followed.on_trial_complete(0, [], ended)

        ends(0, status="stopped", error="the disk is full", objective=None)
        ends(1, status="failed", error="a loss is not finite", objective=None)
        ends(2, status="stopped", error="the disk is full", objective=None)
        with pytest.raises(
            MachineError, match="2 trials in a row could not go on, the last: still full; the same command goes on from here"
        ):
            ends(3, status="stopped", error="still full", objective=None)
        assert list(ledger.of("end")) == [1] and told == [("stopped", 0), ("failed", 1), ("stopped", 2), ("stopped", 3)]


def test_a_sweep_of_which_a_trial_was_stopped_does_not_end_well(prepared_folder, tmp_path, monkeypatch):
    def stopped(ledger, search, unfinished, folder, prepare, *, told, **options):
        told("stopped", search.next(), {"error": "/x: No space left on device"})

    without_ray(monkeypatch.setattr)
    monkeypatch.setattr("raylora.cluster.sweep.run", stopped)
    told = []
    with pytest.raises(MachineError, match="trials that could not go on: 0; the same command goes on with them"):
        launch_sweep.sweep(write(tmp_path, prepared_folder), (), tmp_path / "out", on_event=told.append)
    assert "trial 0 cannot go on: /x: No space left on device; the same command goes on with it" in [event.get("text") for event in told]


def test_with_auto_a_trial_has_its_part_of_the_actors_that_fit(prepared_folder, tmp_path):
    def part(concurrent, of_a_gpu=0.0, **has):
        config = tiny(prepared_folder, placement={"cpus_per_client": 2.0, "gpus_per_client": of_a_gpu, "clients_per_actor": "auto"})
        return fitting(share(config, Available(where="", **has), concurrent), 2.0, of_a_gpu)

    nodes = {"cpus": 6.0, "gpus": 2.0, "nodes": ((3.0, 1.0), (3.0, 1.0))}
    assert part(1, **nodes) == 2 and part(2, **nodes) == 1 and part(None, **nodes) == 1, "an actor does not span two machines"
    assert part(1, of_a_gpu=0.25, cpus=8.0, gpus=1.0) == 4 and part(None, of_a_gpu=0.25, cpus=8.0, gpus=1.0) == 1


def test_a_trial_whose_driver_is_lost_too_often_has_failed(prepared_folder, tmp_path):
    settings = space.load(write(tmp_path, prepared_folder))
    trial = space.trials(settings)[0]
    config = settings.config(trial.values, trial.seed, trial.number)
    place = SimpleNamespace(number=0, plan=SimpleNamespace(config=config))
    lost = SimpleNamespace(config={"place": place}, get_error=lambda: None)
    with contextlib.closing(Ledger(tmp_path / "out", settings.sha256())) as ledger:
        Followed(Listed([trial]), ledger, tmp_path, {0: trial}, lambda *said: None).on_trial_error(0, [], lost)
        assert ledger.of("end")[0]["status"] == "failed"
    found = summary_of(tmp_path / trial.folder)
    assert (found["error"], found["config_sha256"]) == ("its driver was lost 4 times", config.sha256())
