"""A sweep in MLflow: parent, trials and clients as nested runs; what is read back is what was told, however often the sweep was broken off."""

import json
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from mlflow import MlflowClient
from small_runs import InProcess, build_host, settings

from benchmarks.tracking import measure, read_back, trial, write_folder
from raylora import launch, launch_sweep, planning
from raylora.core.errors import InputError
from raylora.sweep import space
from raylora.sweep.ledger import Ledger
from raylora.sweep.trial import RunningTrial
from raylora.tracking import writer
from raylora.tracking.mlflow import SweepTracker

pytestmark = pytest.mark.slow
CLIENTS, ROUNDS = 3, 2


def all_runs(uri: str) -> list:
    client = MlflowClient(tracking_uri=uri)
    return client.search_runs([e.experiment_id for e in client.search_experiments()])


def tell(tracker: SweepTracker, root: Path, number: int, rounds: range = range(ROUNDS), end: str = "finished") -> tuple[dict, dict]:
    """A trial's rounds and its end: finished, a status, or none. Returns its configuration and summary."""
    config, lines, summary = trial(number, CLIENTS, ROUNDS)
    folder = root / "trials" / f"{number:03d}"
    if not folder.exists():
        write_folder(folder, config, lines, summary)
    tracker.trial(number, folder.name, config, {"strategy": "fedit", "rank": str(config["lora"]["rank"])})
    for t in rounds:
        tracker.rounds(number, [line for line in lines if line["round"] == t])
    if end == "finished":
        tracker.finish(number, folder, summary)
    elif end:
        tracker.fail(number, end, summary)
    return config, summary


def test_a_short_rehearsal_of_a_thousand_trials(empty_database, tmp_path):
    longest = []
    while len(longest) < 4 and min(longest, default=1.0) >= 0.5:  # a machine may stand still for so long
        folder = tmp_path / str(len(longest))
        folder.mkdir()
        shutil.copy(empty_database, folder / "mlflow.db")
        found = measure(folder, trials=6, clients=CLIENTS, rounds=ROUNDS)
        assert found["differing"] == [] and found["missing"] is None and found["runs"] == 1 + 6 * (1 + CLIENTS)
        longest.append(found["longest_call_seconds"])
    assert min(longest) < 0.5


def test_a_sweep_that_is_gone_on_with_logs_nothing_twice(mlflow_uri, tmp_path):
    folder = tmp_path / "sweep"
    first = SweepTracker(mlflow_uri, "hearts", "ranks", {"rank": "grid"}, {"kind": "sweep"}, 16)
    told = {0: tell(first, folder, 0)}
    tell(first, folder, 1, range(1), "KILLED")
    tell(first, folder, 2, range(1), "PRUNED")
    first.end("KILLED")
    assert first.close() is None
    parent, known = first.ids()
    assert parent and known.keys() == {0, 1, 2}
    again = SweepTracker(mlflow_uri, "hearts", "ranks", {"rank": "grid"}, {"kind": "sweep"}, 16, known=known, parent=parent)
    assert again.ids() == (parent, known)
    told |= {1: tell(again, folder, 1), 3: tell(again, folder, 3)}  # the first round of trial 1 is told again
    (folder / "sweep.json").write_text(json.dumps({"name": "ranks"}))
    again.end("FINISHED", folder)
    assert again.close() is None
    runs = {run.info.run_id: run for run in all_runs(mlflow_uri)}
    assert len(runs) == 1 + 4 * (1 + CLIENTS)
    _, ids = again.ids()
    pruned = runs.pop(ids[2])
    assert (pruned.info.status, pruned.data.tags["pruned"], pruned.data.tags["trial"]) == ("KILLED", "true", "2")
    client = MlflowClient(tracking_uri=mlflow_uri)
    for run in [run for run in runs.values() if run.data.tags.get("mlflow.parentRunId") == ids[2]]:
        client.delete_run(run.info.run_id)
    client.delete_run(ids[2])
    assert read_back(mlflow_uri, parent, ids, told, CLIENTS)[0] == []
    for run in (runs[ids[1]], *(r for r in runs.values() if r.data.tags.get("mlflow.parentRunId") == ids[1])):
        steps = [point.step for point in client.get_metric_history(run.info.run_id, "seconds")]
        assert steps == [0, 1] and run.info.status == "FINISHED"
    assert runs[parent].info.status == "FINISHED" and runs[parent].data.params == {"rank": "grid"}
    assert [item.path for item in client.list_artifacts(parent)] == ["sweep.json"]


