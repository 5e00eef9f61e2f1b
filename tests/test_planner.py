"""A plan from another process: the same, the same errors, and nothing left of whoever makes it."""

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import yaml
from small_runs import settings

from raylora import config as configuration
from raylora import planning
from raylora.models.peft import hash_of

CODE = """
import pickle, sys
from pathlib import Path
from raylora import config
from raylora.core.errors import InputError, RunError
from raylora.planner import Planner
planner = Planner()
print(planner.process.pid, file=sys.stderr, flush=True)
said = []
say = lambda *progress: said.append(progress)
try:
    planner.ask(config.load(Path("c.yaml")), say)
    found = planner.result(say)
    Path("plan.pickle").write_bytes(pickle.dumps((found, said)))
except (InputError, RunError) as error:
    print(type(error).__name__, error)
print("torch" in sys.modules)
"""


@pytest.mark.slow
def test_it_is_the_plan_that_would_be_made_here_and_its_maker_has_gone(prepared_folder, tmp_path):
    """Though a file called queue.py lies in the folder, where the command was started by its name: the folder is not, or last, on its path."""
    values = settings(prepared_folder)
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(values))
    (tmp_path / "queue.py").write_text("raise SystemExit('mine')")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run([sys.executable, "-P", "-c", CODE], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == ["False"], done.stderr
    (pid,) = done.stderr.splitlines()
    assert not psutil.pid_exists(int(pid))
    found, progress = pickle.loads((tmp_path / "plan.pickle").read_bytes())
    here = planning.make_plan(configuration.from_dict(values))
    assert hash_of(found.weights) == hash_of(here.weights) and found.outline.names == here.outline.names
    assert (found.spec, found.clients, found.splits, found.data_sha256) == (here.spec, here.clients, here.splits, here.data_sha256)
    assert progress == []
    bare = found.with_weights({})
    assert not bare.weights and all(value.size == 0 for value in bare.outline.plain.values())
    again = bare.with_weights(found.weights)
    assert all(np.array_equal(value, here.outline.plain[name]) for name, value in again.outline.plain.items())


@pytest.mark.slow
def test_an_interrupt_while_the_planner_comes_up_is_no_traceback(tmp_path):
    """Ctrl-C goes to the whole group of processes; whoever started the planner ends it."""
    with subprocess.Popen([sys.executable, "-c", CODE], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        planner = int(running.stderr.readline())
        with contextlib.suppress(ProcessLookupError):
            for _ in range(20):  # the first one after Python has come up
                time.sleep(0.05)
                os.kill(planner, signal.SIGINT)
        running.kill()
        assert running.stderr.read() == ""
    psutil.wait_procs([psutil.Process(planner)] if psutil.pid_exists(planner) else [], timeout=30)


@pytest.mark.slow
def test_bad_input_and_a_lost_planner_are_one_line(prepared_folder, tmp_path):
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(settings(prepared_folder, lora__rank=4000)))
    done = subprocess.run([sys.executable, "-c", CODE], cwd=tmp_path, capture_output=True, text=True, check=True)
    said, torch = done.stdout.splitlines()
    assert said.startswith("InputError lora.rank: expected at most") and torch == "False" and len(done.stderr.splitlines()) == 1
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(settings(prepared_folder)))
    running = subprocess.Popen([sys.executable, "-c", CODE], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert running.stderr is not None and running.stdout is not None
    os.kill(int(running.stderr.readline()), signal.SIGKILL)
    assert running.stdout.read().splitlines() == ["MachineError the process that plans was lost (exit code -9)", "False"]
    running.communicate()


ODD = """from dataclasses import replace

from raylora.strategies.fedit import fedit


class Odd(Exception):
    pass


def odd(tree):
    raise Odd("oh")


def mine():
    return replace(fedit(), init=odd)
"""


@pytest.mark.slow
def test_an_error_is_told_once_and_the_planner_ends_by_itself(prepared_folder, tmp_path):
    """Of a user's strategy with a bug. Nothing else is said, though whoever asked is still busy with something else and has not closed its side."""
    (tmp_path / "mine.py").write_text(ODD)
    values = settings(prepared_folder, strategy={"name": "mine:mine"})
    config = configuration.from_dict(values)
    command = [sys.executable, "-m", "raylora.planner"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, env=environment, **pipes) as planner:
        pickle.dump(config, planner.stdin)
        planner.stdin.flush()
        assert planner.wait(240) == 0
        told, error = pickle.load(planner.stdout)
        assert told == "error" and planner.stderr.read() == b""
    assert type(error).__name__ == "RunError" and str(error).startswith("Odd: oh")


@pytest.mark.slow
def test_it_ends_with_whoever_asked(prepared_folder, tmp_path):
    (tmp_path / "c.yaml").write_text(
        yaml.safe_dump({**settings(prepared_folder), "data": {"dataset": "phantom", "cache": str(tmp_path / "cache")}})
    )
    running = subprocess.Popen([sys.executable, "-c", CODE], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert running.stderr is not None
    planner = psutil.Process(int(running.stderr.readline()))
    until = time.monotonic() + 240
    while not (making := workers_of(planner)):
        assert time.monotonic() < until and planner.is_running()
        time.sleep(0.1)
    running.kill()
    running.communicate()
    _, left = psutil.wait_procs([planner, *making], timeout=120)
    assert not left, [process.cmdline() for process in left]


def workers_of(process: psutil.Process) -> list[psutil.Process]:
    """The processes that it has spawned, those that have just ended aside."""
    every = psutil.process_iter(["ppid", "cmdline"])
    return [one for one in every if one.info["ppid"] == process.pid and "spawn_main" in " ".join(one.info["cmdline"] or ())]
