"""A run folder that somebody has altered is not gone on with, and the message says what is missing."""

import json
import shutil

import pyarrow.parquet as pq
import pytest
from small_runs import run, tiny

from raylora.core.errors import InputError


@pytest.fixture(scope="module")
def to_alter(prepared_folder, tmp_path_factory):
    """(configuration, folder of a run of three rounds): copy it, never write to it."""
    config = tiny(prepared_folder, "disease", training__rounds=3, checkpoint={"keep": "all"})
    return config, run(config, tmp_path_factory.mktemp("to_alter") / "run").folder


def first_lines(folder, change):
    path = folder / "rounds.jsonl"
    path.write_text("".join(change(path.read_text().splitlines(keepends=True))))


def patients(folder, change):
    path = folder / "patients.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


ALTERED = {
    "lines lost": (lambda f: first_lines(f, lambda lines: lines[5:]), r"rounds.jsonl: has 10 lines, 15 were there after round 3: bring"),
    "no record": (lambda f: (f / "rounds.jsonl").unlink(), r"rounds.jsonl: has 0 lines, 15 were there"),
    "a torn line": (
        lambda f: first_lines(f, lambda lines: [lines[0][:40] + "\n", *lines[1:]]),
        r"not as the run left it \(JSONDecodeError",
    ),
    "other lines": (lambda f: first_lines(f, lambda lines: ["{}\n"] * len(lines)), r"not as the run left it \(KeyError: 'round'\)"),
    "scores lost": (lambda f: (f / "checkpoints/cases/000001.parquet").unlink(), r"cases: the scores of round 2 are not there: bring"),
    "no id": (lambda f: patients(f, lambda found: {**found, "patients": [{}]}), r"not as the run left it \(KeyError: 'id'\): bring"),
    "began in words": (lambda f: patients(f, lambda found: {**found, "began": "today"}), r"not as the run left it \(AttributeError"),
}


@pytest.mark.parametrize("what", ALTERED)
def test_what_was_altered_is_not_gone_on_with(to_alter, tmp_path, what):
    config, folder = to_alter
    shutil.copytree(folder, tmp_path / "run")
    alter, said = ALTERED[what]
    alter(tmp_path / "run")
    with pytest.raises(InputError, match=said) as caught:
        run(config, tmp_path / "run", resume=True)
    assert "\n" not in str(caught.value) and str(tmp_path / "run") in str(caught.value)


def test_a_copy_beside_the_scores_is_not_read(to_alter, tmp_path):
    config, folder = to_alter
    shutil.copytree(folder, tmp_path / "run")
    cases = tmp_path / "run" / "checkpoints" / "cases"
    shutil.copy(cases / "000001.parquet", cases / "000001 (copy).parquet")
    found = run(config, tmp_path / "run", resume=True)
    assert pq.read_table(found.folder / "cases.parquet").equals(pq.read_table(folder / "cases.parquet"))
