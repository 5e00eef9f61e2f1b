"""The cluster recipes, as far as they can be checked without their clusters."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from small_runs import run, settings
from typer.testing import CliRunner

from raylora import cli
from raylora import config as configuration

RECIPES = Path(__file__).resolve().parents[2] / "configs" / "cluster"
BIN = Path(sys.executable).parent
SRUN = """#!/bin/bash
# A Slurm step on this machine: says what it was asked, then does it; what it is told to end with goes to all of it.
echo "$@" >> "$STEPS"
while [[ $1 == -* ]]; do [[ $1 == -w ]] && shift; shift; done
set -m
trap 'kill -TERM -- -$!' TERM
"$@" &
wait $!
code=$?
wait $! || true
exit $code
"""
SCONTROL = """#!/bin/bash
echo "scontrol $@" >> "$STEPS"
[[ $1 == show ]] && printf 'one\\ntwo\\n' || true
"""


STAND_INS = {  # for what a step starts: they say that they were there, and how they were ended
    "ray": """#!/bin/bash
for word in "$@"; do [[ $word == --temp-dir=* ]] && mkdir -p "${word#*=}"; done
trap 'kill $! 2> /dev/null; echo "ray ended" >> "$STEPS"; exit 0' TERM
sleep 100 &
echo "ray began" >> "$STEPS"
wait $!
""",
    "python": """#!/bin/bash
[[ $1 == -c ]] && echo 127.0.0.1 || echo "python $@" >> "$STEPS"
""",
    "raylora": """#!/bin/bash
echo "raylora $@" >> "$STEPS"
if [[ -e out ]]; then
    until [[ $(grep -c "ray began" "$STEPS") == 4 ]]; do sleep 0.02; done
    exit 0
