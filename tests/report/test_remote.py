"""An MLflow experiment compared: the same numbers as from its folders, whether these are still there or not."""

import json
import shutil
import signal
from pathlib import Path

import pytest
import yaml
from make_run import make_run

from raylora import cli, launch
from raylora import config as configuration
from raylora.core.errors import InputError
from raylora.report.compare import compare
from raylora.tracking.mlflow import Finished, SweepTracker, texts, upload
from raylora.tracking.remote import nested

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def as_it_was():
    """The command line takes SIGTERM for itself."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def tags(summary: dict) -> dict[str, str]:
    return {name: str(summary[name]) for name in ("task", "strategy", "seed", "data_sha256", "config_sha256")}


@pytest.fixture
def tracked(mlflow_uri, tmp_path):
    """Two strategies with two seeds in MLflow, and a sweep with a trial that was pruned."""
    folders = [
        make_run(tmp_path / "runs" / f"{s}{i}", strategy=s, seed=i, rounds=1, patients=3) for s in ("fedit", "local") for i in (0, 1)
    ]
    for folder in folders:
        summary, config = json.loads((folder / "summary.json").read_text()), yaml.safe_load((folder / "config.yaml").read_text())
        run = Finished(folder=folder, name=folder.name, summary=summary, config=config, tags=tags(summary), client_runs=16)
        upload(run, mlflow_uri, "hearts")
    sweep = SweepTracker(mlflow_uri, "hearts", "ranks", {}, {}, 16)
    sweep.trial(0, "000", {**config, "lora": {**config["lora"], "rank": 16}}, tags(summary))
    sweep.fail(0, "PRUNED", {})
    sweep.end("FINISHED", None)
    assert sweep.close() is None
    return folders


def plain(folders, names=None) -> dict:
    found = compare(folders, replicates=100, names=names).as_dict()["blocks"][0]
    return {key: found[key] for key in ("configurations", "pairs", "a_a", "metric")}


def test_an_experiment_compares_as_its_folders_do(tracked, mlflow_uri, tmp_path, capsys, monkeypatch):
    here = launch.fetch("hearts", mlflow_uri, tmp_path / "one")
    assert {folder for folder in here if folder.parent != tmp_path / "one"} == set(tracked) and len(here) == 5
    shutil.move(tmp_path / "runs", tmp_path / "moved")
    away = launch.fetch("hearts", mlflow_uri, tmp_path / "two")
    assert len(away) == 5 and all(folder.parent == tmp_path / "two" for folder in away)
    moved = [tmp_path / "moved" / folder.name for folder in tracked]
    assert plain(list(away), away) == plain(moved)
    block = compare(list(away), replicates=100, names=away).blocks[0]
    assert [winner.tried for winner in block.winners] == [1, 2], "the one that was pruned counts as tried"
    assert any("(000) is pruned: it counts as tried" in remark for remark in block.remarks)
    monkeypatch.chdir(tmp_path)
    assert cli.guarded(lambda: cli.app(["compare", "--experiment", "hearts", "--output", "p.html", "--json"], standalone_mode=False)) == 0
    said = capsys.readouterr().out
    names = json.loads(said.splitlines()[-1])["blocks"][0]["runs"]
    assert len(names) == 5 and all(name.startswith("MLflow run ") for name in names) and "MLflow run" in (tmp_path / "p.html").read_text()


def test_a_folder_that_holds_another_run_by_now_is_not_taken_for_the_old_one(tracked, mlflow_uri, tmp_path):
    shutil.rmtree(tracked[0])
    make_run(tracked[0], strategy="fedit", seed=0, rounds=1, patients=3, quality=0.5)
    found = launch.fetch("hearts", mlflow_uri, tmp_path / "new")
    assert tracked[0] not in found and tracked[1] in found


def test_what_is_not_there_is_said(tracked, mlflow_uri, tmp_path, capsys):
    with pytest.raises(InputError, match=r"--experiment heart: not in .* \(it has .*hearts.*\)"):
        launch.fetch("heart", mlflow_uri, tmp_path)
    with pytest.raises(InputError, match="no such database"):
        launch.fetch("hearts", f"sqlite:///{tmp_path}/none.db", tmp_path)
    assert not (tmp_path / "none.db").exists()
    with pytest.raises(InputError, match="expected SCHEME://"):
        launch.fetch("hearts", "nonsense://x", tmp_path)
    assert cli.guarded(lambda: cli.app(["compare"], standalone_mode=False)) == 2
    assert cli.guarded(lambda: cli.app(["compare", "--uri", mlflow_uri], standalone_mode=False)) == 2
    shutil.rmtree(tracked[0])
    for artifact in Path(tmp_path).glob("mlartifacts/*/artifacts/summary.json"):
        artifact.unlink()
    with pytest.raises(InputError, match="its artifacts lack summary.json"):
        launch.fetch("hearts", mlflow_uri, tmp_path / "lack")


def test_parameters_read_back_are_the_configuration_they_were_made_of():
    values = {"lora": {"rank": [2, 4], "blocks": "all", "alpha": 8.0}, "strategy": {"name": "rate_my_lora", "temperature": float("inf")}}
    config = configuration.from_dict({**values, "data": {"allow_seen": True}, "clients": {"held_out": ["GE", "it's"]}}).as_dict()
    back = nested(texts(config))
    empty = {key: value for key, value in config.items() if value == {}}
    assert {**back, **empty} | {"data": 0, "model": 0, "clients": 0} == config | {"data": 0, "model": 0, "clients": 0}
    assert back["data"]["allow_seen"] is True and back["data"]["root"] is None and back["lora"]["rank"] == [2, 4]


def test_a_seed_that_was_pruned_belongs_to_its_configuration(mlflow_uri, tmp_path):
    """An empty section (`model.sizes: {}`) leaves no parameter in MLflow: it must not tell the pruned run from its finished repeats."""
    told = []
    for number, (rank, seed, quality) in enumerate(((4, 0, 0.9), (8, 0, 0.85), (8, 1, 0.85), (4, 1, 0.9))):
        folder = make_run(
            tmp_path / "runs" / str(number), seed=seed, quality=quality, rounds=1, patients=3, config={"lora.rank": rank, "model.sizes": {}}
        )
        summary, config = json.loads((folder / "summary.json").read_text()), yaml.safe_load((folder / "config.yaml").read_text())
        told.append(Finished(folder=folder, name=folder.name, summary=summary, config=config, tags=tags(summary), client_runs=16))
    *finished, pruned = told
    for run in finished:
        upload(run, mlflow_uri, "seeds")
    sweep = SweepTracker(mlflow_uri, "seeds", "ranks", {}, {}, 16)
    sweep.trial(0, "000", pruned.config, pruned.tags)
    sweep.fail(0, "PRUNED", {})
    sweep.end("FINISHED", None)
    assert sweep.close() is None
    (block,) = compare(list(launch.fetch("seeds", mlflow_uri, tmp_path / "got")), replicates=50).blocks
    assert block.varied == ("lora.rank",) and block.tried == 2
    assert block.chosen.score.label == "fedit rank=8" and any("rank=4 has not finished every seed" in r for r in block.remarks)
