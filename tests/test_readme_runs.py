"""Every command of the README is run as it stands there, in the order in which it stands, on few and coarse
phantoms and tiny studies.

All clients are in this process (see `here`).
"""

import re
import shlex
import shutil

import pytest
from here import without_ray
from test_readme import ROOT, commands

from benchmarks import demo
from raylora import cli

COARSE = "data.spacing_mm=[8,8,10] data.size=[16,16,4] data.fractions=[0.25,0.25,0.25,0.25]"
QUICK = "training.rounds=1 training.local_steps=1 training.batch_size=2 evaluation.bootstrap=50 evaluation.overlays=0"
ONE = "data.phantom.patients=24 data.phantom.seed=0 data.phantom.shift=1 data.phantom.severity=1"  # cohort for all: four studies of each vendor
VENDORS = f"{COARSE} {QUICK} {ONE}"
VIT = "clients.by=iid clients.count=2 data.size=[72,72,12] training.local_epochs=null"  # the grid that the shipped weights know how to read
SETS = "[{dataset: acdc, root: acdc}, {dataset: mnms, root: mnms}]"
MEDIAN = "{median: {strategy: {name: fedit, reduce: median}}}"
ADDED = {  # to what a command begins with; the longest beginning counts
    "run configs/demo_segmentation": VENDORS,
    "run configs/demo_disease": f"{VENDORS} {VIT}",
    "run configs/acdc_segmentation": f"{COARSE} {QUICK} data.fractions=[0.4,0.2,0,0.4]",
    "run configs/three_layouts": f"clients.by=iid clients.count=2 data.dataset='{SETS}'",
    "sweep": f"{VENDORS} limits.trials=2 placement.clients_per_actor=4",
    "stress": f"{VENDORS} seeds=[0] 'strategies={MEDIAN}' placement.clients_per_actor=5",
    "make demo": f"{VENDORS} {VIT} data.size=[24,24,4] model.weights=null",  # one for its U-Nets and its ViTs
    "pretrain": "data.phantom.patients=4 data.size=[32,32,12] steps=2",
}


def small(command: str) -> list[str]:
    """Its words, with the folders that the reader would have and a few overrides."""
    words = shlex.split(command.removeprefix("raylora "))
    sets = "mnms" if {"mnms", "data.dataset=mnms"} & set(words) else "acdc"
    words = [re.sub(r"/path/to/ACDC|\bSRC\b", sets, word) for word in words]
    found = max((key for key in ADDED if " ".join(words).startswith(key)), key=len, default=None)
    more = "" if found is None else ADDED[found]
    return [*words, *shlex.split(more)]


def typed(words: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    if words[:2] == ["make", "demo"]:
        monkeypatch.setattr("sys.argv", words[1:])
        return cli.guarded(demo.main)
    return cli.guarded(lambda: cli.app(words, standalone_mode=False))


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_readmes_commands_run_as_they_stand(tmp_path, monkeypatch, empty_database, cohort_folder, write, capfd):
    monkeypatch.chdir(tmp_path)
    without_ray(monkeypatch.setattr)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    (tmp_path / "mnms").symlink_to(cohort_folder)
    for number, group in enumerate(("NOR", "DCM", "HCM", "MINF", "RV") * 3):
        write.acdc(tmp_path / "acdc", number, group=group)
    every = [command for command in commands(ROOT / "README.md") if re.match(r"raylora (\S+ \S|doctor)|make demo", command)]
    assert len(every) >= 15
    wrong = {}
    for command in every:
        if command.startswith("raylora resume"):  # of a run that was ended before its end
            (tmp_path / command.split()[2] / "summary.json").unlink()
        code, said = typed(small(command), monkeypatch), capfd.readouterr().err
        if code and command != "raylora doctor":  # it may find that this machine's disk is nearly full
            wrong[command] = said.splitlines()[-1]
    assert not wrong
    assert {path.name for path in (tmp_path / "runs").iterdir()} >= {
        "demo",
        "demo_segmentation",
        "demo_segmentation-2",
        "demo_disease",
        "rank_blocks_temperature",
    }
    assert (tmp_path / "compare.html").is_file() and (tmp_path / "ranks.html").is_file() and (tmp_path / "adapter").is_dir()
