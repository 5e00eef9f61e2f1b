import base64
import io
import json

import pytest
from make_run import make_run
from page_reader import Page, assert_self_contained
from PIL import Image

from raylora.report.html import write_report
from raylora.report.tables import headline


@pytest.fixture
def tiny_pictures(monkeypatch):
    """Pages without the time that drawing takes."""
    one = io.BytesIO()
    Image.new("RGB", (3, 2)).save(one, format="png")
    monkeypatch.setattr("raylora.report.html.png", lambda picture: one.getvalue())


@pytest.mark.slow
def test_the_page_of_a_run_is_whole_and_alone(tmp_path):
    folder = make_run(tmp_path / "run", strategy="rate_my_lora", own_models=True, pictures=True)
    path = write_report(folder)
    assert path == folder / "report.html"
    page = Page(path)
    assert_self_contained(page)
    final = json.loads((folder / "summary.json").read_text())["final"]["dice"]
    low, high = final["ci95"]
    assert f"After 5 rounds the mean Dice over 4 clients is {final['mean']:.3f} (95 % interval {low:.3f} to {high:.3f})" in page.text
    assert f"{final['mean']:.3f} [{low:.3f}, {high:.3f}]" in page.text
    assert "Synthetic hearts" in page.text
    names = {"learning_curves", "weights", "cross_client", "bytes", "overlays"}
    assert {p.stem for p in (folder / "plots").glob("*.png")} == names
    assert [image.get("class") for image in page.all("img")] == ["light"] * 4 + [None], "overlays are dark on every page"
    assert not list(folder.glob(".*.part"))


def test_the_page_of_a_disease_run_and_its_csv_links(tmp_path, tiny_pictures):
    folder = make_run(tmp_path / "run", task="disease", strategy="med_duallora", rounds=2)
    page = Page(write_report(folder))
    assert_self_contained(page)
    assert "Balanced accuracy, tuned" in page.text
    link = next(a["href"] for a in page.all("a") if a.get("download") == "scores_1.csv")
    rows = base64.b64decode(link.split(",", 1)[1]).decode().splitlines()
    assert rows[0].startswith("Metric,Mean [95 %],Mean [95 %] low,Mean [95 %] high,Mean [95 %] n,Frozen")
    assert rows[1].split(",")[0] == "Balanced accuracy"


def test_the_sentence_counts_the_clients_that_are_in_the_mean():
    own = {"a": 0.8, "b": 0.9, "c": None}
    block = {"mean": 0.85, "pooled": 0.85, "ci95": None, "n": 20, "frozen": None, "per_client": own}
    said = headline({"task": "disease", "rounds": 3, "clients": list(own), "status": "finished"}, {"balanced_accuracy": block})
    assert "over 2 of 3 clients is 0.850" in said
    whole = {**block, "per_client": {**own, "c": 0.85}}
    assert "over 3 clients is" in headline(
        {"task": "disease", "rounds": 3, "clients": list(own), "status": "finished"}, {"balanced_accuracy": whole}
    )


def test_names_from_the_configuration_are_words_and_never_markup(tmp_path, tiny_pictures):
    folder = make_run(tmp_path / "run", rounds=1, patients=2, clients=("<img src=x>", "b"), strategy="<script>alert(1)</script>")
    page = Page(write_report(folder))
    assert_self_contained(page)
    assert "<script>alert(1)</script>" in page.text and "<img src=x>" in page.text
    assert len(page.all("script")) == 1


def test_a_failed_run_gets_a_page_that_says_so(tmp_path, tiny_pictures):
    folder = make_run(tmp_path / "run", status="failed", rounds=1, patients=1)
    summary = json.loads((folder / "summary.json").read_text())
    del summary["final"], summary["cross_client"]
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "cases.parquet").unlink()
    page = Page(write_report(folder))
    assert "This run has no test score (status: failed)." in page.text
    assert "Test scores" not in page.text
