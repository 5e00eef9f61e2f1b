"""What a machine can do to a run besides killing it: a full disk, a folder that cannot be written, a tracking server that goes away."""

import contextlib
import ctypes
import http.server
import json
import multiprocessing
import os
import resource
import shutil
import tempfile
import threading
from pathlib import Path

import pytest
from needed import absent
from small_runs import tiny

from raylora import cli, experiment, launch, run_folder
from raylora import config as configuration
from raylora.cluster import driver, resources, session
from raylora.core.errors import InputError, MachineError, RunError
from raylora.core.files import write_text
from raylora.federation.build import build_host
from raylora.federation.executor import InProcess
from raylora.report import html

APART = multiprocessing.get_context("spawn")  # not forkserver: there is one a process, and it must not be older than the Ray of other tests
LONG = {"training__rounds": 18, "training__local_steps": 1, "evaluation__every": 0, "checkpoint": {"every": 1, "keep": "all"}}


def without_ray() -> None:
    """Drive in this process."""

    def drive(plan, out, *, address, resume, request):
        yield from experiment.run_experiment(plan, out, lambda p: InProcess(build_host(p.spec, p.weights)), resume=resume)

    driver.run = drive
    session.opened = lambda address, **options: contextlib.nullcontext()
    resources.request_of = lambda plan, has, resume: None
    session.available = lambda: None
    html.write_report = lambda folder: (folder / "report.html").write_text("page")


@pytest.fixture
def no_ray(monkeypatch):
    for module, name in (
        (driver, "run"), (session, "opened"), (session, "available"), (resources, "request_of"), (html, "write_report"),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, getattr(module, name))  # what is restored afterwards
    without_ray()


# ---- a full disk


def mounted(folder: Path, size: int) -> None:
    """A small tmpfs that this process and its children see, and nobody else."""
    libc = ctypes.CDLL(None, use_errno=True)
    new_namespace, private = 0x00020000, 0x40000 | 0x4000
    for code in (
        libc.unshare(new_namespace),
        libc.mount(b"none", b"/", None, private, None),
        libc.mount(b"none", str(folder).encode(), b"tmpfs", 0, f"size={size}".encode()),
    ):
        if code:
            os._exit(77)


def filling(values: dict, disk: Path, kept: Path, size: int, limit: int) -> None:
    """A run on a disk of so many bytes, or with files of at most `limit` bytes; what is left of it is copied to `kept`."""
    without_ray()
    said = os.open(kept / "said", os.O_WRONLY | os.O_CREAT)
    os.dup2(said, 2)
    if size:
        mounted(disk, size)
    else:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    code = cli.guarded(lambda: launch.run(configuration.from_dict(values), disk / "out") and 0)
    shutil.copytree(disk / "out", kept / "out")
    os._exit(code)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [pytest.param("tmpfs", marks=pytest.mark.system), "limit"])
def test_a_full_disk_ends_the_run_and_what_was_whole_is_kept(no_ray, runs, prepared_folder, tmp_path, kind):
    whole = runs("disease", **LONG)
    limit = (whole.folder / "patients.json").stat().st_size + 300  # the record of so many rounds outgrows it
    assert limit < (whole.folder / "rounds.jsonl").stat().st_size
    disk, kept = tmp_path / "disk", tmp_path / "kept"
    disk.mkdir()
    kept.mkdir()
    config = tiny(prepared_folder, "disease", **LONG)
    process = APART.Process(target=filling, args=(config.as_dict(), disk, kept, 160 << 10 if kind == "tmpfs" else 0, limit))
    process.start()
    process.join()
    if process.exitcode == 77:
        absent("a tmpfs cannot be mounted here (needs root)")
    said = (kept / "said").read_text()
    assert process.exitcode == 1 and len([line for line in said.splitlines() if line.startswith("raylora: ")]) == 1, said
    last = said.splitlines()[-1]
    assert (
        "No space left on device" if kind == "tmpfs" else "File too large"
    ) in last and f"`raylora resume {disk / 'out'}` goes on" in last
    out = kept / "out"
    done = len(list((out / "checkpoints").glob("round_*")))
    assert 0 < done < LONG["training__rounds"] and not list((out / "checkpoints").glob(".*")) and not (out / "summary.json").exists()
    assert launch.resume(out)["adapter_sha256"] == whole.hashes


# ---- folders


@pytest.mark.system
def test_a_folder_that_cannot_be_written(no_ray, prepared_folder):
    if os.geteuid():
        absent("needs root, to become somebody else")
    folder = Path(tempfile.mkdtemp(prefix="raylora-test-"))
    folder.chmod(0o755)
    try:
        for out in (folder, folder / "out"):
            os.seteuid(65534)
            try:
                with pytest.raises(InputError, match=f"{out}: cannot be written.*: Permission denied$"):
                    run_folder.claim(out, "text")
            finally:
                os.seteuid(0)
        assert not list(folder.iterdir())
    finally:
        folder.rmdir()


