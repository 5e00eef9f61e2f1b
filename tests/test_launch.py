"""A run as the command starts it, with the driver in this process instead of Ray: folders, MLflow, the report, and every kind of end."""

import contextlib
import json
import os
import shutil
import signal
import sqlite3
import threading

import pyarrow.parquet as pq
import pytest
import yaml
from mlflow import MlflowClient
from small_runs import settings, tiny

from raylora import cli, experiment, launch, run_folder
from raylora import config as configuration
from raylora.cluster import driver, resources, session
from raylora.core.errors import InputError, MachineError, RunError
from raylora.federation.build import build_host
from raylora.federation.executor import InProcess
from raylora.report import html
from raylora.tracking import mlflow as tracking
from raylora.tracking import store, writer


@pytest.fixture
def no_ray(request, monkeypatch):
    """Drive in this process. `stop` is called with every event and may raise."""
    hooks = {"stop": lambda event: None}

    def drive(plan, out, *, address, resume, request):
        for event in experiment.run_experiment(plan, out, lambda p: InProcess(build_host(p.spec, p.weights)), resume=resume):
            hooks["stop"](event)
            yield event

    monkeypatch.setattr(driver, "run", drive)
    monkeypatch.setattr(session, "opened", lambda address, **options: contextlib.nullcontext())
    monkeypatch.setattr(resources, "request_of", lambda plan, has, resume: None)
    monkeypatch.setattr(session, "available", lambda: None)
    if "to_its_page" not in request.node.name:  # a page takes seconds
        monkeypatch.setattr(html, "write_report", lambda folder: (folder / "report.html").write_text("page"))
    before = signal.getsignal(signal.SIGTERM)
    yield hooks
    signal.signal(signal.SIGTERM, before)


def after(rounds: int, error: BaseException):
    """Raise once so many rounds have been told."""
    told = []

    def stop(event):
        told.extend([1] if event["event"] == "round" else [])
        if len(told) >= rounds:
            raise error

    return stop


