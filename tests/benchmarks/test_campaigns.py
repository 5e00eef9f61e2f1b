"""Short versions of the campaigns, and their arithmetic by hand."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
from small_runs import GRID, tiny

from benchmarks import audit, processes, small, soak, sweep_storm


@pytest.fixture
def data(prepared_folder) -> dict:
    return {"dataset": "mnms", "root": str(prepared_folder), "fractions": [0.5, 0.125, 0.125, 0.25], **GRID}


def campaign(name: str, tmp_path: Path, data: dict, *words: str) -> dict:
    """What `python -m benchmarks.NAME` writes; it has ended with 0."""
    output = tmp_path / f"{name}.json"
    command = [sys.executable, "-m", f"benchmarks.{name}", *words, "--data", json.dumps(data), "--output", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=800, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return json.loads(output.read_text())


@pytest.mark.slow
def test_killed_while_checkpoints_are_written(tmp_path, data):
    found = campaign("storm", tmp_path, data, "--kills", "0", "--torn", "3")["checkpoints"]
    assert found["kills"] == 3 and found["same"] and found["inside_the_write"] >= 1


@pytest.mark.ray
@pytest.mark.slow
def test_a_small_storm_on_three_nodes(tmp_path, data):
    found = campaign("storm", tmp_path, data, "--kills", "1", "--torn", "0", "--kinds", "personalised")["cluster"]
    assert found["same"] and found["kills"] == 1 and [run["victim"] for run in found["runs"]] == ["client"]


@pytest.mark.ray
@pytest.mark.slow
def test_a_sweep_that_is_killed_goes_on(tmp_path, data):
    """With ASHA: decisions are kept, and every trial is its plain run. (A grid through a preemption: `make recipes`; on two nodes: `test_two_nodes`.)"""
    found = campaign("sweep_storm", tmp_path, data, "--search", "asha", "--kills", "1", "--no-undisturbed", "--no-cluster")
    (sweep,) = found["sweeps"]
    assert found["same"] and len(sweep["kills"]) == 1 and sweep["counts"]["failed"] == sweep["counts"]["unfinished"] == 0
    assert sweep["counts"]["pruned"] > 0


def test_a_trial_that_is_not_its_plain_run_is_named(tmp_path, data):
    config = small.config("stateless", 1, data)
    summary = small.run_here(config, tmp_path / "trials" / "000")
    row = {"number": 0, "folder": "trials/000", "status": "finished", "rounds": 1, "objective": None, "test": 0.5}
    row |= {"adapter_sha256": summary["adapter_sha256"] | {"global": "0"}, "test": summary["final"]["balanced_accuracy"]["mean"]}
    said = sweep_storm.differences({"trials": [row]}, tmp_path)
    assert [text.split()[2] for text in said] == ["objective", "adapter_sha256"]


@pytest.mark.ray
@pytest.mark.slow
def test_a_small_soak(tmp_path, data):
    found = campaign("soak", tmp_path, data, "--rounds", "60", "--kills", "1", "--seed", "27")  # of the driver, in its sixth round
    assert found["same"] and found["kills"] == {"client": 0, "driver": 1} and found["resumed"] == 1 and found["files"]["most"] < 60


def test_growth_of_memory_is_that_of_one_process_once_it_has_settled():
    def growth(*looks, kinds):
        return soak.growth(SimpleNamespace(seen=[{"round": t, "memory": memory} for t, memory in looks], kinds=kinds))

    kinds = {1: "driver", 2: "client"}
    flat = growth(*((t, {1: 100.0 if t >= 50 else t + 1.0, 2: 200.0}) for t in range(0, 1000, 10)), kinds=kinds)
    assert flat == {
        "client": {"processes": 1, "most_mib": 200.0, "mib_in_1000_rounds": 0.0},
        "driver": {"processes": 1, "most_mib": 100.0, "mib_in_1000_rounds": 0.0},
        "flat": True,
    }
    leaking = growth(*((t, {1: 100.0 + t / 50, 2: 200.0}) for t in range(0, 1000, 10)), kinds=kinds)
    assert not leaking["flat"] and leaking["driver"]["mib_in_1000_rounds"] == pytest.approx(20)
    replaced = growth(*((t, {t // 300: 100.0 + t % 300}) for t in range(0, 900, 10)), kinds=dict.fromkeys(range(3), "client"))
    assert not replaced["flat"] and replaced["client"]["mib_in_1000_rounds"] == pytest.approx(1000), "a new process does not hide it"
    brief = growth((0, {1: 1.0}), (10, {1: 9.0}), kinds={1: "driver"})
    assert brief["flat"] and brief["driver"]["mib_in_1000_rounds"] is None


def test_memory_that_is_held_is_not_that_of_open_files(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(64 << 20))
    mapped = np.memmap(path, np.uint8, "r")
    before, everything = processes.held(os.getpid()), processes.pss(os.getpid())
    assert mapped.sum() == 0  # reads every page of it
    assert processes.held(os.getpid()) - before < 16 << 20 and processes.pss(os.getpid()) - everything > 48 << 20
    own = np.ones(64 << 20, np.uint8)
    assert processes.held(os.getpid()) - before > 48 << 20 and own.all()


# ---- the audit


def test_attacks_are_measured_as_they_are_defined():
    draw = np.random.default_rng(0)
    found = audit.measured(np.arange(100.0, 200), np.arange(0.0, 100), draw)
    assert (found["auc"], found["ci95"], found["tpr_at_1_percent_fpr"]) == (1.0, [1.0, 1.0], 1.0)
    same = np.arange(200.0)
    found = audit.measured(same, same, draw)
    assert found["auc"] == 0.5 and found["tpr_at_1_percent_fpr"] == 2 / 200, "of 200 others two lie above the threshold, and two members"
    assert audit.measured(np.zeros(50), np.zeros(60), draw) | {"ci95": 0} == {
        "auc": 0.5, "ci95": 0, "tpr_at_1_percent_fpr": 0.0, "members": 50, "others": 60
    }  # fmt: skip


def test_losses_are_those_of_the_models_that_were_sent(tmp_path, prepared_folder):
    config = tiny(prepared_folder, "disease")
    plan, uploads, shared, _ = audit.federation(config, tmp_path / "run")
    assert set(uploads) == set(plan.homes)
    found = audit.losses(plan, {"shared": (shared, plan.homes), "of GE": (uploads["GE"], ("GE",))})
    (ge,) = [site for site in plan.spec.sites if site.id == "GE"]
    assert set(found["of GE"]) == {*ge.training, *ge.test}
    rows = pq.read_table(tmp_path / "run" / "cases.parquet").to_pylist()
    chosen = {(r["patient"], r["metric"]): r["value"] for r in rows if r["split"] == "test" and r["model_of"] == "global"}
    for patient in ge.test:
        p, label = chosen[patient, "probability"], chosen[patient, "label"]
        assert found["shared"][patient] == pytest.approx(-np.log(p if label else 1 - p), rel=1e-6)