def test_of_two_runs_that_start_in_one_folder_one_does(tmp_path, monkeypatch):
    run_folder.claim(tmp_path / "a", "first")
    with pytest.raises(InputError, match="already holds a run"):
        run_folder.claim(tmp_path / "a", "second")
    monkeypatch.setattr(run_folder, "refuse_used", lambda folder: None)  # both have looked, and then both write
    with pytest.raises(InputError, match="another run has just started in it"):
        run_folder.claim(tmp_path / "a", "second")
    assert (tmp_path / "a" / "config.yaml").read_text() == "first"


def test_a_disk_that_is_full_from_the_start_leaves_nothing_to_resume(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        with pytest.raises(InputError, match=r"deep/out: cannot be written: File too large$"):
            run_folder.claim(tmp_path / "deep" / "out", "seed: 7")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.iterdir())


def test_a_run_that_was_killed_before_its_configuration_was_written_is_not_another_one(tmp_path):
    (tmp_path / "config.yaml").touch()
    with pytest.raises(InputError, match="no run to resume .*empty"):
        launch.resume(tmp_path)


def hold(folder: Path, ready, end) -> None:
    with run_folder.alone(folder):
        write_text(folder / "config.yaml", (folder / "config.yaml").read_text())  # as a run that has chosen its stack does
        ready.set()
        end.wait(250)


def test_a_run_that_is_under_way_is_not_resumed(no_ray, prepared_folder, tmp_path, runs):
    out = tmp_path / "run"
    run_folder.claim(out, configuration.dump(tiny(prepared_folder, "disease")))
    ready, end = APART.Event(), APART.Event()
    other = APART.Process(target=hold, args=(out, ready, end))
    other.start()
    assert ready.wait(250)
    with pytest.raises(InputError, match="a run is under way in this folder"):
        launch.resume(out)
    other.kill()  # the lock goes with the process
    other.join()
    assert launch.resume(out)["adapter_sha256"] == runs("disease").hashes


# ---- a tracking server


class Server(http.server.BaseHTTPRequestHandler):
    """As much of MLflow as a run needs to begin."""

    answers = {
        "experiments/get-by-name": {"experiment": {"experiment_id": "1", "name": "raylora"}},
        "runs/create": {"run": {"info": {"run_id": "abc", "run_uuid": "abc", "experiment_id": "1"}, "data": {}}},
    }

    def answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = next((value for key, value in self.answers.items() if key in self.path), {})
        data = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = answer

    def log_message(self, *_):
        pass


@pytest.mark.slow
def test_a_tracking_server_that_vanishes_in_the_middle_costs_a_note(no_ray, prepared_folder, tmp_path, runs):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    events = []

    def follow(event):
        events.append(event)
        if event["event"] == "round" and event["round"] == 0:
            server.shutdown()
            server.server_close()
            thread.join()

    uri = f"http://127.0.0.1:{server.server_address[1]}"
    summary = launch.run(tiny(prepared_folder, "disease", tracking={"uri": uri}), tmp_path / "run", on_event=follow)
    assert summary["adapter_sha256"] == runs("disease").hashes and (tmp_path / "run" / "report.html").exists()
    (note,) = [event["text"] for event in events if event["event"] == "note" and "MLflow" in event["text"]]
    assert note.startswith(f"MLflow at {uri}") and f"raylora upload {tmp_path / 'run'}" in note


# ---- every other end is one line


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (OSError(28, "No space left on device", "/runs/x/rounds.jsonl"), MachineError, "/runs/x/rounds.jsonl: No space left on device"),
        (MachineError("no answer"), MachineError, "no answer"),
        (InputError("lora.rank: no"), InputError, "lora.rank: no"),
        (RunError("round 1, client a: x"), RunError, "round 1, client a: x"),
        (ValueError("a\nb"), RunError, "ValueError: a b"),
    ],
)
def test_what_goes_wrong_in_the_driver_is_one_of_our_errors(error, kind, said):
    found = driver._own(error, Path("/runs/x"))
    assert type(found) is kind and str(found) == said


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (OSError(28, "No space left on device", "/x/y"), 1, "/x/y: No space left on device"),
        (MemoryError(), 1, "out of memory"),
        (ZeroDivisionError("division by zero"), 1, "ZeroDivisionError: division by zero (a bug, at test_machine_failures.py:"),
    ],
)
def test_no_end_is_a_traceback(capsys, error, code, said):
    def fail():
        raise error

    assert cli.guarded(fail) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"raylora: {said}")