class Told:
    """A sweep of one trial on the tiny cohort, told to MLflow as `raylora sweep` tells it; each of these is another process."""

    def __init__(self, out: Path, base: dict) -> None:
        self.out = out
        self.settings = space.Sweep(name="ranks", base=base, space={"lora.rank": {"grid": [1]}})
        (self.trial,) = space.trials(self.settings)
        self.config = self.settings.config(self.trial.values, self.trial.seed, self.trial.number)
        self.plan = planning.make_plan(self.config)
        self.folder = out / "trials" / self.trial.folder
        self.ledger = Ledger(out, self.settings.sha256())
        self.following = launch_sweep.Following(self.settings, self.ledger, self, self.config.tracking)
        self.following.told("started", self.trial, {}, self.folder)
        self.driver()

    def __call__(self, trial):
        return self.plan, None

    def driver(self) -> None:
        self.running = RunningTrial(self.plan, self.folder, "likelihood", lambda p: InProcess(build_host(p.spec, p.weights)))

    def advance(self) -> str:
        """One report of the trial, which Tune passes on, the last one twice."""
        report = self.running.advance()
        if report.status == "running":
            self.ledger.append({"kind": "report", "number": 0, "round": report.round, "objective": report.objective})
        for what in ("report", report.status)[: 1 + (report.status != "running")]:
            self.following.told(what, self.trial, vars(report), self.folder)
        return report.status

    def end(self, status: str) -> None:
        self.running.close()
        self.following.end(status, self.out)
        for writing in [thread for thread in threading.enumerate() if thread.name == "mlflow"]:
            writing.join()
        self.ledger.close()


def test_rounds_that_mlflow_missed_before_an_interruption_come_when_the_trial_goes_on(prepared_folder, tmp_path, mlflow_uri, monkeypatch):
    """The server is away while two rounds are reported, and that process ends; the next one loses a driver on its way to the end."""
    monkeypatch.setattr(writer, "QUIET_S", 0.1)
    base = settings(prepared_folder, "disease", training__rounds=4, tracking={"uri": mlflow_uri, "client_runs": 2})
    with monkeypatch.context() as away:
        away.setattr(writer, "WAIT_S", 0.1)
        away.setattr(writer, "Store", lambda *_: exec("raise ConnectionError('away')"))
        first = Told(tmp_path / "out", base)
        assert [first.advance(), first.advance()] == ["running"] * 2
        first.end("KILLED")
    again = Told(tmp_path / "out", base)
    assert [again.advance(), again.advance()] == ["running"] * 2
    again.running.close()
    again.driver()
    while again.advance() == "running":
        pass
    again.end("FINISHED")
    lines = [json.loads(line) for line in (again.folder / "rounds.jsonl").read_text().splitlines()]
    client, (run_id,) = MlflowClient(tracking_uri=mlflow_uri), again.following.tracker.ids()[1].values()
    run = client.get_run(run_id)
    assert (run.info.status, run.data.tags["mlflow.source.name"]) == ("FINISHED", "raylora sweep")
    assert [point.step for point in client.get_metric_history(run_id, "seconds")] == [0, 1, 2, 3]
    table = pq.read_table(client.download_artifacts(run_id, "clients.parquet", str(tmp_path)))
    told = [(line["round"], line["client"]) for line in lines if line["kind"] == "client"]
    assert len(told) == 16 and list(zip(table["round"].to_pylist(), table["client"].to_pylist(), strict=True)) == told


@pytest.mark.parametrize("ids_kept", [True, False])
def test_trials_under_way_are_killed_with_their_sweep_and_opened_again_with_it(mlflow_uri, tmp_path, ids_kept):
    def begun(**known) -> SweepTracker:
        return SweepTracker(mlflow_uri, "hearts", "ranks", {"rank": "grid"}, {"raylora.key": "the sweep"}, 16, **known)

    def statuses() -> list[str]:
        return [run.info.status for run in all_runs(mlflow_uri)]

    first = begun()
    tell(first, tmp_path, 0)
    tell(first, tmp_path, 1, range(1), end="")
    first.end("KILLED")
    assert first.close() is None
    parent, known = first.ids()
    assert sorted(statuses()) == ["FINISHED"] * (1 + CLIENTS) + ["KILLED"] * (1 + 1 + CLIENTS)
    again = begun(parent=parent, known=known) if ids_kept else begun()
    tell(again, tmp_path, 1, range(2), end="")
    again._writer.wait(lambda: "KILLED" not in statuses())
    assert sorted(statuses()) == ["FINISHED"] * (1 + CLIENTS) + ["RUNNING"] * (1 + 1 + CLIENTS)
    _, summary = trial(1, CLIENTS, ROUNDS)[1:]
    again.finish(1, tmp_path / "trials" / "001", summary)
    again.end("FINISHED")
    assert again.close() is None and statuses() == ["FINISHED"] * (1 + 2 * (1 + CLIENTS))