fi
trap 'kill $! 2> /dev/null; echo "raylora ended" >> "$STEPS"; exit 1' TERM
mkdir out
sleep 100 &
wait $!
""",
}


def allocation(folder, commands):
    """The environment of a job with two nodes of a CPU each, both this machine, where these commands come before all others."""
    fake = folder / "bin"
    fake.mkdir()
    for name, text in commands.items():
        (fake / name).write_text(text)
        (fake / name).chmod(0o755)
    job = str(os.getpid())
    given = {"SLURM_JOB_ID": job, "SLURM_JOB_NODELIST": "[one-two]", "SLURM_NNODES": "2", "SLURM_CPUS_PER_TASK": "1"}
    return {**os.environ, **given, "STEPS": str(folder / "steps"), "PATH": f"{fake}:{BIN}:{os.environ['PATH']}"}


@pytest.fixture
def slurm(tmp_path, prepared_folder):
    """An allocation; a tiny sweep."""
    placement = {"cpus_per_client": 1.0, "clients_per_actor": 2}  # two actors: one on each node
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(settings(prepared_folder, placement=placement, training__rounds=3)))
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump({"name": "s", "base": "base.yaml", "space": {"lora.rank": {"grid": [2]}}}))
    return allocation(tmp_path, {"srun": SRUN, "scontrol": SCONTROL})


def temp_of(slurm):
    return Path(f"/tmp/rl-{os.getuid()}-{slurm['SLURM_JOB_ID']}")


def script(*arguments, **options):
    return subprocess.Popen(["bash", str(RECIPES / "slurm.sh"), "sweep.yaml", "out", *arguments], process_group=0, text=True, **options)


def as_it_was_given(steps):
    """What the nodes of two starts were told: their share, and one port from the range of these jobs."""
    starts = [line for line in steps.splitlines() if "ray start" in line]
    assert len(starts) == 4 and all("--num-cpus=1 --num-gpus=0" in line for line in starts)
    ports = set(re.findall(r"--port=(\d+)", steps))
    assert len(ports) == 1 and 20000 <= int(ports.pop()) < 32768


def until(true, seconds=120):
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        time.sleep(0.02)
    assert true()


@pytest.mark.slow
def test_slurm_s_script_ends_what_it_started_when_it_is_preempted_and_is_requeued(tmp_path):
    """The script itself; a Ray and a sweep below it: the next test."""
    env, steps = allocation(tmp_path, {"srun": SRUN, "scontrol": SCONTROL, **STAND_INS}), tmp_path / "steps"
    first = script("training.rounds=12", cwd=tmp_path, env=env)
    until((tmp_path / "out").exists)
    until(lambda: steps.read_text().count("ray began") == 2 and temp_of(env).exists())
    first.send_signal(signal.SIGTERM)
    assert first.wait(120) == 0
    until(lambda: steps.read_text().count("ray ended") == 2)
    assert f"scontrol requeue {env['SLURM_JOB_ID']}" in steps.read_text() and not temp_of(env).exists()
    assert script("training.rounds=12", cwd=tmp_path, env=env).wait(120) == 0
    until(lambda: steps.read_text().count("ray ended") == 4)
    said = steps.read_text()
    assert said.count("raylora ended") == 1 and said.count("scontrol requeue") == 1 and not temp_of(env).exists()
    as_it_was_given(said)
    ours = re.findall(r"^raylora (.*)", said, re.M)
    port = re.search(r"--port=(\d+)", said)[1]
    assert [line for line in ours if line != "ended"] == [
        f"sweep sweep.yaml training.rounds=12 --output out --address 127.0.0.1:{port}"
    ] * 2


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.skipif("RAYLORA_RECIPES" not in os.environ, reason="two sweeps on Rays of their own take a minute: `make recipes`")
def test_slurm_preempted_it_requeues_itself_and_goes_on(slurm, tmp_path):
    ledger, log = tmp_path / "out" / "ledger.jsonl", tmp_path / "log"
    with log.open("w") as said:
        first = script("training.rounds=12", cwd=tmp_path, env=slurm, stdout=said, stderr=said)
        until = time.monotonic() + 200
        while not (ledger.exists() and "report" in ledger.read_text()) and first.poll() is None and time.monotonic() < until:
            time.sleep(0.1)
        first.send_signal(signal.SIGTERM)  # to the script alone, as Slurm does
        assert first.wait(100) == 0, log.read_text()
        assert f"scontrol requeue {slurm['SLURM_JOB_ID']}" in (tmp_path / "steps").read_text()
        assert not temp_of(slurm).exists()
        before = len(ledger.read_text().splitlines())
        second = script("training.rounds=12", cwd=tmp_path, env=slurm, stdout=said, stderr=said)
        assert second.wait(280) == 0, log.read_text()
    assert len(ledger.read_text().splitlines()) > before
    found = json.loads((tmp_path / "out" / "sweep.json").read_text())
    assert [row["status"] for row in found["trials"]] == ["finished"]
    as_it_was_given((tmp_path / "steps").read_text())
    row = found["trials"][0]
    plain = run(configuration.load(tmp_path / "out" / row["folder"] / "config.yaml"), tmp_path / "plain")
    assert row["adapter_sha256"] == plain.hashes


def test_slurm_s_script_is_a_script_and_asks_for_its_arguments():
    path = str(RECIPES / "slurm.sh")
    assert subprocess.run(["bash", "-n", path], check=False).returncode == 0
    done = subprocess.run(["bash", path], capture_output=True, text=True, check=False)
    assert done.returncode != 0 and "expected a sweep file" in done.stderr


def test_kuberay_s_job_is_yaml_whose_entrypoint_the_command_understands():
    job = yaml.safe_load((RECIPES / "kuberay.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    spec = job["spec"]["rayClusterSpec"]
    pinned = re.search(r"^ray==(\S+)$", (RECIPES.parents[1] / "constraints.txt").read_text(), re.M)
    assert spec["rayVersion"] == pinned[1]
    assert spec["authOptions"] == {"mode": "token"} and "dashboard-host" not in spec["headGroupSpec"]["rayStartParams"]
    groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
    images = {container["image"] for group in groups for container in group["template"]["spec"]["containers"]}
    assert len(images) == 1  # the same software everywhere
    for group in groups:
        volumes = {volume["name"] for volume in group["template"]["spec"]["volumes"]}
        (container,) = group["template"]["spec"]["containers"]
        assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
        assert "/dev/shm" in {mount["mountPath"] for mount in container["volumeMounts"]}
    program, command, *arguments = shlex.split(job["spec"]["entrypoint"])
    assert program == "raylora"
    said = CliRunner().invoke(cli.app, [command, *arguments])
    assert "no such file" in str(said.exception)  # understood as far as the sweep file, which is not here
