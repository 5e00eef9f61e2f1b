"""A Ray of our own starts without what nobody looks at, and every other Ray as it is."""

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import ray
from ray._private import services
from ray._private.node import Node

from benchmarks.processes import family, title
from raylora.cluster import local, session

DASHBOARD, RUNTIME_ENV = "dashboard_agent", "runtime_env_agent"


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_its_processes_are_a_store_of_names_a_raylet_its_agents_and_workers():
    """The Ray of these tests was started so, with the agent that its sweeps need."""
    expected = {"gcs_server/": 0, "raylet/raylet --": 1, "stand_in.py": 2, "dashboard/dashboard.py": 0, "monitor.py": 0}
    until = time.monotonic() + 60
    while True:  # a worker has the raylet's command, which names the stand-in, until it is a worker
        lines = {word: [line for line in map(title, family(os.getpid())[1:]) if word in line] for word in expected}
        if {word: len(found) for word, found in lines.items()} == expected:
            break
        assert time.monotonic() < until, lines
        time.sleep(0.05)
    assert ray.get(ray.remote(num_cpus=0)(lambda: os.getpid()).remote()) != os.getpid()


def commands() -> dict[str, bool]:
    """Whether what Ray starts next has a stand-in or is left out."""
    begun = {agent: getattr(services, local.COMMAND)(agent, "session") for agent in (DASHBOARD, RUNTIME_ENV)}
    found = {agent: str(local.STAND_IN) in words for agent, words in begun.items()}
    return found | {name: getattr(Node, name).__name__ == "<lambda>" for name in local.SPARED}


ALL = {DASHBOARD: True, RUNTIME_ENV: True, **dict.fromkeys(local.SPARED, True)}


def test_only_the_ray_that_a_command_starts_itself_is_spared(monkeypatch):
    seen = []
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.shutdown", lambda: None)
    monkeypatch.setattr("ray.init", lambda **options: seen.append((options["address"], commands())))
    for address, environments in ((None, False), (None, True), ("auto", False)):
        with session.opened(address, environments=environments):
            pass
    none = dict.fromkeys(ALL, False)
    assert seen == [("local", ALL), ("local", {**ALL, RUNTIME_ENV: False}), ("auto", none)] and commands() == none


def test_what_a_runtime_environment_or_another_ray_needs_is_started(monkeypatch):
    for name in ("RAY_JOB_CONFIG_JSON_ENV_VAR", "RAY_RUNTIME_ENV_HOOK"):
        with monkeypatch.context() as patched:
            patched.setenv(name, "{}")
            with local.spared():
                assert commands() == {**ALL, RUNTIME_ENV: False}
    with monkeypatch.context() as patched:
        patched.setattr("ray._private.runtime_env.uv_runtime_env_hook._get_uv_run_cmdline", lambda: ["uv", "run", "raylora"])
        with local.spared():
            assert commands() == {**ALL, RUNTIME_ENV: False}
    monkeypatch.setattr("ray.__version__", "2.61.0")
    with local.spared():
        assert commands() == {**ALL, DASHBOARD: False, RUNTIME_ENV: False}


def test_the_ray_that_is_pinned_is_the_one_whose_agents_are_known():
    pinned = (Path(__file__).parents[2] / "constraints.txt").read_text().splitlines()
    assert f"ray=={local.KNOWN}" in pinned, "look at what its raylet waits for (`stand_in`), then at this test"


def test_a_stand_in_says_that_nobody_listens_and_ends_with_its_raylet(tmp_path):
    for agent, ports in {
        "ray/dashboard/agent.py": {"metrics_agent_port", "metrics_export_port", "dashboard_agent_listen_port"},
        "ray/_private/runtime_env/agent/main.py": {"runtime_env_agent_port"},
    }.items():
        folder = tmp_path / agent.replace("/", "-")
        folder.mkdir()
        words = [sys.executable, "-I", "-S", str(local.STAND_IN), agent, f"--session-dir={folder}", "--node-id=abc", "--head"]
        raylet = subprocess.Popen(["sh", "-c", '"$@" & echo $!; wait', "sh", *words], stdout=subprocess.PIPE, text=True)
        assert raylet.stdout is not None
        stand_in = psutil.Process(int(raylet.stdout.readline()))
        until = time.monotonic() + 120
        while {path.name for path in folder.iterdir()} != {f"{port}_abc" for port in ports}:
            assert time.monotonic() < until and stand_in.is_running()
            time.sleep(0.02)
        assert {path.read_text() for path in folder.iterdir()} == {"-1"}
        raylet.kill()
        raylet.wait()
        stand_in.wait(120)
        raylet.stdout.close()
