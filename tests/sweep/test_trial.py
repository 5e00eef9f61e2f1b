"""A trial in this process: it stands still after each report, ends where it is told to, and goes on where it was left."""

import json

import pyarrow.parquet as pq
import pytest
from small_runs import InProcess, build_host, run, tiny

from raylora import config as configuration
from raylora import experiment, planning
from raylora.core.errors import MachineError, RunError
from raylora.federation import checkpoint
from raylora.sweep.trial import RunningTrial


def in_process(plan):
    return InProcess(build_host(plan.spec, plan.weights))


def begun(config, folder, **options):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(configuration.dump(config))
    return RunningTrial(planning.make_plan(config), folder, "dice", in_process, **options)


def summary(folder):
    return json.loads((folder / "summary.json").read_text())


def rounds_done(folder):
    return checkpoint.latest(folder / "checkpoints")[0][0].round


def test_it_reports_validated_rounds_and_ends_like_a_plain_run(prepared_folder, tmp_path):
    config = tiny(prepared_folder, training__rounds=4, evaluation__every=2)
    trial = begun(config, tmp_path / "trial")
    first, last = trial.advance(), trial.advance()
    assert (first.round, first.status, last.round, last.status) == (2, "running", 4, "finished")
    assert [line["round"] for line in first.lines if line["kind"] == "round"] == [0, 1]
    plain = run(config, tmp_path / "plain")
    assert summary(tmp_path / "trial")["adapter_sha256"] == plain.hashes
    assert last.objective == plain.lines[-1]["validation"]["dice"]


@pytest.mark.parametrize("error", [MachineError("no answer for 1 s"), FileNotFoundError(2, "No such file or directory", "/x/mine.csv")])
def test_what_would_go_wrong_again_has_failed(prepared_folder, tmp_path, monkeypatch, error):
    trial = begun(tiny(prepared_folder, training__rounds=3), tmp_path / "trial")
    monkeypatch.setattr(experiment.checkpoint, "save", lambda *_: (_ for _ in ()).throw(error))
    assert trial.advance().status == "failed" and summary(tmp_path / "trial")["status"] == "failed"


def test_what_a_full_disk_stops_can_go_on(prepared_folder, tmp_path, monkeypatch):
    config = tiny(prepared_folder, training__rounds=3)
    trial = begun(config, tmp_path / "trial")
    trial.advance()
    with monkeypatch.context() as broken:
        full = OSError(28, "No space left on device", "/x/state.json")
        broken.setattr(experiment.checkpoint, "save", lambda *_: (_ for _ in ()).throw(full))
        stopped = trial.advance()
    assert (stopped.status, stopped.error) == ("stopped", "/x/state.json: No space left on device") and not (
        tmp_path / "trial" / "summary.json"
    ).exists()
    again = begun(config, tmp_path / "trial")
    while (last := again.advance()).status == "running":
        pass
    assert last.status == "finished" and summary(tmp_path / "trial")["adapter_sha256"] == run(config, tmp_path / "plain").hashes


@pytest.mark.parametrize("strategy", ["fedit", "flora", "med_duallora"])
def test_pruned_it_holds_what_a_plain_run_stopped_there_holds(prepared_folder, tmp_path, strategy):
    """The other way to the same adapters: a run of which the process ends after round 2, and its checkpoint."""
    config = tiny(prepared_folder, strategy__name=strategy, training__rounds=4)
    trial = begun(config, tmp_path / "trial")
    trial.advance()
    trial.advance()
    trial.prune()
    found = summary(tmp_path / "trial")
    assert (found["status"], found["stopped_after"]) == ("pruned", 2)
    assert "final" not in found and "cross_client" not in found
    rows = pq.read_table(tmp_path / "trial" / "cases.parquet").to_pylist()
    assert {(row["split"], row["round"]) for row in rows} == {("validation", 0), ("validation", 1)}

    stopped = tmp_path / "stopped"
    stopped.mkdir()
    events = experiment.run_experiment(planning.make_plan(config), stopped, in_process)
    for event in events:
        if event["event"] == "round" and event["round"] == 1:
            events.close()
    assert not (stopped / "summary.json").exists()
    assert rounds_done(stopped) == 2
    again = begun(config, stopped, until=2)  # what is left to do is to write what the checkpoint holds
    assert again.advance().status == "pruned"
    assert summary(stopped)["adapter_sha256"] == found["adapter_sha256"]


def test_a_decision_that_was_recorded_is_kept_whatever_was_done_by_then(prepared_folder, tmp_path):
    config = tiny(prepared_folder, training__rounds=4)
    whole = begun(config, tmp_path / "anew", until=3)
    assert whole.advance().round == 1
    assert whole.advance().round == 2
    assert (whole.advance().status, summary(tmp_path / "anew")["stopped_after"]) == ("pruned", 3)


def test_it_goes_on_after_its_last_round(prepared_folder, tmp_path):
    config = tiny(prepared_folder, training__rounds=4)
    trial = begun(config, tmp_path / "trial")
    second = [trial.advance(), trial.advance()][-1]
    trial.close()
    again = begun(config, tmp_path / "trial")
    repeated = again.advance()  # the report may have been lost with the process: it comes again
    assert (repeated.round, repeated.objective) == (2, second.objective)
    assert again.advance().round == 3
    assert again.advance().status == "finished"
    assert summary(tmp_path / "trial")["adapter_sha256"] == run(config, tmp_path / "plain").hashes


def test_what_goes_wrong_is_a_report(prepared_folder, tmp_path, monkeypatch):
    config = tiny(prepared_folder, training__rounds=2)

    def lost(plan):
        raise RunError("round 0, client GE: broke")

    (tmp_path / "trial").mkdir()
    trial = RunningTrial(planning.make_plan(config), tmp_path / "trial", "dice", lost)
    report = trial.advance()
    assert (report.status, report.error) == ("failed", "round 0, client GE: broke")
    assert summary(tmp_path / "trial")["status"] == "failed"

    def unforeseen(plan):
        raise KeyError("x")

    (tmp_path / "other").mkdir()
    assert RunningTrial(planning.make_plan(config), tmp_path / "other", "dice", unforeseen).advance().error == "KeyError: 'x'"
