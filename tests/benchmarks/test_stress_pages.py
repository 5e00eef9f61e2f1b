"""The ready campaigns on the tiny cohort: one is run from its file to its Markdown."""

import json

import pytest
from here import without_ray
from small_runs import settings

from benchmarks import stress_pages
from raylora import stress
from raylora.core.errors import InputError


def call(monkeypatch, *words) -> None:
    monkeypatch.setattr("sys.argv", ["stress_pages", *map(str, words)])
    stress_pages.main()


@pytest.mark.slow
def test_a_ready_campaign_is_run_and_written_down(prepared_folder, tmp_path, monkeypatch):
    """Byzantine clients: of each method the page says the heights at both levels, and against the plain mean."""
    without_ray(monkeypatch.setattr)
    tiny = settings(prepared_folder)
    ready = stress.load(stress_pages.CONFIGS / "byzantine.yaml").strategies
    assert len(ready) == 4
    two = {label: ready[label] for label in list(ready)[:2]}
    sections = [f"{key}={json.dumps(value)}" for key, value in {"data": tiny["data"], "model": tiny["model"], "strategies": two}.items()]
    quick = [
        *sections,
        "seeds=[0]",
        "training.rounds=1",
        "training.local_steps=1",
        "evaluation.bootstrap=50",
        "data.crop=centre",
        "model.weights=null",
    ]
    call(
        monkeypatch,
        "byzantine",
        "--runs",
        tmp_path / "runs",
        "--output",
        tmp_path / "results",
        *(w for q in quick for w in ("--override", q)),
    )
    text = (tmp_path / "results" / "byzantine.md").read_text()
    assert text.startswith("# stress_byzantine\n") and "4 experiments" in text
    for label in two:
        assert f"\n| {label} | " in text and f"- {label}: Dice " in text
    assert (tmp_path / "runs" / "byzantine" / "stress.html").is_file()


def test_a_name_that_is_none_of_them_is_refused(monkeypatch):
    with pytest.raises(InputError, match=r"^expected names of ready campaigns \(byzantine, .*\), found nothing$"):
        call(monkeypatch, "nothing")
