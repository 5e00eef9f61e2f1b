"""The ledger, and the search and ranking that are made from it."""

import contextlib
import json
import math
from types import SimpleNamespace

import pytest
from small_runs import settings as tiny_settings

from raylora.core.errors import InputError, RunError
from raylora.sweep.ledger import Ledger, pruned_after
from raylora.sweep.search import replayed
from raylora.sweep.space import Sweep
from raylora.sweep.state import best, state

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


def test_a_full_disk_is_said_with_what_to_do(tmp_path):
    """And not once more, without it, as the ledger is closed."""
    with pytest.raises(RunError, match="the same command goes on"), contextlib.closing(Ledger(tmp_path, "a")) as ledger:
        ledger._file.close()
        ledger._file = open("/dev/full", "ab")
        ledger.append(ENDED)


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


@pytest.mark.parametrize("kind", ["random", "optuna"])
def test_a_limit_below_what_was_begun_takes_no_more(tmp_path, kind):
    about = {"space": {"training.lr": {"uniform": [0.1, 1.0]}}, "search": {"kind": kind, "trials": 6}, "seeds": [0, 1]}
    ledger = Ledger(tmp_path / "sweep", "a")
    search, _ = replayed(sweep(tmp_path, **about), ledger)
    for _ in range(5):
        ledger.append(chosen(search.next()))
    for number in (0, 1, 3):
        ledger.append({"kind": "end", "number": number, "status": "finished", "objective": 0.5})
    search, running = replayed(sweep(tmp_path, **about, limits={"trials": 2}), ledger)
    assert search.next() is None and [trial.number for trial in running] == [2, 4]
    for trial in running:
        search.tell(trial, 0.5)
    again, _ = replayed(sweep(tmp_path, **about), ledger)
    assert again.next().number == 5
    ledger.close()


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
    known = {row["number"]: {**row, "error": "as it was"} for row in found["trials"] if row["status"] != "unfinished"}
    again = state(settings, ledger, tmp_path / "sweep", over=False, total=6, known=known)
    assert [row["error"] for row in again["trials"]] == ["as it was"] * 5 + [None], "what had ended is not read again"
    assert {**again, "trials": 0} == {**found, "trials": 0}
    ledger.close()


def test_a_configuration_that_was_drawn_twice_counts_once():
    def row(number, rank, objective, seed=0, status="finished"):
        return {"number": number, "values": {"lora.rank": rank}, "seed": seed, "status": status, "objective": objective, "test": None}

    rows = [row(0, 1, 0.9), row(1, 2, 0.5), row(2, 1, 0.9), row(3, 4, 0.95, status="pruned")]
    assert best(rows, 1.0, [0])["values"] == {"lora.rank": 1}
    assert best(rows, 1.0, [0])["trials"] == [0]
    assert best(rows, 1.0, [0, 1]) is None
    assert best([*rows, row(4, 2, 0.6, seed=1)], 1.0, [0, 1])["objective"] == pytest.approx(0.55)


def remembered(settings, ledger):
    from raylora.cluster.sweep import Remembered, scheduler

    return Remembered(scheduler(settings, 4), ledger)


def reported(number, round):
    return {"round": round, "objective": 1.0 - 0.1 * number}


class Told:
    """A trial as Tune shows it to a scheduler."""

    def __init__(self, number):
        self.config = {"place": SimpleNamespace(number=number)}


@pytest.mark.parametrize("kind", ["asha", "median"])
def test_a_report_that_comes_again_is_judged_as_it_was(tmp_path, kind):
    """A trial that goes on after an interruption reports its last round again: the others are not compared with it twice."""
    settings = sweep(tmp_path, scheduler={"kind": kind, "reduction": 2})
    ledger = Ledger(tmp_path / "sweep", settings.sha256())
    scheduler = remembered(settings, ledger)
    for number in range(5):
        ledger.append({"kind": "trial", "number": number, "values": {}, "seed": 0, "config_sha256": ""})
        scheduler.on_trial_add(None, Told(number))
    decided = {}
    for number, round in [(number, round) for round in (1, 2) for number in range(5)]:
        if "STOP" not in (decided.get((number, before)) for before in range(round)):
            decided[number, round] = scheduler.on_trial_result(None, Told(number), reported(number, round))
    assert "STOP" in decided.values()
    written = list(ledger.lines)
    again = remembered(settings, ledger)
    seen = {seat.trial_id: len(results) for seat, results in vars(again.inner).get("_results", {}).items()}
    assert {key: again.on_trial_result(None, Told(key[0]), reported(*key)) for key in decided} == decided
    assert {seat.trial_id: len(results) for seat, results in vars(again.inner).get("_results", {}).items()} == seen
    assert ledger.lines == written
    ledger.close()
    kept = [line for line in ledger.path.read_text().splitlines(True) if '"pruned"' not in line]  # killed before the decision was written
    ledger.path.write_text("".join(kept))
    ledger = Ledger(tmp_path / "sweep", settings.sha256())
    stopped = next(key for key, decision in decided.items() if decision == "STOP")
    assert remembered(settings, ledger).on_trial_result(None, Told(stopped[0]), reported(*stopped)) == "STOP"
    assert ledger.lines[-1] == {"kind": "pruned", "number": stopped[0], "round": stopped[1]}
    ledger.close()


