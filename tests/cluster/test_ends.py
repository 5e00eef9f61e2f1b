"""Every end of a run, by real processes: what it says, its exit code, what it leaves on the disk and in the process list; then `resume`."""

import json
import signal

import pytest
import yaml
from here import without_ray
from small_runs import settings
from struck import HANG_UP, Struck

from raylora import launch
from raylora.core.errors import InputError

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

ROUNDS = {"training__rounds": 16, "training__local_steps": 1}  # a driver goes on until it hears that its command was struck
KEPT = {"checkpoint": {"keep": "all"}}
ONE_ACTOR = {"placement": {"clients_per_actor": 4}}


@pytest.fixture
def start(prepared_folder, tmp_path):
    """Start `raylora run` into `out` of a folder of its own; what is still running afterwards is ended."""
    running: list[Struck] = []

    def begin(text: str = "", strike: int = 0, common: bool = True, **overrides) -> Struck:
        import ray

        folder = tmp_path / str(len(running))
        folder.mkdir()
        (folder / "c.yaml").write_text(yaml.safe_dump(settings(prepared_folder, "disease", **{**ROUNDS, **KEPT, **ONE_ACTOR, **overrides})))
        place = ["--address", ray.get_runtime_context().gcs_address] if common else []
        running.append(Struck(["run", "c.yaml", "--output", "out", *place], folder, text, strike))
        return running[-1]

    yield begin
    for command in running:
        command.kill()


def test_killed_beside_a_run_that_is_not(start, runs, monkeypatch):
    """Two runs, each with a Ray of its own; the first is killed with SIGKILL in its second round."""
    killed, beside = start("round 1", signal.SIGKILL, common=False), start(common=False)
    killed.end(-signal.SIGKILL)
    beside.end(0)
    expected = runs("disease", **ROUNDS).hashes
    assert json.loads((beside.folder / "out" / "summary.json").read_text())["adapter_sha256"] == expected
    out = killed.folder / "out"
    assert not (out / "summary.json").exists() and (out / "checkpoints" / "round_0002").is_dir()
    without_ray(monkeypatch.setattr)  # what was left is there to be gone on with, by whomever
    assert launch.resume(out)["adapter_sha256"] == expected


@pytest.mark.parametrize(
    ("text", "strike", "left"),
    [
        ("making phantoms", signal.SIGINT, "nothing"),
        ("round 1", signal.SIGTERM, "two rounds"),
        ("scoring the test patients", HANG_UP, "all rounds"),
        ("writing the report", signal.SIGTERM, "all but the page"),
    ],
)
def test_interrupted_in_every_phase(start, runs, monkeypatch, text, strike, left):
    made = {"data": {"dataset": "phantom", "phantom": {"patients": 200}}} if left == "nothing" else {}
    command = start(text, strike, **made)
    said = command.end(130)
    out = command.folder / "out"
    if strike != HANG_UP:  # nobody is left to tell
        last = said.splitlines()[-1]
        assert last.startswith("raylora: interrupted") and ("raylora resume out" in last) == (left != "nothing")
    if left == "nothing":
        assert not out.exists() and not [path for path in (command.folder / "cache").rglob("*") if path.is_file()]
        return
    if left != "all rounds":  # the driver may have scored them all before it heard
        assert (out / "summary.json").exists() == (left == "all but the page")
    assert not (out / "report.html").exists()
    assert (out / "checkpoints" / ("round_0002" if left == "two rounds" else "round_0016")).is_dir()
    without_ray(monkeypatch.setattr)
    assert launch.resume(out)["adapter_sha256"] == runs("disease", **ROUNDS).hashes
    assert (out / "report.html").is_file()
    with pytest.raises(InputError, match="is finished"):
        launch.resume(out)
