"""The ledger, and the search and ranking that are made from it."""

import json
import math

import pytest
from small_runs import settings as tiny_settings

from raylora.core.errors import InputError
from raylora.sweep.ledger import Ledger
from raylora.sweep.search import replayed
from raylora.sweep.space import Sweep
from raylora.sweep.state import state

ENDED = {"kind": "end", "number": 0, "status": "finished", "objective": 0.5}


def sweep(tmp_path, **changes) -> Sweep:
    from raylora import config

    base = config.from_dict(tiny_settings(tmp_path)).as_dict()
    return Sweep.model_validate({"base": base, "space": {"lora.rank": {"grid": [1, 2, 3]}}, **changes})


def chosen(trial) -> dict:
    return {"kind": "trial", "number": trial.number, "values": dict(trial.values), "seed": trial.seed, "config_sha256": ""}


def test_lines_survive_and_a_torn_last_one_is_dropped(tmp_path):
    ledger = Ledger(tmp_path, "a")
    ledger.append(ENDED)
    ledger.close()
    with (tmp_path / "ledger.jsonl").open("ab") as file:
        file.write(b'{"kind": "end", "numb')
    again = Ledger(tmp_path, "a")
    assert again.of("end") == {0: ENDED}
    again.append({**ENDED, "number": 1})
    again.close()
    assert [json.loads(line)["kind"] for line in (tmp_path / "ledger.jsonl").read_text().splitlines()] == ["sweep", "end", "end"]


def test_a_broken_line_in_the_middle_is_not_taken_for_torn(tmp_path):
    ledger = Ledger(tmp_path, "a")
    ledger.append(ENDED)
    ledger.close()
    path = tmp_path / "ledger.jsonl"
    path.write_bytes(b"\x00nonsense\n" + path.read_bytes())
    with pytest.raises(InputError, match="line 1"):
        Ledger(tmp_path, "a")


def test_another_sweep_and_another_process_are_refused(tmp_path):
    ledger = Ledger(tmp_path, "a")
    with pytest.raises(InputError, match="another process"):
        Ledger(tmp_path, "a")
    ledger.close()
    with pytest.raises(InputError, match="another sweep"):
        Ledger(tmp_path, "b")


def test_infinity_is_written_as_a_word(tmp_path):
    ledger = Ledger(tmp_path, "a")
    ledger.append({"kind": "trial", "number": 0, "values": {"strategy.temperature": math.inf}})
    ledger.close()
    assert '"inf"' in (tmp_path / "ledger.jsonl").read_text()


@pytest.mark.parametrize("interrupted_after", range(7))
@pytest.mark.parametrize("kind", ["grid", "random", "optuna"])
def test_a_search_goes_on_where_it_was_interrupted(tmp_path, kind, interrupted_after):
    """Two trials at once; the same trials as without the interruption, whatever had ended by then."""
    about = {"grid": {}, "random": {"kind": "random", "trials": 6}, "optuna": {"kind": "optuna", "trials": 6}}[kind]
    dimensions = {"lora.rank": {"grid": [1, 2, 3]}, "training.lr": {"grid": [0.1, 0.2]}}
    if kind != "grid":
        dimensions = {"lora.rank": {"choice": [1, 2, 3]}, "training.lr": {"loguniform": [0.001, 0.1]}}
    settings = sweep(tmp_path, space=dimensions, search=about)

    def go(folder, stop_at):
        """Asks and tells as two workers would; a trial's result follows from its values."""
        ledger = Ledger(folder, "a")
        search, running = replayed(settings, ledger)
        while True:
            while len(running) < 2 and (trial := search.next()) is not None:
                ledger.append(chosen(trial))
                running.append(trial)
            if not running or len(ledger.of("end")) == stop_at:
                break
            done = running.pop(0)
            result = -abs(math.log(done.values["training.lr"]) + 4) + done.values["lora.rank"]
            ledger.append({"kind": "end", "number": done.number, "status": "finished", "objective": result})
            search.tell(done, result)
        ledger.close()
        return [line["values"] for line in ledger.lines if line["kind"] == "trial"]

    whole = go(tmp_path / "whole", None)
    go(tmp_path / "twice", interrupted_after)
    assert len(whole) == 6
    assert go(tmp_path / "twice", None) == whole


def test_optuna_learns(tmp_path):
    """Of forty suggestions the second half lies nearer to the best value than draws at random would."""
    settings = sweep(tmp_path, space={"training.lr": {"uniform": [0.0, 1.0]}}, search={"kind": "optuna", "trials": 40})
    ledger = Ledger(tmp_path / "sweep", "a")
    search, _ = replayed(settings, ledger)
    distances = []
    while (trial := search.next()) is not None:
        distances.append(abs(trial.values["training.lr"] - 0.3))
        search.tell(trial, -distances[-1])
    ledger.close()
    at_random = (0.3**2 + 0.7**2) / 2  # the expected distance of a uniform draw
    assert sum(distances[20:]) / 20 < 0.6 * at_random


def test_the_best_is_chosen_over_all_seeds_of_a_configuration(tmp_path):
    settings = sweep(tmp_path, seeds=[0, 1])
    ledger = Ledger(tmp_path / "sweep", settings.sha256())
    search, _ = replayed(settings, ledger)
    scores = {0: 0.9, 1: 0.1, 2: 0.6, 3: 0.5, 4: 0.95}
    while (trial := search.next()) is not None:
        ledger.append(chosen(trial))
        if trial.number in scores:
            ledger.append({"kind": "report", "number": trial.number, "round": 2, "objective": scores[trial.number]})
            ledger.append({"kind": "end", "number": trial.number, "status": "finished", "objective": scores[trial.number]})
    found = state(settings, ledger, tmp_path / "sweep", over=False, total=6)
    assert found["best"]["trials"] == [2, 3]  # neither the lucky seed nor the configuration of which one seed is missing
    assert found["best"]["objective"] == pytest.approx(0.55)
    assert found["counts"] == {"finished": 5, "pruned": 0, "failed": 0, "unfinished": 1}
    assert found["configurations_tried"] == 3
    ledger.close()