@pytest.mark.slow
def test_a_run_from_the_command_line_to_its_page(no_ray, prepared_folder, tmp_path, monkeypatch, capsys, runs, mlflow_uri):
    monkeypatch.chdir(tmp_path)
    values = {**settings(prepared_folder, "disease"), "tracking": {}}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(values))
    assert cli.guarded(lambda: cli.app(["run", "c.yaml", "--json"], standalone_mode=False)) == 0
    out, err = capsys.readouterr()
    summary = json.loads(out.splitlines()[-1], parse_constant=pytest.fail)
    assert summary["adapter_sha256"] == runs("disease").hashes and "Traceback" not in err and "round 2/2" in err
    folder = tmp_path / "runs" / "tiny"
    assert json.loads((folder / "summary.json").read_text()) == summary and (folder / "report.html").stat().st_size > 1000
    assert "runs/tiny" in out, "a line says where everything is"
    assert summary["mlflow"]["tracking_uri"] == mlflow_uri
    run = MlflowClient(tracking_uri=summary["mlflow"]["tracking_uri"]).get_run(summary["mlflow"]["run_id"])
    assert run.info.status == "FINISHED" and run.data.params["training.lr"] == "0.02"
    assert cli.guarded(lambda: cli.app(["resume", str(folder)], standalone_mode=False)) == 2
    assert "this run is finished" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_that_lacks_its_page_alone_is_brought_into_mlflow_with_it(no_ray, prepared_folder, tmp_path, monkeypatch, mlflow_uri):
    """Interrupted between its summary and its page, it stands as killed there."""
    folder = tmp_path / "run"
    with monkeypatch.context() as ended:
        ended.setattr(html, "write_report", lambda folder: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            launch.run(tiny(prepared_folder, "disease", tracking={"uri": mlflow_uri}), folder)
    client, found = MlflowClient(tracking_uri=mlflow_uri), json.loads((folder / "summary.json").read_text())["mlflow"]["run_id"]
    assert client.get_run(found).info.status == "KILLED"
    launch.resume(folder)
    assert client.get_run(found).info.status == "FINISHED" and (folder / "report.html").exists()
    (folder / "report.html").unlink()
    told = []
    monkeypatch.setattr(launch, "upload", lambda folder: (_ for _ in ()).throw(RunError("nobody answers")))
    launch.resume(folder, on_event=told.append)
    assert told[-1]["text"] == f"nobody answers; `raylora upload {folder}` brings the record later"


def test_what_stops_a_run_leaves_the_last_complete_round_and_resume_goes_on(no_ray, prepared_folder, tmp_path, runs):
    config = tiny(prepared_folder, "disease", training__rounds=3)
    for error in (RunError("a client was lost"), KeyboardInterrupt()):
        folder = tmp_path / type(error).__name__
        no_ray["stop"] = after(2, error)
        with pytest.raises(type(error)):
            launch.run(config, folder)
        assert not (folder / "summary.json").exists() and (folder / "checkpoints" / "round_0002").is_dir()
        no_ray["stop"] = lambda event: None
        summary = launch.resume(folder)
        assert summary["adapter_sha256"] == runs("disease", training__rounds=3).hashes and (folder / "report.html").exists()


@pytest.mark.slow
def test_what_mlflow_missed_before_an_interruption_is_told_when_the_run_goes_on(no_ray, prepared_folder, tmp_path, monkeypatch, mlflow_uri):
    """The server is away for the first two rounds; the process that has them in memory ends, another one goes on."""
    monkeypatch.setattr(writer, "QUIET_S", 0.1)
    folder = tmp_path / "run"
    config = tiny(prepared_folder, "disease", training__rounds=3, tracking={"uri": mlflow_uri, "client_runs": 2})
    with monkeypatch.context() as away:
        away.setattr(writer, "WAIT_S", 0.1)
        away.setattr(writer, "Store", lambda *_: exec("raise ConnectionError('away')"))
        no_ray["stop"] = after(2, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            launch.run(config, folder)
        for writing in [thread for thread in threading.enumerate() if thread.name == "mlflow"]:
            writing.join()
    no_ray["stop"] = lambda event: None
    summary = launch.resume(folder)
    lines = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
    client = MlflowClient(tracking_uri=mlflow_uri)
    found = [point.step for point in client.get_metric_history(summary["mlflow"]["run_id"], "seconds")]
    assert found == [line["round"] for line in lines if line["kind"] == "round"] == [0, 1, 2]
    table = pq.read_table(client.download_artifacts(summary["mlflow"]["run_id"], "clients.parquet", str(tmp_path)))
    told = [(line["round"], line["client"]) for line in lines if line["kind"] == "client"]
    assert len(told) == 12 and list(zip(table["round"].to_pylist(), table["client"].to_pylist(), strict=True)) == told
    assert launch.upload(folder).there


@pytest.mark.usefixtures("no_ray")
def test_ray_starts_beside_the_planning_unless_the_plan_is_made_here(prepared_folder, tmp_path, monkeypatch):
    """In order; and Ray is stopped where the planner finds something wrong."""
    said = []

    @contextlib.contextmanager
    def opened(address):
        said.append("Ray")
        try:
            yield
        finally:
            said.append("end of Ray")

    class Elsewhere(launch.Planner):
        def __init__(self):
            said.append("planner")

        def ask(self, config, say):
            said.append("asked")

        def result(self, say):
            said.append("waited for")
            raise InputError("wrong")

        def close(self):
            said.append("end of planner")

    monkeypatch.setattr(session, "opened", opened)
    with pytest.raises(InputError, match="lora.rank"):  # torch is loaded here
        launch.run(tiny(prepared_folder, lora__rank=4000), tmp_path / "here")
    assert said == []
    monkeypatch.setattr(launch, "Planner", Elsewhere)
    with pytest.raises(InputError, match="wrong"):
        launch.run(tiny(prepared_folder), tmp_path / "out")
    assert said == ["planner", "asked", "Ray", "waited for", "end of Ray", "end of planner"]
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("no_ray")
def test_what_is_wrong_with_the_input_is_said_before_what_is_wrong_with_ray(prepared_folder, tmp_path, monkeypatch):
    class Elsewhere(launch.Planner):
        def ask(self, config, say):
            pass

        def result(self, say):
            raise InputError("wrong")

    def opened(address):
        raise RunError("Ray does not start")

    monkeypatch.setattr(session, "opened", opened)
    with pytest.raises(RunError, match="Ray does not start"):
        launch.run(tiny(prepared_folder), tmp_path / "out")
    monkeypatch.setattr(launch, "Planner", Elsewhere)
    with pytest.raises(InputError, match="wrong"):
        launch.run(tiny(prepared_folder), tmp_path / "out")


@pytest.mark.usefixtures("no_ray")
def test_on_a_cluster_nothing_is_prepared_for_a_model_that_there_is_not(prepared_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(launch.obtain, "prepared", None)
    with pytest.raises(InputError, match="lora.rank: expected at most"):
        launch.run(tiny(prepared_folder, lora__rank=4000), tmp_path / "out", address="127.0.0.1:1")


@pytest.mark.usefixtures("no_ray")
def test_a_study_that_is_not_whole_is_found_before_anything_is_there(prepared_folder, tmp_path, monkeypatch):
    copy = tmp_path / "prepared"
    shutil.copytree(prepared_folder, copy)
    shard = sorted((copy / "studies").glob("*.arrow"))[3]
    monkeypatch.setattr(driver, "run", None)
    for harm in (lambda: os.truncate(shard, 100), shard.unlink):
        harm()
        with pytest.raises(InputError, match=f"{shard.name}: expected .* bytes, found .*: prepare again"):
            launch.run(tiny(copy), tmp_path / "out")
        assert not (tmp_path / "out").exists()
    assert launch.plan(tiny(copy))["rounds"], "a plan needs the manifest alone"


def test_weights_keep_the_name_of_a_link_to_them(tmp_path):
    """A hub's cache holds blobs with links to them: what weights have seen goes by the published name."""
    (tmp_path / "blob").touch()
    (tmp_path / "acdc_sax_0.safetensors").symlink_to(tmp_path / "blob")
    config = configuration.from_dict({"model": {"name": "cinema", "weights": "./acdc_sax_0.safetensors", "weights_folder": str(tmp_path)}})
    assert launch.absolute(config, tmp_path).model.weights == str(tmp_path / "acdc_sax_0.safetensors")


@pytest.mark.parametrize("exists", [False, True])
def test_bad_input_found_late_leaves_nothing(no_ray, prepared_folder, tmp_path, exists):
    out = tmp_path / "deep" / "out"
    if exists:
        out.mkdir(parents=True)
    no_ray["stop"] = after(0, InputError("found by the driver"))
    with pytest.raises(InputError, match="found by the driver"):
        launch.run(tiny(prepared_folder, "disease"), out)
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == (["deep", "deep/out"] if exists else [])


def test_it_leaves_the_run_that_began_beside_it_meanwhile(no_ray, prepared_folder, tmp_path):
    other = tmp_path / "deep" / "other"

    def stop(event):
        run_folder.claim(other, "seed: 1")
        raise InputError("found by the driver")

    no_ray["stop"] = stop
    with pytest.raises(InputError, match="found by the driver"):
        launch.run(tiny(prepared_folder, "disease"), tmp_path / "deep" / "out")
    assert list(tmp_path.rglob("*.yaml")) == [other / "config.yaml"] and not (tmp_path / "deep" / "out").exists()


def test_it_leaves_the_rounds_that_are_done(no_ray, prepared_folder, tmp_path, runs):
    """A study that cannot be read any more is bad input as well, and may be opened for the first time after hours."""
    no_ray["stop"] = after(2, InputError("x.arrow: damaged"))
    with pytest.raises(
        MachineError, match=rf"^x.arrow: damaged; `raylora resume {tmp_path / 'out'}` goes on after the last complete round$"
    ):
        launch.run(tiny(prepared_folder, "disease"), tmp_path / "out")
    no_ray["stop"] = lambda event: None
    assert launch.resume(tmp_path / "out")["adapter_sha256"] == runs("disease").hashes


@pytest.mark.parametrize("broken", ["unreachable", "locked"])
def test_tracking_that_fails_is_a_note_and_the_record_is_brought_later(no_ray, prepared_folder, tmp_path, monkeypatch, runs, broken):
    monkeypatch.setattr(writer, "QUIET_S", 0.5)
    monkeypatch.setattr(writer, "WAIT_S", 2.0)
    monkeypatch.setattr(store, "LOCKED_S", 0.2)
    uri, other = "sqlite:////proc/x.db", None
    if broken == "locked":
        uri = f"sqlite:///{tmp_path / 'locked.db'}"
        other = sqlite3.connect(tmp_path / "locked.db", isolation_level=None)
        other.execute("CREATE TABLE mine (a)")
        other.execute("BEGIN EXCLUSIVE")
    events = []
    config = tiny(prepared_folder, "disease", tracking={"uri": uri})
    summary = launch.run(config, tmp_path / "run", on_event=events.append)
    assert summary["adapter_sha256"] == runs("disease").hashes and summary["mlflow"] is None
    (note,) = [event["text"] for event in events if event["event"] == "note" and "upload" in event["text"]]
    assert note.startswith(f"MLflow at {uri}: ") and f"; `raylora upload {tmp_path / 'run'}` brings the record later" in note
    for writing in [thread for thread in threading.enumerate() if thread.name == "mlflow"]:
        writing.join()  # in a process that goes on the writer tries for a while
    if other is not None:
        assert "locked" in note
        other.execute("ROLLBACK")
        other.close()
        return
    seen = []
    monkeypatch.setattr(tracking, "upload", lambda run, uri, *rest: seen.append((run.folder, uri)) or "abc")
    assert launch.upload(tmp_path / "run", "sqlite:///later.db") == "abc" and seen[0][0] == tmp_path / "run"


@pytest.mark.parametrize(("error", "status"), [(RunError("x"), "FAILED"), (KeyboardInterrupt(), "KILLED")])
def test_mlflow_is_told_how_a_run_ended(no_ray, prepared_folder, tmp_path, monkeypatch, error, status):
    told = {}

    class Store:
        def __init__(self, *_):
            pass

        def write(self, node, worked):
            node.id, told[node.name] = node.id or node.name, node.ended

    monkeypatch.setattr(writer, "Store", Store)
    no_ray["stop"] = after(1, error)
    with pytest.raises(type(error)):
        launch.run(tiny(prepared_folder, "disease", name=status, tracking={"uri": "sqlite:///x.db"}), tmp_path / "run")
    assert told[status][0] == status


def test_a_folder_has_one_writer(no_ray, prepared_folder, tmp_path):
    """While a run is under way its folder is nobody else's; who has it is said."""
    refused = []

    def stop(event):
        if event["event"] == "round":
            for begin in (lambda: launch.resume(tmp_path / "run"), lambda: launch.run(config, tmp_path / "run")):
                with pytest.raises(InputError) as caught:
                    begin()
                refused.append(str(caught.value))

    no_ray["stop"] = stop
    config = tiny(prepared_folder, "disease", training__rounds=1)
    launch.run(config, tmp_path / "run")
    assert refused[0] == f"{tmp_path / 'run'}: a run is under way in this folder (process {os.getpid()})"
    assert "already holds a run" in refused[1]


def test_a_folder_that_is_no_run_is_not_resumed(no_ray, tmp_path, prepared_folder):
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "ledger.jsonl").touch()
    with pytest.raises(InputError, match="sweep: a sweep or a campaign, not a run: the command that began it"):
        launch.resume(tmp_path / "sweep")
    with pytest.raises(InputError, match="no run to resume"):
        launch.resume(tmp_path)
    no_ray["stop"] = after(1, RunError("x"))
    with pytest.raises(RunError):
        launch.run(tiny(prepared_folder, "disease"), tmp_path / "run")
    for torn in (b'{"a":', b"[1]", b"\x80\xff"):
        (tmp_path / "run" / "summary.json").write_bytes(torn)
        for begin in (launch.resume, launch.upload):
            with pytest.raises(InputError, match=r"summary.json: (not JSON|expected one JSON object)"):
                begin(tmp_path / "run")
    (tmp_path / "run" / "summary.json").unlink()
    (tmp_path / "run" / "config.yaml").write_text("nmae: x")
    with pytest.raises(InputError, match="unknown key 'nmae'"):
        launch.resume(tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints")


def test_a_trial_is_gone_on_with_by_its_sweep(no_ray, prepared_folder, tmp_path):
    """A second writer, or a pruned trial that goes on to the test patients, would not be what the ledger says."""
    trial = tmp_path / "sweep" / "trials" / "000"
    no_ray["stop"] = after(1, RunError("x"))
    with pytest.raises(RunError):
        launch.run(tiny(prepared_folder, "disease"), trial)
    (tmp_path / "sweep" / "ledger.jsonl").write_text("")
    with pytest.raises(InputError, match=r"000: a trial of .*sweep, whose ledger says where it ends: call the sweep's command again"):
        launch.resume(trial)


def test_a_record_whose_last_line_was_torn_is_brought_too(runs, tmp_path):
    whole = runs("disease")
    shutil.copytree(whole.folder, tmp_path / "run")
    with (tmp_path / "run" / "rounds.jsonl").open("a") as file:
        file.write('{"kind": "rou')
    assert launch._ended(tmp_path / "run", "raylora run")[1].rounds == whole.lines
