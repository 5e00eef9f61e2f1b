import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from make_run import make_run

from raylora.core.errors import InputError
from raylora.report.runs import find_runs, read_run

OUTSIDE = json.dumps({"task": "disease", "strategy": "a", "seed": 0, "clients": [], "status": "finished", "data_sha256": "../../x"})


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


def test_what_the_terminal_said_of_the_patients_is_on_every_page(tmp_path):
    folder = make_run(tmp_path / "run", patients=1)
    summary = json.loads((folder / "summary.json").read_text()) | {"notes": ["2 studies left out: no centre is known"]}
    (folder / "summary.json").write_text(json.dumps(summary))
    assert read_run(folder).remarks()[-1] == "2 studies left out: no centre is known."


def test_remarks_of_an_oracle_crop_and_of_seen_cases(tmp_path):
    data = {"data.dataset": [{"dataset": "acdc"}], "data.crop": "label", "data.allow_seen": True}
    said = read_run(make_run(tmp_path / "run", patients=1, config=data)).remarks()
    assert said[0].startswith("Oracle crop") and said[1].startswith("Some cases were seen") and len(said) == 2


@pytest.mark.parametrize("seen", [[], ["A0S9V9"]])
def test_that_seen_cases_were_allowed_does_not_say_that_there_were_any(tmp_path, seen):
    folder = make_run(tmp_path / "run", patients=1, config={"data.dataset": "acdc", "data.allow_seen": True})
    summary = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").write_text(json.dumps({**summary, "base": {"weights": "x", "has_seen": seen}}))
    assert [text[:20] for text in read_run(folder).remarks()] == ["Some cases were seen"] * len(seen)


@pytest.mark.parametrize("data", [3, {"dataset": ["x"]}, {"dataset": 3}])
def test_a_configuration_that_was_altered_is_refused(folder, tmp_path, data):
    config = yaml.safe_load((folder / "config.yaml").read_text())
    (tmp_path / "summary.json").write_bytes((folder / "summary.json").read_bytes())
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({**config, "data": data}))
    with pytest.raises(InputError, match="config.yaml: data: expected the section of a run's configuration"):
        read_run(tmp_path)


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
        ("summary.json", "{", "summary.json: not JSON"),
        ("summary.json", "[]", "expected one JSON object, found list"),
        ("summary.json", '{"task": "segmentation"}', "'strategy' is not there"),
        ("summary.json", OUTSIDE, "data_sha256: expected hexadecimal digits, found '../../x'"),
        ("summary.json", b"\x80\x00\xff", "summary.json: not JSON"),
        ("rounds.jsonl", b"\x80\x00\xff", "rounds.jsonl: cannot be read"),
        ("rounds.jsonl", "[1]\n", "rounds.jsonl: line 1: expected an object with a whole number 'round'"),
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
    if content is not None:
        (broken / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=message) as caught:
        read_run(broken)
    assert "\n" not in str(caught.value) and str(broken) in str(caught.value)


@pytest.mark.parametrize("text", ["seed: !!timestamp foo", "a: " + "[" * 3000, "strategy: fedit"])
def test_a_configuration_that_is_none_is_refused(folder, tmp_path, text):
    for kept in ("summary.json", "rounds.jsonl"):
        (tmp_path / kept).write_bytes((folder / kept).read_bytes())
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(InputError, match=r"config.yaml: (cannot be read|strategy: expected the section)"):
        read_run(tmp_path)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("seed", "x", "seed: expected a whole number, found 'x'"),
        ("seed", True, "seed: expected a whole number, found 'True'"),
        ("clients", 7, "clients: expected a list, found '7'"),
        ("clients", [1], "clients: expected their ids"),
        ("task", "sorting", "task: expected segmentation or disease, found 'sorting'"),
        ("final", [], "final: expected an object"),
        ("final", {"dice": 3}, "final.dice: expected an object with mean, pooled, frozen and n, found '3'"),
        ("bytes_up", "many", "bytes_up: expected a number, found 'many'"),
        ("clients", [], "clients: expected at least one of a finished run"),
        ("crop", 3, "crop: expected a list, found '3'"),
        ("code", 3, "code: expected an object"),
        ("base", {"has_seen": 3}, "base.has_seen: expected a list of patients, found '3'"),
        ("cross_client", {"metric": "dice"}, "cross_client: expected lists of rows, columns and values"),
        ("patients", {"GE": 3}, "patients.GE: expected an object, found '3'"),
        ("patients", {"GE": {"test": "x"}}, "patients.GE: expected a number a part"),
        ("notes", [3], r"notes: expected sentences, found '\[3\]'"),
        ("faults", {"GE": 3}, "faults.GE: expected an object"),
        ("by_dataset", {"dice": {"x": 3}}, "by_dataset.dice: expected an object"),
        ("actors", [3], "actors: expected a list of objects"),
        ("final", {"dice": {"per_client": {"GE": "x"}}}, "final.dice.per_client: expected a number a client"),
        ("final", {"dice": {"ci95": [1]}}, r"final.dice.ci95: expected two numbers, found '\[1\]'"),
    ],
)
def test_a_summary_that_was_altered_is_refused_by_key(folder, tmp_path, key, value, message):
    summary = json.loads((folder / "summary.json").read_text())
    (tmp_path / "config.yaml").write_bytes((folder / "config.yaml").read_bytes())
    (tmp_path / "summary.json").write_text(json.dumps({**summary, key: value}))
    with pytest.raises(InputError, match=message):
        read_run(tmp_path)


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
    with pytest.raises(InputError, match=r"cases\.parquet: not there"):
        _ = read_run(copy).cases
    rows = pq.read_table(folder / "cases.parquet")
    texts = rows.set_column(8, "value", pa.array(["x"] * len(rows)))
    for broken in (b"not parquet", (folder / "cases.parquet").read_bytes()[:-9], rows.drop_columns(["patient"]), texts, rows.slice(0, 0)):
        if isinstance(broken, bytes):
            (copy / "cases.parquet").write_bytes(broken)
        else:
            pq.write_table(broken, copy / "cases.parquet")
        with pytest.raises(InputError, match=r"cases\.parquet: not the cases of a run"):
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
