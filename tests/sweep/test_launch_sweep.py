"""A sweep as the command starts it, its trials one after the other in this process."""

import json

import pytest
import yaml
from here import without_ray
from small_runs import settings

from raylora import config as configuration
from raylora import launch_sweep
from raylora.cluster import sweep as tune


def write(folder, root, **changes):
    (folder / "base.yaml").write_text(yaml.safe_dump(settings(root, "disease", training__rounds=1, placement__clients_per_actor=4)))
    values = {
        "name": "some",
        "base": "base.yaml",
        "space": {"lora.rank": {"grid": [1, 2]}},
        "objective": {"metric": "likelihood"},
        **changes,
    }
    (folder / "sweep.yaml").write_text(yaml.safe_dump(values))
    return folder / "sweep.yaml"


def test_a_path_that_is_swept_is_found_from_where_the_sweep_was_called(prepared_folder, tmp_path, monkeypatch):
    without_ray(monkeypatch.setattr)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hearts").symlink_to(prepared_folder)
    out, found = launch_sweep.sweep(write(tmp_path, prepared_folder, space={"data.root": {"grid": ["hearts"]}}), (), tmp_path / "out")
    assert found["status"] == "finished"
    assert configuration.load(out / "trials" / "000" / "config.yaml").data.root == str(prepared_folder.resolve())


def test_what_was_interrupted_says_that_it_has_stopped(prepared_folder, tmp_path, monkeypatch):
    """`upload` and `compare` take what there is of it."""
    without_ray(monkeypatch.setattr)
    run = tune.run

    def interrupted(ledger, search, unfinished, *rest, told, **options):
        def ended(what, trial, result):
            told(what, trial, result)
            if what == "finished":
                raise KeyboardInterrupt

        run(ledger, search, unfinished, *rest, told=ended, **options)

    monkeypatch.setattr(tune, "run", interrupted)
    path = write(tmp_path, prepared_folder)
    with pytest.raises(KeyboardInterrupt):
        launch_sweep.sweep(path, (), tmp_path / "out")
    found = json.loads((tmp_path / "out" / "sweep.json").read_text())
    assert (found["status"], found["counts"]["finished"], found["trials_planned"]) == ("stopped", 1, 2)
    monkeypatch.setattr(tune, "run", run)
    assert launch_sweep.sweep(path, (), tmp_path / "out")[1]["status"] == "finished"