@pytest.mark.parametrize("kind", ["asha", "median"])
def test_after_any_line_a_scheduler_knows_what_it_knew(tmp_path, kind):
    """As Tune asks it: about every report but the last, which comes with a trial's end; a pruned trial ends at once. Its memory, made again
    from the ledger at any moment, is the one that it had."""
    settings = sweep(tmp_path, scheduler={"kind": kind, "reduction": 2})
    ledger = Ledger(tmp_path / "sweep", settings.sha256())
    scheduler = remembered(settings, ledger)

    def memory(found):
        inner = vars(found.inner)
        results = {seat.trial_id: [tuple(sorted(r.items())) for r in told] for seat, told in inner.get("_results", {}).items()}
        rungs = [bracket._rungs for bracket in inner.get("_brackets", ())]
        stopped = sorted(seat.trial_id for seat in inner.get("_stopped_trials", ()))
        return results, json.dumps(rungs, sort_keys=True, default=str), stopped, found.reported, found.complete

    for number in range(6):
        ledger.append({"kind": "trial", "number": number, "values": {}, "seed": 0, "config_sha256": ""})
        scheduler.on_trial_add(None, Told(number))
    scheduler.on_trial_result(None, Told(5), reported(0, 1))
    scheduler.on_trial_complete(None, Told(5), {**reported(0, 1), "status": "stopped"})  # by a full disk: it goes on another day
    over = set()
    for number, round in [(number, round) for round in (1, 2, 3, 4) for number in range(5)]:
        if number in over:
            continue
        if round == 4:  # all rounds
            scheduler.on_trial_complete(None, Told(number), {**reported(number, round), "status": "finished"})
        elif scheduler.on_trial_result(None, Told(number), reported(number, round)) == "STOP":
            scheduler.on_trial_complete(None, Told(number), {**reported(number, round), "status": "running"})
            over.add(number)
        assert memory(remembered(settings, ledger)) == memory(scheduler), (number, round)
    assert over and len(scheduler.complete) == 5
    known = memory(scheduler)
    scheduler.on_trial_complete(None, Told(0), {**reported(0, 4), "status": "finished"})  # gone on with after its end
    assert memory(scheduler) == known
    ledger.close()


def test_a_suggestion_that_turns_out_impossible_has_failed_and_the_next_is_asked_for(tmp_path):
    from raylora.cluster.sweep import Asked

    settings = sweep(tmp_path)
    ledger = Ledger(tmp_path / "sweep", settings.sha256())
    search, _ = replayed(settings, ledger)

    def place(trial):
        if trial.values["lora.rank"] == 1:
            raise InputError("lora.rank: no")
        return SimpleNamespace(config_sha256="abc", number=trial.number)

    asked = Asked(search, [], ledger, place, tmp_path / "sweep" / "trials")
    assert asked.suggest("x")["place"].number == 1
    found = state(settings, ledger, tmp_path / "sweep", over=False, total=3)
    assert [(row["status"], row["error"]) for row in found["trials"]] == [("failed", "lora.rank: no"), ("unfinished", None)]
    ledger.close()


def test_one_that_was_never_possible_has_failed_after_a_kill_too_and_one_that_was_is_asked_for_again(tmp_path):
    """A kill between the two lines of an impossible suggestion; a trial that had begun on a larger machine."""
    from raylora.cluster.sweep import Asked

    settings = sweep(tmp_path)
    ledger = Ledger(tmp_path / "sweep", settings.sha256())
    for number, sha256 in enumerate((None, "abc")):
        line = {"kind": "trial", "number": number, "values": {"lora.rank": number + 1}, "seed": 0, "config_sha256": sha256}
        ledger.append(line)
    search, unfinished = replayed(settings, ledger)

    def place(trial):
        raise InputError("placement: no")

    asked = Asked(search, unfinished, ledger, place, tmp_path / "sweep" / "trials")
    with pytest.raises(InputError, match="placement: no"):
        asked.suggest("x")
    assert {number: line["status"] for number, line in ledger.of("end").items()} == {0: "failed"}
    ledger.close()


def test_another_process_reads_after_which_round_a_trial_is_to_end(tmp_path):
    ledger = Ledger(tmp_path, "a")
    for number, round in ((0, 1), (1, 2), (0, 3)):
        ledger.append({"kind": "pruned", "number": number, "round": round})
    with ledger.path.open("ab") as file:
        file.write(b'{"kind": "pruned", "number": 2, "ro')
    assert [pruned_after(ledger.path, number) for number in range(3)] == [3, 2, None]
    ledger.close()


def test_a_sweep_is_finished_when_all_that_it_planned_has_ended(tmp_path):
    settings = sweep(tmp_path)
    ledger = Ledger(tmp_path / "sweep", settings.sha256())
    ledger.append({"kind": "trial", "number": 0, "values": {"lora.rank": 1}, "seed": 0, "config_sha256": "abc"})
    ledger.append(ENDED)
    found = [state(settings, ledger, tmp_path / "sweep", over=True, total=total)["status"] for total in (3, 1, None)]
    assert found == ["stopped", "finished", "finished"], "the time was up when the only one under way ended"
    ledger.close()


def test_why_a_driver_ended_is_read_from_what_tune_says_of_it():
    from raylora.cluster.sweep import _raised

    task = "Failure # 1 (occurred at x)\nray::DriverActor.train()\nTraceback (most recent call last):\n  File x\nValueError: a: b\n"
    died = "Failure # 2 (occurred at x)\nThe actor died unexpectedly before finishing this task.\n\tclass_name: DriverActor\n"
    assert [_raised(said) for said in (None, "", task, task + died, died + task)] == [
        None,
        None,
        "ValueError: a: b",
        None,
        "ValueError: a: b",
    ]
