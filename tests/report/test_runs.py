import json
from pathlib import Path

import pytest
from make_run import make_run

from raylora.core.errors import InputError
from raylora.report.runs import find_runs, flat, read_run


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "one", own_models=True)


def test_a_run_is_read_whole(folder):
    run = read_run(folder)
    assert (run.task, run.strategy, run.seed, run.finished) == ("segmentation", "fedit", 0, True)
    assert len(run.records("round")) == 5 and len(run.records("client")) == 20
    assert run.test.models == {"frozen", "global", "canon", "ge", "philips", "siemens"}
    assert run.remarks() == ["Synthetic hearts (phantoms): they prove the software, not a ranking of methods."]


def test_final_and_matrix_from_rows_equal_those_of_the_summary(folder):
    run = read_run(folder)
    bare = read_run(folder)
    object.__setattr__(bare, "summary", {k: v for k, v in run.summary.items() if k not in ("final", "cross_client")})
    assert bare.cross_client("dice") == run.summary["cross_client"]
    for part in ("per_client", "frozen", "n"):
        assert bare.final()["dice"][part] == run.summary["final"]["dice"][part]


def test_remarks_of_an_oracle_crop_and_of_seen_cases(tmp_path):
    data = {"data.dataset": [{"dataset": "acdc"}], "data.crop": "label", "data.allow_seen": True}
    said = read_run(make_run(tmp_path / "run", patients=1, config=data)).remarks()
    assert said[0].startswith("Oracle crop") and said[1].startswith("Some cases were seen") and len(said) == 2


def test_a_line_that_was_cut_off_is_left_out_and_a_broken_one_is_named(folder, tmp_path):
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("summary.json", "config.yaml"):
        (copy / name).write_bytes((folder / name).read_bytes())
    (copy / "rounds.jsonl").write_text('{"kind": "round", "round": 0}\n{"kind": "rou')
    assert len(read_run(copy).rounds) == 1
    (copy / "rounds.jsonl").write_text('{"kind": "rou\n{"kind": "round", "round": 0}\n')
    with pytest.raises(InputError, match=r"rounds\.jsonl: line 1 is not JSON"):
        read_run(copy)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("summary.json", None, "expected a run folder with summary.json"),
        ("summary.json", "{", "summary.json: cannot be read"),
        ("summary.json", "[]", "expected one JSON object, found list"),
        ("summary.json", '{"task": "segmentation"}', "'strategy' is not there"),
        ("config.yaml", None, "config.yaml: not there"),
        ("config.yaml", "a: [", "config.yaml: cannot be read"),
        ("config.yaml", "- a", "expected a mapping of sections, found list"),
    ],
)
def test_what_is_no_run_is_refused_in_one_line(folder, tmp_path, name, content, message):
    broken = tmp_path / "broken"
    broken.mkdir()
    for kept in ("summary.json", "config.yaml"):
        if kept != name:
            (broken / kept).write_bytes((folder / kept).read_bytes())
        elif content is not None:
            (broken / kept).write_text(content)
    with pytest.raises(InputError, match=message) as caught:
        read_run(broken)
    assert "\n" not in str(caught.value) and str(broken) in str(caught.value)


def test_a_missing_folder_and_a_file_are_refused(tmp_path):
    with pytest.raises(InputError, match="expected a run folder, found nothing there"):
        read_run(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="expected a run folder, found a file"):
        read_run(tmp_path / "file")


def test_a_broken_table_of_cases_is_named(folder, tmp_path):
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("summary.json", "config.yaml"):
        (copy / name).write_bytes((folder / name).read_bytes())
    (copy / "cases.parquet").write_bytes(b"not parquet")
    with pytest.raises(InputError, match=r"cases\.parquet: cannot be read"):
        _ = read_run(copy).cases


def test_a_sweep_stands_for_its_trials(tmp_path):
    sweep = tmp_path / "sweep"
    (sweep / "trials").mkdir(parents=True)
    (sweep / "sweep.json").write_text(json.dumps({}))
    with pytest.raises(InputError, match="found none that wrote a summary"):
        find_runs([sweep])
    for number in (1, 0):
        make_run(sweep / "trials" / f"{number:03d}", patients=1, seed=number)
    assert [run.seed for run in find_runs([sweep])] == [0, 1]


def test_flat_keys():
    assert flat({"z": 0, "a": {"y": 0, "b": {"c": 1}, "d": [1, 2]}, "e": {}}) == {"z": 0, "a.y": 0, "a.b.c": 1, "a.d": [1, 2], "e": {}}
