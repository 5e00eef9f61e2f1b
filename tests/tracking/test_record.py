"""The record of a run: lines as they happen, rows at the end, and JSON that any parser takes."""

import json
import math

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raylora.core.files import without_nan, write_json
from raylora.tracking.record import CASES, MERGED, Record

ROW = (0, "validation", "global", "GE", "p1", "ED", "LV", "dice", 0.5)


def read(folder):
    return [json.loads(line, parse_constant=pytest.fail) for line in (folder / "rounds.jsonl").read_text().splitlines()]


VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text()),
    lambda inner: st.one_of(st.lists(inner), st.dictionaries(st.text(), inner)),
)


@settings(deadline=None, max_examples=50)
@given(VALUES)
def test_json_holds_no_nan(value):
    text = json.dumps(without_nan(value), allow_nan=False)
    assert without_nan(json.loads(text)) == json.loads(text)


def test_infinity_and_nan_become_null_and_nothing_else_changes():
    value = {"a": [1.5, math.nan, (math.inf, -math.inf)], "b": {1: True, "c": "nan"}, "d": None}
    assert without_nan(value) == {"a": [1.5, None, [None, None]], "b": {"1": True, "c": "nan"}, "d": None}


def test_lines_are_there_as_soon_as_they_are_written(tmp_path):
    record = Record(tmp_path)
    record.append([{"kind": "client", "round": 0, "loss": math.nan}, {"kind": "round", "round": 0}])
    assert read(tmp_path) == [{"kind": "client", "round": 0, "loss": None}, {"kind": "round", "round": 0}] and record.rows == 2
    assert Record(tmp_path).rows == 2


def test_rewinding_forgets_what_came_later(tmp_path):
    record = Record(tmp_path)
    for t in range(3):
        record.append([{"kind": "round", "round": t}])
        record.keep_cases(t, [(t, *ROW[1:])])
    record.rewind(2, 2)
    record.append([{"kind": "round", "round": 2, "again": True}])
    assert [line["round"] for line in read(tmp_path)] == [0, 1, 2] and read(tmp_path)[-1]["again"] and record.rows == 3
    assert [row[0] for row in record.write_cases([])] == [0, 1]


def test_a_long_run_leaves_few_files_and_rewinds_into_them(tmp_path):
    record, rounds = Record(tmp_path), 3 * MERGED + 2
    for t in range(rounds):
        record.keep_cases(t, [(t, *ROW[1:]), (t, *ROW[1:4], "p2", *ROW[5:])])
    record.keep_cases(rounds, [(rounds - 1, *ROW[1:2], "frozen", *ROW[3:])])  # under the next number, as the end of a run does
    assert len(list(record.parts.iterdir())) == 3 + 3
    whole = record.write_cases([])
    assert [row[0] for row in whole] == [t for t in range(rounds) for _ in range(2)] + [rounds - 1]
    again = Record(tmp_path)
    for back in (rounds, 2 * MERGED, 2 * MERGED - 5, MERGED + 1, 0):
        again.rewind(0, back)
        assert again.write_cases([]) == whole[: 2 * back], back
    again.keep_cases(0, [whole[0]])
    assert again.write_cases([]) == whole[:1]


def test_a_merge_that_was_interrupted_counts_nothing_twice(tmp_path):
    record = Record(tmp_path)
    for t in range(MERGED):
        record.keep_cases(t, [(t, *ROW[1:])])
    single = record.parts / "000003.parquet"
    data = single.read_bytes()
    record.keep_cases(MERGED, [(MERGED, *ROW[1:])])
    assert not single.exists()
    single.write_bytes(data)
    assert [row[0] for row in Record(tmp_path).write_cases([])] == list(range(MERGED + 1))


def test_a_torn_last_line_goes_with_the_rewind(tmp_path):
    record = Record(tmp_path)
    record.append([{"round": 0}, {"round": 1}])
    with (tmp_path / "rounds.jsonl").open("a") as file:
        file.write('{"round": 2, "lo')
    again = Record(tmp_path)
    again.rewind(2, 2)
    again.append([{"round": 2}])
    assert read(tmp_path) == [{"round": 0}, {"round": 1}, {"round": 2}]


def test_case_rows_keep_their_columns_and_types(tmp_path):
    record = Record(tmp_path)
    record.keep_cases(0, [ROW])
    record.keep_cases(1, [])
    rows = record.write_cases([(1, "test", *ROW[2:])])
    assert rows == [ROW, (1, "test", *ROW[2:])]
    assert record.write_cases([(1, "test", *ROW[2:])]) == rows, "twice is once"
    table = pq.read_table(tmp_path / "cases.parquet")
    assert table.schema.equals(CASES) and [tuple(row.values()) for row in table.to_pylist()] == rows
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cases.parquet", "checkpoints"]


def test_json_files_appear_whole(tmp_path, monkeypatch):
    write_json(tmp_path / "s.json", {"a": math.inf})
    assert json.loads((tmp_path / "s.json").read_text()) == {"a": None}
    with pytest.raises(TypeError):
        write_json(tmp_path / "s.json", {"a": object()})
    assert json.loads((tmp_path / "s.json").read_text()) == {"a": None} and [path.name for path in tmp_path.iterdir()] == ["s.json"]