def test_a_sweep_is_brought_later_and_only_once(mlflow_uri, tmp_path):
    """The server was there for the first trial only; the ids of the sweep stand in its `sweep.json`."""
    tracker = SweepTracker(mlflow_uri, "raylora", "ranks", {"rank": "grid"}, {}, 16)
    told = {0: tell(tracker, tmp_path, 0)}
    assert tracker.close() is None
    parent, ids = tracker.ids()
    for number in (1, 2):
        config, lines, summary = trial(number, CLIENTS, ROUNDS)
        write_folder(tmp_path / "trials" / f"{number:03d}", config, lines, summary)
        told[number] = config, summary
    pruned = tmp_path / "trials" / "002" / "summary.json"
    pruned.write_text(json.dumps({**json.loads(pruned.read_text()), "status": "pruned"}))
    with pytest.raises(InputError, match="no finished run"):
        launch.upload(tmp_path, mlflow_uri)
    (tmp_path / "sweep.json").write_text(
        json.dumps({"name": "ranks", "status": "stopped", "space": {"rank": "it's"}, "sha256": "it's", "mlflow": {"run_id": parent}})
    )
    done = launch.upload(tmp_path, mlflow_uri)
    assert (done.run_id, done.there, done.trials) == (parent, False, 2)
    before = {run.info.run_id: run for run in all_runs(mlflow_uri)}
    trials = {int(r.data.tags["trial"]): r for r in before.values() if r.data.tags.get("mlflow.parentRunId") == parent}
    assert trials.keys() == {0, 1, 2} and trials[0].info.run_id == ids[0] and len(before) == 1 + 3 * (1 + CLIENTS)
    assert {run.data.tags["mlflow.source.name"] for number, run in trials.items() if number} == {"raylora sweep"}
    assert trials[2].data.tags["pruned"] == "true" and {r.info.status for r in before.values()} == {"FINISHED", "KILLED"}
    assert trials[1].data.metrics["final/dice/mean"] == told[1][1]["final"]["dice"]["mean"]
    assert MlflowClient(tracking_uri=mlflow_uri).get_run(parent).data.params == {"rank": "grid", "space.rank": "it's"}
    assert launch.upload(tmp_path, mlflow_uri).there and {run.info.run_id for run in all_runs(mlflow_uri)} == before.keys()
    alone = launch.upload(tmp_path / "trials" / "001", mlflow_uri)
    assert alone.there and alone.run_id == trials[1].info.run_id


def test_two_sweeps_that_came_to_the_same_are_two(mlflow_uri, tmp_path):
    """The same file run into two folders: neither their tables nor the summaries of trials that failed alike hold a time."""
    for name in ("one", "other"):
        folder = tmp_path / name
        for number in (0, 1):
            config, lines, summary = trial(number, CLIENTS, ROUNDS)
            write_folder(folder / "trials" / f"{number:03d}", config, lines, summary)
        (folder / "ledger.jsonl").touch()
        (folder / "sweep.json").write_text(json.dumps({"name": "ranks", "status": "finished", "sha256": "same"}))
    one, other = (launch.upload(tmp_path / name, mlflow_uri) for name in ("one", "other"))
    assert one.run_id != other.run_id and (one.trials, other.trials) == (2, 2) and not other.there
    trials = [run for run in all_runs(mlflow_uri) if "trial" in run.data.tags]
    assert sorted(run.data.tags["mlflow.parentRunId"] for run in trials) == sorted([one.run_id, other.run_id] * 2)
    (tmp_path / "one").rename(tmp_path / "moved")  # and that is still the first
    assert launch.upload(tmp_path / "moved", mlflow_uri).run_id == one.run_id
    assert launch.upload(tmp_path / "other", mlflow_uri).there


