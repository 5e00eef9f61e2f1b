"""Two real Ray nodes, the second in a file system of its own where the prepared data do not exist."""

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import ray
import yaml
from needed import absent
from ports import free_ports
from small_runs import run, settings

from raylora import config as configuration

pytestmark = [pytest.mark.ray, pytest.mark.slow]
BIN = Path(sys.executable).parent
RAY = [str(BIN / "ray"), "start", "--disable-usage-stats", "--num-cpus=1", "--object-store-memory=100000000", "--block"]
MODULE = """from raylora.strategies.fedit import fedit


def mine():
    return fedit()
"""


def answers(address, port):
    with socket.socket() as probe:
        return probe.connect_ex((address, port)) == 0


def unshared(*command):
    """A command whose mounts nobody else sees."""
    return ["unshare", "--mount", "--propagation", "private", *command]


@pytest.fixture
def two_nodes(prepared_folder, tmp_path_factory, monkeypatch):
    """A cluster of two nodes with a CPU each: its address, where it takes jobs, the second node's folder and its process."""
    if (
        shutil.which("unshare") is None
        or subprocess.run(unshared("mount", "-t", "tmpfs", "none", "/mnt"), capture_output=True, check=False).returncode
    ):
        absent("mounts of one's own are not allowed here (unshare --mount needs root)")
    for name, value in {"period_ms": 500, "failure_threshold": 4, "timeout_ms": 20_000}.items():
        monkeypatch.setenv(f"RAY_health_check_{name}", str(value))  # half a minute until a node is missed is long for a test
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
    monkeypatch.setenv("PATH", f"{BIN}:{os.environ['PATH']}")  # where a job finds raylora
    port, dashboard, agent, another = free_ports(4)
    temp = Path("/tmp") / f"rl{os.getpid()}"
    here = ray.util.get_node_ip_address()
    address = f"{here}:{port}"
    far = tmp_path_factory.mktemp("far")
    jobs = [f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}"]
    head = [*RAY, "--head", f"--port={port}", "--dashboard-host=127.0.0.1", *jobs, f"--temp-dir={temp}"]
    # An address of its own: a sweep keeps its drivers, whose folders are local, where the command is.
    worker = [*RAY, f"--address={address}", "--node-ip-address=127.0.0.2", f"--dashboard-agent-listen-port={another}"]
    # What a job brings along is unpacked by each node: two on one machine would do so in one folder, the second under the feet of the first.
    unpacked = f'for session in "{temp}"/session_2*; do mkdir -p "$session/runtime_resources"; mount -t tmpfs none "$session/runtime_resources"; done'
    hide = f'mount -t tmpfs none "{prepared_folder.parent}"; {unpacked}; export RAYLORA_CACHE="{far}"; until "$@"; do sleep 1; done'
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "process_group": 0}
    nodes = [subprocess.Popen(head, **quiet)]
    try:
        until = time.monotonic() + 60
        while not answers(here, port) and time.monotonic() < until:
            time.sleep(0.1)
        nodes.append(subprocess.Popen(unshared("sh", "-c", hide, "sh", *worker), **quiet))
        while len(list(temp.glob("session_2*/sockets/raylet*"))) < 2 and time.monotonic() < until:
            time.sleep(0.1)
        while not answers("127.0.0.1", agent) and time.monotonic() < until:  # who runs jobs starts last
            time.sleep(0.1)
        yield address, f"http://127.0.0.1:{dashboard}", far, nodes[1]
    finally:
        for node in nodes[1:]:  # a shell with Ray in it
            with contextlib.suppress(ProcessLookupError):
                os.killpg(node.pid, signal.SIGTERM)
        nodes[0].terminate()  # it ends what it has started itself
        for node in reversed(nodes):
            try:
                node.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(node.pid, signal.SIGKILL)
                node.wait()
        shutil.rmtree(temp, ignore_errors=True)


def test_a_job_s_sweep_and_then_a_run_whose_node_is_killed_on_two_nodes_that_share_no_data(
    two_nodes, prepared_folder, cohort_folder, tmp_path, runs
):
    address, jobs, far, second = two_nodes
    a_sweep_as_a_job(jobs, far, prepared_folder, tmp_path)
    shutil.rmtree(far / "received")
    downloaded = prepared_folder.parent / "download"  # which the second node does not see either
    shutil.copytree(cohort_folder, downloaded)
    a_node_is_killed_in_the_middle_of_a_run(address, far, second, downloaded, tmp_path / "killed", runs)


