"""A real MLflow server on this machine: gone for a while and back, and its pages in a real browser."""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "report"))
from browser import Browser, need_chromium
from ports import free_ports

from benchmarks.tracking import read_back, trial, write_folder
from raylora.tracking import writer
from raylora.tracking.mlflow import SweepTracker

pytestmark = pytest.mark.slow


class Server:
    """`mlflow server` over a SQLite file."""

    def __init__(self, folder: Path, port: int) -> None:
        self.uri = f"http://127.0.0.1:{port}"
        command = [sys.executable, "-W", "ignore", "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
        store = ["--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}", "--artifacts-destination", str(folder / "artifacts")]
        settings = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        self.process = subprocess.Popen(
            [*command, *store], env=settings, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        try:
            self._answers()
        except BaseException:  # a test that is interrupted here leaves no server behind
            self.stop()
            raise

    def _answers(self) -> None:
        for _ in range(600):
            try:
                with urllib.request.urlopen(f"{self.uri}/health", timeout=5):
                    return
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                assert self.process.poll() is None, "mlflow server ended"
                time.sleep(0.2)
        pytest.fail("mlflow server did not answer")

    def stop(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, 15)
        self.process.wait(30)


class Line:
    """A TCP line to a server, which can be cut and mended: cut, connections are refused."""

    def __init__(self, to: int) -> None:
        self.to, self.open = to, []
        (self.port,) = free_ports(1)
        self.mend()

    def mend(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, args=(self.listener,), daemon=True).start()

    def cut(self) -> None:
        for one in (self.listener, *self.open):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        self.open.clear()

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                here, _ = listener.accept()
                there = socket.create_connection(("127.0.0.1", self.to))
                self.open += [here, there]
                for one, other in ((here, there), (there, here)):
                    threading.Thread(target=self._carry, args=(one, other), daemon=True).start()

    @staticmethod
    def _carry(one: socket.socket, other: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := one.recv(1 << 16):
                other.sendall(data)
        for each in (one, other):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)


@pytest.fixture(scope="module")
def server(empty_database, tmp_path_factory):
    folder = tmp_path_factory.mktemp("server")
    shutil.copy(empty_database, folder / "mlflow.db")
    (port,) = free_ports(1)
    running = Server(folder, port)
    line = Line(port)
    yield line
    line.cut()
    running.stop()


@pytest.fixture(scope="module")
def sweep(server, tmp_path_factory):
    """A sweep of three trials; the line to the server is cut before the first of them ends, and mended after the last has."""
    uri = f"http://127.0.0.1:{server.port}"
    root, told = tmp_path_factory.mktemp("trials"), {}
    tracker = SweepTracker(uri, "hearts", "ranks", {"lora.rank": "[2, 4, 8]"}, {}, 16)
    for number in range(3):
        config, lines, summary = trial(number, 2, 2)
        write_folder(root / str(number), config, lines, summary)
        tracker.trial(number, f"{number:03d}", config, {"strategy": "fedit", "rank": str(config["lora"]["rank"])})
        tracker.rounds(number, lines)
        if number == 0:
            tracker._writer.wait(lambda: 0 in tracker.ids()[1])
            server.cut()
        tracker.finish(number, root / str(number), summary)
        told[number] = config, summary
    tracker.end("FINISHED", None)
    deadline = time.monotonic() + 60
    while tracker._writer.error is None and time.monotonic() < deadline:
        time.sleep(0.05)
    gone = tracker._writer.error
    server.mend()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(writer, "QUIET_S", 60)  # a machine that stands still for seconds is no silence
        missing = tracker.close()
    return uri, *tracker.ids(), told, gone, missing


@pytest.mark.system
def test_a_server_that_goes_and_comes_back_has_everything_once_and_its_pages_show_it(sweep, tmp_path):
    uri, parent, ids, told, gone, missing = sweep
    assert gone is not None and uri in gone and missing is None
    differing, runs = read_back(uri, parent, ids, told, 2)
    assert differing == [] and runs == 1 + 3 * 3

    need_chromium()  # one server is enough: it takes ten seconds to start
    with Browser(tmp_path / "profile", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1") as browser:
        browser.visit(f"{uri}/#/experiments/1/runs/{parent}")
        shown = browser.until("return document.body.innerText", lambda text: all(f"{n:03d}" in text for n in told) and "ranks" in text)
        assert "FINISHED" in shown.upper()
        (tmp_path / "parent.png").write_bytes(browser.screenshot())
        browser.visit(f"{uri}/#/experiments/1/runs")
        shown = browser.until("return document.body.innerText", lambda text: "ranks" in text)
        (tmp_path / "runs.png").write_bytes(browser.screenshot())
        browser.visit(f"{uri}/#/experiments/1/runs/{ids[0]}")
        shown = browser.until("return document.body.innerText", lambda text: "site0" in text and "site1" in text)
        assert "final/dice/mean" in shown
        (tmp_path / "trial.png").write_bytes(browser.screenshot())
