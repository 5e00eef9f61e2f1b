"""The benchmark of a sweep that shares features, on a model that takes no time."""

import json

import pytest
from here import without_ray
from small_runs import settings

from benchmarks import cached_sweep
from raylora import cli
from raylora.core.errors import RunError


def test_its_trials_are_the_runs_or_nothing_is_said(tmp_path, monkeypatch, prepared_folder):
    without_ray(monkeypatch.setattr)
    monkeypatch.setitem(cached_sweep.SMALL, "data", settings(prepared_folder, "disease")["data"])  # phantoms take longer than all the rest

    def command(*words) -> float:
        assert cli.guarded(lambda: cli.app([*map(str, words)], standalone_mode=False)) == 0
        return 3.0

    monkeypatch.setattr(cached_sweep, "raylora", command)
    (tmp_path / "first").mkdir()
    found = cached_sweep.measure(tmp_path / "first", small=True)
    assert found["trials"] == 1 and (found["seconds_of_runs"], found["seconds_of_sweeps"], found["part"]) == (3.0, [3.0], 1.0)
    assert {path.parent.name for path in tmp_path.glob("first/*/features") if any(path.rglob("*.arrow"))} == {"cache-0"}
    assert json.dumps(found)


@pytest.mark.parametrize(("cached", "plain"), [({}, {"000": "a"}), ({"000": "b"}, {"000": "c"})])
def test_other_trials_than_the_runs_are_not_measured(cached, plain):
    cached_sweep.check(1, {"000": "b"}, {"000": "a"}, {"000": "a"})
    with pytest.raises(RunError, match="nothing was measured"):
        cached_sweep.check(1, cached, {"000": "a"}, plain)