def test_a_trial_that_ended_as_its_sweep_was_killed_is_brought_later(mlflow_uri, tmp_path):
    """The ledger had its end, MLflow never heard of it: the sweep went on, ended, and its own run says that all is there."""
    tracker = SweepTracker(mlflow_uri, "raylora", "ranks", {}, {}, 16)
    tell(tracker, tmp_path, 0)
    tell(tracker, tmp_path, 2, range(1), end="PRUNED")
    config, lines, summary = trial(1, CLIENTS, ROUNDS)
    write_folder(tmp_path / "trials" / "001", config, lines, summary)
    (tmp_path / "sweep.json").write_text(json.dumps({"status": "finished"}))
    tracker.end("FINISHED", tmp_path)
    assert tracker.close() is None
    done = launch.upload(tmp_path, mlflow_uri)
    assert (done.there, done.trials) == (False, 1)
    runs = all_runs(mlflow_uri)
    parent = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    assert [run.info.run_id for run in parent] == [done.run_id] and len(runs) == 1 + 2 * (1 + CLIENTS) + 1 + CLIENTS
    assert sorted(run.data.tags["trial"] for run in runs if run.data.tags.get("mlflow.parentRunId") == done.run_id) == ["0", "1", "2"]
    assert launch.upload(tmp_path, mlflow_uri).there


def test_what_the_server_refuses_stops_that_run_alone(mlflow_uri, tmp_path):
    """Somebody deletes a trial in MLflow while the sweep runs."""
    tracker = SweepTracker(mlflow_uri, "hearts", "ranks", {}, {}, 16)
    tell(tracker, tmp_path, 0, range(1), end="")
    tracker._writer.wait(lambda: 0 in tracker.ids()[1])
    MlflowClient(tracking_uri=mlflow_uri).delete_run(tracker.ids()[1][0])
    _, summary = tell(tracker, tmp_path, 1)
    tracker.fail(0, "FAILED", {})
    tracker.rounds(7, [])  # no such trial
    tracker.end("FINISHED", tmp_path)
    assert "MLflow at" in (tracker.close() or "")
    parent, ids = tracker.ids()
    last = MlflowClient(tracking_uri=mlflow_uri).get_run(ids[1])
    assert last.info.status == "FINISHED" and last.data.metrics["final/dice/mean"] == summary["final"]["dice"]["mean"]
    assert MlflowClient(tracking_uri=mlflow_uri).get_run(parent).info.status == "FINISHED"


EIGHT = """
import os, sys
from pathlib import Path
import mlflow, mlflow.store.tracking.sqlalchemy_store
from benchmarks.tracking import trial, write_folder
from raylora.tracking import writer
from raylora.tracking.mlflow import Tracker
writer.QUIET_S = 60
uri, root, count, rounds = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
children = []
for number in range(count):
    pid = os.fork()
    if pid == 0:
        config, lines, summary = trial(number, 1, rounds)
        write_folder(root / str(number), config, lines, summary)
        tracker = Tracker(uri, "hearts", f"p{number}", config, {"number": str(number)})
        for line in lines:
            tracker.rounds([line])
        tracker.finish(root / str(number), summary)
        missing = tracker.close()
        print(missing, flush=True)
        os._exit(missing is not None)
    children.append(pid)
sys.exit(sum(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children))
"""


def test_eight_processes_that_write_at_once_lose_no_row(mlflow_uri, tmp_path):
    rounds = 4
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", EIGHT, mlflow_uri, str(tmp_path), "8", str(rounds)],
        capture_output=True, text=True, timeout=240, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    client, runs = MlflowClient(tracking_uri=mlflow_uri), all_runs(mlflow_uri)
    assert len(runs) == 8 * 2 and {run.info.status for run in runs} == {"FINISHED"}
    rows = 0
    for number in range(8):
        _, lines, summary = trial(number, 1, rounds)
        (run,) = [r for r in runs if r.data.tags.get("number") == str(number)]
        mine = {r.data.tags["client"]: r for r in runs if r.data.tags.get("mlflow.parentRunId") == run.info.run_id}
        for name, each in {None: run, **mine}.items():
            told = [(line["round"], line["validation"]["dice"]) for line in lines if line.get("client") == name]
            found = [(point.step, point.value) for point in client.get_metric_history(each.info.run_id, "validation.dice")]
            assert sorted(found) == told
            rows += len(found)
        assert run.data.metrics["final/dice/mean"] == summary["final"]["dice"]["mean"]
    assert rows == 8 * 2 * rounds


def test_an_upload_of_a_sweep_without_trials_is_refused(tmp_path, mlflow_uri):
    (tmp_path / "sweep.json").write_text('{"status": "finished"}')
    with pytest.raises(InputError, match="expected a sweep with trials"):
        launch.upload(tmp_path, mlflow_uri)
    (tmp_path / "sweep.json").write_text(json.dumps({"status": "running"}))
    config, lines, summary = trial(0, CLIENTS, ROUNDS)
    write_folder(tmp_path / "trials" / "000", config, lines, summary)
    with pytest.raises(InputError, match="no finished sweep"):
        launch.upload(tmp_path, mlflow_uri)
