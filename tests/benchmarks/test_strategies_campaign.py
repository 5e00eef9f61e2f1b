"""The comparison of strategies, small: every row runs, goes on where it was left, and its table says what the run folders hold."""

import json
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from small_runs import settings

from benchmarks import strategies
from raylora.core.types import Client
from raylora.method import make_strategy
from raylora.strategies import STRATEGIES, toy
from raylora.training.local import phase_ends


def test_every_strategy_of_the_registry_has_a_row():
    assert {strategies.configuration.load(strategies.CONFIGS / f"{entry}.yaml").strategy.name for entry in strategies.entries()} == set(
        STRATEGIES
    )
    assert {"fedit_rating", "rate_my_lora_shuffled", "local", "centralised", "fedavg_full"} <= set(strategies.entries())


def test_all_rows_have_the_same_budget(tmp_path):
    """Same data, rounds and ranks; two adapters share the rank, the pooled client takes the steps of all."""
    for task in strategies.TASKS:
        studies = {
            e: strategies.Study(task=task, entry=e, folder=tmp_path, data="", rates=(1.0,), seeds=(0,)).config(1.0, 0)
            for e in strategies.entries()
        }
        base = studies["fedit"]
        for entry, config in studies.items():
            assert (
                config.data.model_copy(update={"rating_to_training": False}) == base.data and config.training.rounds == base.training.rounds
            )
            trained = 2 if entry in ("feddpa", "med_duallora", "sdflora") else 1  # FedALT's second adapter is the others' mean: not trained
            assert config.lora.rank * trained == base.lora.rank, entry
            assert config.lora.alpha / config.lora.rank == base.lora.alpha / base.lora.rank
            clients = 4 if entry == "centralised" else 1
            assert config.training.local_steps == clients * base.training.local_steps, entry


def test_a_small_campaign_has_steps_for_every_phase(tmp_path):
    (steps,) = (int(word.partition("=")[2]) for word in strategies.SMALL if word.startswith("training.local_steps"))
    for entry in strategies.entries():
        strategy = make_strategy(
            strategies.Study(task="disease", entry=entry, folder=tmp_path, data="", rates=(1.0,), seeds=(0,)).config(1.0, 0)
        )
        game = toy.start(strategy, 2)
        phases = strategy.broadcast(game.state, Client(id="a", num_examples=1, rank=2)).task.phases
        assert 0 not in np.diff([0, *phase_ends(phases, steps)]), entry


@pytest.mark.parametrize(
    ("scores", "chosen", "edge"), [([0.5, 0.8, 0.7], 1.0, False), ([None, 0.5, 0.9], 2.0, True), ([0.6, 0.6, 0.1], 0.5, True)]
)
def test_the_rate_is_the_best_on_validation_patients_and_test_patients_come_after_it(tmp_path, monkeypatch, scores, chosen, edge):
    rates, done = (0.5, 1.0, 2.0), []
    study = strategies.Study(task="disease", entry="fedit", folder=tmp_path, data="", rates=rates, seeds=(0, 1))
    folders = {study.run_folder(rate, 0): score for rate, score in zip(rates, scores, strict=True)}

    def run(config, folder, data, *, test):
        folder.mkdir(parents=True, exist_ok=True)
        done.append((folder, test))

    monkeypatch.setattr(strategies, "run", run)
    monkeypatch.setattr(strategies, "validation", lambda task, folder: folders[folder])
    strategies.conduct(study)
    assert done == [(folder, False) for folder in folders] + [(study.run_folder(chosen, seed), True) for seed in (0, 1)]
    told = json.loads((tmp_path / "disease" / "fedit" / "study.json").read_text())
    assert told["edge"] is edge and list(told["tried"].values()) == scores and told["lr"] == study.config(chosen, 0).training.lr


class Here(ThreadPoolExecutor):
    """In place of processes, which take longer to start than these runs."""

    def __init__(self, jobs, mp_context):
        super().__init__(jobs)


@pytest.mark.slow
def test_a_small_campaign_ends_with_its_table_and_goes_on_where_it_was_left(tmp_path, monkeypatch, capsys, prepared_folder):
    """On the tests' own studies: phantoms take longer than all the rest."""
    data = {"phantom": None, "crop": "centre", **settings(prepared_folder, "disease")["data"]}
    own = [f"data.{key}={json.dumps(value)}" for key, value in data.items() if value is not None]
    small = (*strategies.SMALL[1:], *own, "model.sizes={depth: 2, width: 16, heads: 2, patch: [8, 8, 2]}", "model.weights=null")
    monkeypatch.setattr(strategies, "SMALL", small)
    monkeypatch.setattr(strategies, "ProcessPoolExecutor", Here)
    monkeypatch.setattr(
        sys, "argv", ["strategies", "--small", "--only", "local", "--task", "disease", "--runs", str(tmp_path), "--jobs", "1"]
    )
    strategies.main()
    said = capsys.readouterr().out
    assert "[2/2] disease fedit" in said and "Strategies on disease" in said
    result = json.loads((tmp_path / "disease.json").read_text())
    rows = {row["entry"]: row for row in result["rows"]}
    assert set(rows) == {"local", "fedit"} and rows["fedit"]["pair"] is None
    summary = json.loads((tmp_path / rows["local"]["study"]["runs"][0] / "summary.json").read_text())
    assert rows["local"]["score"]["in_client"]["value"] == pytest.approx(summary["final"]["balanced_accuracy"]["mean"])
    assert rows["local"]["score"]["bytes_up"] == summary["bytes_up"]
    assert "| local |" in (tmp_path / "disease.md").read_text() and (tmp_path / "strategies.png").stat().st_size > 5000
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("summary.json")}
    strategies.main()
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("summary.json")} == times and len(times) == 2
