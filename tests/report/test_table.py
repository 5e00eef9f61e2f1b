import io

import pytest
from rich.console import Console

from raylora.report.table import (
    NO_INTERVAL,
    Estimate,
    Table,
    bytes_text,
    decimal,
    estimate,
    file_name,
    p_text,
    print_table,
    rich_table,
    seconds_text,
    signed,
    to_csv,
    to_markdown,
    whole,
    words,
)
from raylora.report.tables import client_table, final_table

TABLE = Table(
    "Scores & more",
    (words("Name"), estimate("Dice"), decimal("Hidden", essential=False), estimate("Cross [95 %]", brief="Cross"), whole("n")),
    (("a [b]", Estimate(0.8731, 0.8612, 0.8849, 20), 0.5, Estimate(0.8, 0.7, 0.9), 20), ("c", Estimate(None), float("nan"), None, None)),
    note="First. Second.",
)


def test_texts_and_missing_values():
    assert list(TABLE.texts()) == [
        ["a [b]", "0.873 [0.861, 0.885]", "0.500", "0.800 [0.700, 0.900]", "20"],
        ["c", "n/a", "n/a", "n/a", "n/a"],
    ]


def test_csv_keeps_full_numbers_and_leaves_missing_cells_empty():
    assert to_csv(TABLE).splitlines() == [
        "Name,Dice,Dice low,Dice high,Dice n,Hidden,Cross [95 %],Cross [95 %] low,Cross [95 %] high,Cross [95 %] n,n",
        "a [b],0.8731,0.8612,0.8849,20,0.5,0.8,0.7,0.9,,20",
        "c,,,,,,,,,,",
    ]


def test_terminal_shows_essential_columns_and_brackets_as_they_are():
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(rich_table(TABLE))
    text = console.export_text()
    assert "a [b]" in text and "0.873 [0.861, 0.885]" in text and "n/a" in text and "First" in text
    assert "Hidden" not in text and "[0.700, 0.900]" not in text and "Second" not in text


@pytest.mark.parametrize("width", [30, 50, 80])
def test_a_table_that_is_wider_than_the_terminal_is_shown_whole(width):
    columns = (words("Configuration"), *(whole(f"Number {i}") for i in range(8)))
    wide = Table("Scores [of all]", columns, (("fedit", *(1_234_500 + i for i in range(8))),))
    console = Console(width=width, record=True, file=io.StringIO())
    print_table(console, wide)
    text = console.export_text()
    assert "Scores [of all]" in text and "fedit" in text and all(f"1,234,50{i}" in text for i in range(8))


@pytest.mark.parametrize("width", [40, 80, 107, 140])
def test_long_heads_and_long_words_take_nothing_away(width):
    columns = (words("Client"), *(whole(f"Validation, diseased {i}") for i in range(6)), words("What differs"))
    long = "targets=[qkv,proj,fc1,fc2,qkv,proj,fc1,fc2,qkv,proj]"
    console = Console(width=width, record=True, file=io.StringIO())
    print_table(console, Table("Plan", columns, (("site_a", *range(6), long),)))
    text = console.export_text()
    assert "site_a" in text and text.count("Validation") == text.count("diseased") == 6
    rows = [line for line in text.splitlines() if "Validation" not in line]
    assert long in "".join(line.rsplit(" ", 1)[-1] if line.split() else "" for line in (row.rstrip() for row in rows))
    assert max(len(line.rstrip()) for line in text.splitlines()) <= max(width, 120)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (999_700, "1 MB"),
        (1_800_000, "1.8 MB"),
        (28_000_000, "28 MB"),
        (1_008_000_000, "1.01 GB"),
        (2.5e12, "2.5 TB"),
    ],
)
def test_bytes_in_decimal_units(value, text):
    assert bytes_text(value) == text


@pytest.mark.parametrize(("value", "text"), [(1.234, "1.2 s"), (61.5, "62 s"), (150, "2.5 min"), (7300, "2.0 h")])
def test_seconds(value, text):
    assert seconds_text(value) == text


def test_p_values_signs_and_file_names():
    assert p_text(0.0004) == "< 0.001" and p_text(0.0312) == "0.031"
    assert signed("d").text(Estimate(0.01, -0.002, 0.022)) == "+0.010 [-0.002, +0.022]"
    assert file_name(TABLE) == "scores___more"


def test_markdown_reads_as_the_table_does():
    assert to_markdown(TABLE).splitlines() == [
        "| Name | Dice | Hidden | Cross [95 %] | n |",
        "| --- | ---: | ---: | ---: | ---: |",
        "| a [b] | 0.873 [0.861, 0.885] | 0.500 | 0.800 [0.700, 0.900] | 20 |",
        "| c | n/a | n/a | n/a | n/a |",
    ]


def test_a_score_without_an_interval_says_why():
    block = {"mean": 0.8, "pooled": 0.8, "ci95": None, "n": 4, "frozen": 0.5, "per_client": {}}
    said = {ci: final_table({"dice": {**block, "ci95": ci and list(ci)}}, "segmentation") for ci in (None, (0.7, 0.9))}
    assert NO_INTERVAL in rich_table(said[None]).caption and NO_INTERVAL not in rich_table(said[0.7, 0.9]).caption
    assert NO_INTERVAL in said[None].note and next(said[None].texts())[1] == "0.800"
    assert NO_INTERVAL not in said[0.7, 0.9].note and next(said[0.7, 0.9].texts())[1] == "0.800 [0.700, 0.900]"


def test_clients_behind_a_score_are_counted_where_some_lack_it_and_each_ones_patients_stand_beside_its_scores():
    block = {"mean": 0.8, "pooled": 0.8, "ci95": None, "n": 4, "frozen": 0.5, "per_client": {"a": 0.8, "b": None}}
    final = {"balanced_accuracy": {**block, "per_client": {"a": 0.8, "b": 0.7}}, "balanced_accuracy_tuned": block}
    names = [row[0] for row in final_table(final, "disease").rows]
    assert names == ["Balanced accuracy", "Balanced accuracy, tuned (1 of 2 clients)"]
    table = client_table(final, "disease", ["a", "b"], {"a": {"train": 9, "validation": 1, "test": 3}})
    assert [row[:4] for row in table.rows] == [("a", 9, 1, 3), ("b", None, None, None)] and table.columns[3].name == "Test patients"
    assert len(client_table(final, "disease", ["a"], {}).columns) == 3