def a_sweep_as_a_job(jobs, far, prepared_folder, tmp_path):
    """The command of docs/cluster.md. The user's module reaches both nodes with it."""
    work, out = tmp_path / "work", tmp_path / "out"
    work.mkdir()
    (work / "my_module.py").write_text(MODULE)
    placement = {"cpus_per_client": 1.0, "clients_per_actor": 2}  # two actors: one on each node
    base = settings(prepared_folder, strategy={"name": "my_module:mine"}, placement=placement)
    (work / "base.yaml").write_text(yaml.safe_dump(base))
    (work / "sweep.yaml").write_text(yaml.safe_dump({"name": "far", "base": "base.yaml", "space": {"lora.rank": {"grid": [1, 2]}}}))
    submit = [RAY[0], "job", "submit", "--address", jobs, "--working-dir", str(work), "--"]
    command = [*submit, "raylora", "sweep", "sweep.yaml", "--output", str(out), "--address", "auto"]
    until = time.monotonic() + 120
    while True:  # the nodes may not be up yet: then no job is taken, or the sweep says at once that it does not fit
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=200)
        if done.returncode == 0 or out.exists() or time.monotonic() > until:
            break
        time.sleep(1)
    said = done.stdout[-3000:] + done.stderr[-3000:]
    assert done.returncode == 0, said
    found = json.loads((out / "sweep.json").read_text())
    assert [row["error"] for row in found["trials"]] == [None, None], said
    for row in found["trials"]:
        folder = out / row["folder"]
        values = {**yaml.safe_load((folder / "config.yaml").read_text()), "strategy": {"name": "fedit"}}
        assert row["adapter_sha256"] == run(configuration.from_dict(values), tmp_path / "plain" / str(row["number"])).hashes
        actors = json.loads((folder / "summary.json").read_text())["actors"]
        assert len({actor["node"] for actor in actors}) == 2  # the node that each client ran on is in the record
    received = list(far.glob("received/*/studies/*.arrow"))
    assert received
    summary = json.loads((folder / "summary.json").read_text())
    (there,) = (set(actor["clients"]) for actor in actors if actor["node"] != summary["driver"]["node"])
    patients = json.loads((folder / "patients.json").read_text())["patients"]
    assert {path.stem for path in received} == {patient["id"] for patient in patients if patient["client"] in there}


def a_node_is_killed_in_the_middle_of_a_run(address, far, second, downloaded, tmp_path, runs):
    """Data that are not prepared yet are prepared where the command is. The node that is left takes the other's clients; if the run ends all
    the same, it is resumed."""
    tmp_path.mkdir()
    options = {"training__rounds": 8, "evaluation__every": 0, "checkpoint": {"keep": "all"}}
    values = settings(downloaded, "disease", **options, placement={"cpus_per_client": 1.0, "clients_per_actor": 2})
    values["data"]["cache"] = str(downloaded.with_name("cache"))
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(values))
    until, code = time.monotonic() + 120, 2
    while code == 2 and time.monotonic() < until:  # the nodes may not be up yet
        with (tmp_path / "said").open("w") as said:
            command = [sys.executable, "-m", "raylora", "run", "c.yaml", "--output", "out", "--address", address]
            process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=said)
        while process.poll() is None:
            if second is not None and (tmp_path / "out" / "checkpoints" / "round_0002").is_dir():
                os.killpg(second.pid, signal.SIGKILL)
                second = None
            time.sleep(0.01)
        code = process.returncode
    assert second is None, (tmp_path / "said").read_text()
    if code:
        assert code == 1 and "raylora resume" in (tmp_path / "said").read_text(), (tmp_path / "said").read_text()
        again = [sys.executable, "-m", "raylora", "resume", "out", "--address", address]
        assert subprocess.run(again, cwd=tmp_path, capture_output=True, check=False, timeout=200).returncode == 0
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["adapter_sha256"] == runs("disease", **options).hashes
    assert list(far.glob("received/*/studies/*.arrow")), "the other node did work"
