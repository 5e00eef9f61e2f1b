"""Every dial in whole runs: neutral it changes no bit, turned it does what its key says, and the record tells it."""

import math
from collections import Counter

import numpy as np
import pytest
from small_runs import run, tiny
from small_studies import COHORT

from raylora import experiment, planning
from raylora.core.clock import close
from raylora.core.errors import InputError
from raylora.core.reduce import by_client
from raylora.federation import checkpoint
from raylora.federation.buffered import packed, unpacked
from raylora.federation.build import build_host
from raylora.federation.executor import InProcess
from raylora.method import caveats, make_strategy

VENDORS = sorted(COHORT)
SLOW_LINE = {"up_mbit": 0.01, "down_mbit": 0.02, "latency_s": 0.5, "step_s": 2.0}


def totals(found) -> list[dict]:
    return [line for line in found.lines if line["kind"] == "round"]


def clients_of(found, round: int) -> dict[str, dict]:
    return {line["client"]: line for line in found.lines if line["kind"] == "client" and line["round"] == round}


# ---- neutral


NEUTRAL = [
    {"faults": {"slow_factor": 50.0, "attack": "gaussian", "strength": 10.0}, "network": {"outage_s": 5.0, "speed": 3.0, "spread": 2.0}},
    {"network": {**SLOW_LINE, "spread": 1.0, "speed_spread": 1.0, "outage": 0.5}, "faults": {"late_s": 9.0, "slow": 0.5}},  # time alone
    {"sampling": {"deadline_s": 1e9}, "network": SLOW_LINE},
    {"sampling": {"buffer": 4, "staleness": 3.0}},  # everybody is waited for
]


@pytest.mark.parametrize("task", ["segmentation", "disease"])
@pytest.mark.parametrize("dials", NEUTRAL, ids=["rates of zero", "time", "a deadline that nobody misses", "a buffer for all"])
def test_neutral_is_bit_equal_to_a_run_without(runs, task, dials):
    assert runs(task, **dials).hashes == runs(task).hashes


def test_without_a_clock_the_record_is_what_it_was(runs):
    found = runs()
    assert found.summary["virtual_seconds"] is None and found.summary["faults"] is None
    assert not {"virtual_seconds", "dropped", "unused", "staleness"} & {key for line in found.lines for key in line}


# ---- every dial reaches the numbers


@pytest.mark.parametrize(
    ("task", "dials"),
    [
        ("segmentation", {"faults": {"label_noise": 0.2}}),
        ("disease", {"faults": {"label_noise": 0.3}}),
        ("segmentation", {"faults": {"contour_mm": 3.0}}),
        ("segmentation", {"faults": {"missing_structure": 0.5}}),
        ("segmentation", {"faults": {"missing_frames": 0.5}}),
        ("disease", {"faults": {"missing_frames": 0.5}}),
        ("disease", {"faults": {"missing_slices": 0.3}}),
        ("disease", {"faults": {"dropout": 0.4}}),
        ("disease", {"faults": {"joins": 0.5}}),
        ("disease", {"faults": {"leaves": 0.5}}),
        ("disease", {"faults": {"byzantine": 0.25}}),
        ("disease", {"faults": {"byzantine": 0.25, "attack": "gaussian"}}),
        ("disease", {"faults": {"byzantine": 0.25, "attack": "label_flip"}}),
        ("disease", {"faults": {"byzantine": 0.25, "attack": "stale"}}),
        ("disease", {"faults": {"byzantine": 0.5, "attack": "collude"}}),
        ("disease", {"faults": {"rank_halvings": 1}, "lora": {"rank": 2}, "strategy": {"name": "flexlora"}}),
        ("disease", {"clients": {"by": "iid", "count": 3, "sizes": 2.0}}),
    ],
    ids=str,
)
def test_turned_it_changes_the_model(runs, task, dials):
    neutral = {**dials, "faults": {}}
    if "clients" in dials:
        neutral["clients"] = {**dials["clients"], "sizes": math.inf}
    assert runs(task, **dials).hashes["global"] != runs(task, **neutral).hashes["global"]


def test_what_is_scored_stays_as_it_is(runs):
    """The frozen model's scores are those of a run whose training data are clean."""
    worst = {"label_noise": 0.5, "contour_mm": 4.0, "missing_structure": 1.0, "missing_frames": 1.0, "missing_slices": 0.5}
    one, other = runs().summary["final"], runs(faults=worst).summary["final"]
    assert all(one[metric]["frozen"] == other[metric]["frozen"] for metric in one)


def said_of(config) -> list[str]:
    return caveats(config, make_strategy(config, 4), 4)


def test_the_pool_of_all_data_has_each_client_s_faults(prepared_folder):
    plan = planning.make_plan(tiny(prepared_folder, faults={"contour_mm": 3.0}, strategy={"name": "centralised"}))
    alone = planning.make_plan(tiny(prepared_folder, faults={"contour_mm": 3.0}))
    (pool,) = [site for site in plan.spec.sites if site.training]
    assert pool.damage == {study: damage for site in alone.spec.sites for study, damage in site.damage.items()}
    assert len({damage.contour_mm for damage in pool.damage.values()}) == 4 and len(pool.damage) == len(pool.training)
    for attack in ("negate", "label_flip"):  # the liars of the others are liars here, as far as data lie
        liars = {"byzantine": 0.5, "attack": attack}
        pooled, apart = (planning.make_plan(tiny(prepared_folder, faults=liars, **s)) for s in ({"strategy": {"name": "centralised"}}, {}))
        assert pooled.dials.describe() == (apart.dials.describe() if attack == "label_flip" else None)
        said = said_of(pooled.config)
        assert bool(said) == (attack == "negate") and all(text.startswith("faults.byzantine changes nothing here: ") for text in said)


# ---- taking part


def test_who_drops_out_is_sent_the_model_and_sends_nothing(runs):
    found, calm = runs("disease", faults={"dropout": 0.4}), runs("disease")
    for line in totals(found):
        answered = set(clients_of(found, line["round"]))
        assert answered | set(line.get("dropped", ())) == set(VENDORS) and not answered & set(line.get("dropped", ()))
        assert line["bytes_down"] == totals(calm)[line["round"]]["bytes_down"]
        assert line["bytes_up"] == sum(client["bytes_up"] for client in clients_of(found, line["round"]).values())
    assert any("dropped" in line for line in totals(found))


def test_a_round_to_which_nobody_comes_is_lost_and_the_run_goes_on(prepared_folder, tmp_path):
    found = run(tiny(prepared_folder, "disease", faults={"dropout": 1.0}, strategy={"name": "flora"}), tmp_path)
    assert found.summary["bytes_up"] == 0 and all(line["dropped"] == VENDORS for line in totals(found))
    block = found.summary["final"]["balanced_accuracy"]
    assert block["mean"] == block["frozen"], "nothing was learnt"


def test_after_a_lost_round_clients_draw_anew(prepared_folder, tmp_path):
    """A strategy counts the rounds that it has aggregated; batches, rates and what clients keep go by the rounds there were."""
    found = run(tiny(prepared_folder, "disease", faults={"dropout": 0.6}, training__rounds=4, seed=9), tmp_path)
    lost = [line["round"] for line in totals(found) if line.get("dropped") == VENDORS]
    came = [(line["client"], line["round"]) for line in found.lines if line["kind"] == "client"]
    assert lost and lost[0] < came[-1][1] and [(client, b.task.round) for client, b in found.sent] == came


def test_who_joins_later_and_leaves_before_the_end(runs):
    found = runs("disease", faults={"joins": 0.5, "leaves": 0.5}, training__rounds=4)
    tenures = found.plan.dials.tenures
    for t in range(4):
        assert set(clients_of(found, t)) == {c for c, (first, end) in tenures.items() if first <= t < end}
    assert found.summary["faults"] == {c: {"rounds": list(stay)} for c, stay in tenures.items() if stay != (0, 4)}


def test_devices_with_little_memory_have_smaller_ranks(prepared_folder, runs):
    def ranks(seed: int) -> dict[str, int]:
        config = tiny(prepared_folder, lora__rank=8, faults={"rank_halvings": 3}, strategy={"name": "flexlora"}, seed=seed)
        plan = planning.make_plan(config)
        assert all(client.scaling == config.lora.alpha / client.rank for client in plan.clients)
        return {client.id: client.rank for client in plan.clients}

    assert set(ranks(0).values()) | set(ranks(1).values()) <= {1, 2, 4, 8} and ranks(0) != ranks(1)
    with pytest.raises(InputError, match="one lora.rank for all clients"):
        planning.make_plan(tiny(prepared_folder, lora__rank=8, faults={"rank_halvings": 3}))
    found = runs("disease", faults={"rank_halvings": 1}, lora={"rank": 2}, strategy={"name": "flexlora"})
    assert set(found.summary["ranks"].values()) == {1, 2} and all(
        len(update.adapter[name]) == found.summary["ranks"][update.client_id]
        for update in found.received
        for name in update.adapter
        if name.endswith("lora_A")
    )


# ---- byzantine clients


def test_a_quarter_of_four_clients_is_one_and_it_alone_lies(runs):
    found, honest = (runs("disease", faults={"byzantine": 0.25, "strength": s}, strategy={"name": "flora"}) for s in (10.0, 0.0))
    (liar,) = [client for client, about in found.summary["faults"].items() if about == {"attack": "negate"}]
    first, calm = (by_client(one.received[:4]) for one in (found, runs("disease", strategy={"name": "flora"})))
    for one, other in zip(first, calm, strict=True):
        same = all(np.array_equal(one.adapter[name], other.adapter[name]) for name in one.adapter)
        assert same == (one.client_id != liar)
        if one.client_id == liar:
            for name in one.adapter:
                if name.endswith(".lora_B"):
                    np.testing.assert_allclose(one.adapter[name], -10 * other.adapter[name], rtol=1e-4, atol=1e-7)
    assert honest.hashes != found.hashes


def test_a_replay_is_the_first_update_again(runs):
    found = runs("disease", faults={"byzantine": 0.25, "attack": "stale"}, training__rounds=3)
    liar = next(iter(found.summary["faults"]))
    sent = [update.adapter for update in found.received if update.client_id == liar]
    assert len(sent) == 3 and all(np.allclose(sent[0][name], later[name], atol=1e-6) for later in sent[1:] for name in later)


def test_byzantine_answers_pass_the_checks_of_every_kind_of_strategy(prepared_folder, tmp_path):
    for number, name in enumerate(["rolora", "fedalt", "scaffold", "fedavg_full"]):
        config = tiny(prepared_folder, "disease", faults={"byzantine": 0.5, "strength": 5.0}, strategy={"name": name}, training__lr=1e-3)
        assert run(config, tmp_path / str(number)).summary["status"] == "finished"


# ---- the virtual clock, by hand, with the bytes that were counted


def virtual(found, client: str, round: int = 0, **line) -> float:
    """2 steps of 2 s at the client's speed, two latencies, and its bits over its rates."""
    sent = clients_of(found, round)[client]
    speed, up, down = (line.get(key, neutral) for key, neutral in (("speed", 1.0), ("up", 0.01), ("down", 0.02)))
    return 2 * 2.0 / speed + 2 * 0.5 + 8e-6 * (sent["bytes_up"] / up + sent["bytes_down"] / down)


def test_a_slow_line(runs):
    found = runs("disease", network={**SLOW_LINE, "up_mbit": {"GE": 0.001, "Canon": 0.01, "Philips": 0.01, "Siemens": 0.01}})
    for t in range(2):
        took = {c: virtual(found, c, t, up=0.001 if c == "GE" else 0.01) for c in VENDORS}
        assert {c: line["virtual_seconds"] for c, line in clients_of(found, t).items()} == pytest.approx(took)
        assert totals(found)[t]["virtual_seconds"] == pytest.approx((t + 1) * took["GE"])
    assert found.summary["virtual_seconds"] == totals(found)[-1]["virtual_seconds"]


def test_a_straggler_that_nobody_waits_for(runs):
    """Siemens computes 40 s instead of 4: three quarters of the answers end the round without it, and its update is lost."""
    network = {**SLOW_LINE, "speed": {"Siemens": 0.1}}
    waited, gone_on = runs("disease", network=network), runs("disease", network=network, sampling={"wait_for": 0.75})
    assert waited.summary["virtual_seconds"] == pytest.approx(2 * virtual(waited, "Siemens", speed=0.1))
    assert gone_on.summary["virtual_seconds"] == pytest.approx(2 * virtual(gone_on, "GE"))
    assert [line["unused"] for line in totals(gone_on)] == [["Siemens"]] * 2 and waited.hashes == runs("disease").hashes
    assert gone_on.hashes != waited.hashes and gone_on.summary["bytes_up"] == waited.summary["bytes_up"], "it was sent all the same"


def test_on_equal_lines_it_is_not_always_the_same_client_that_comes_too_late(prepared_folder):
    config = tiny(prepared_folder, "disease", network={"up_mbit": 10.0}, sampling={"wait_for": 0.75}, training__rounds=40)
    dials, late = planning.make_plan(config).dials, Counter()
    for round in range(40):
        met = dials.conditions(VENDORS, round)
        used, _ = close({c: met.trip(c).seconds(1000, 1000) for c in VENDORS}, 4, met.waiting, {c: met.trip(c).turn for c in VENDORS})
        late.update(set(VENDORS) - set(used))
    assert set(late) == set(VENDORS) and max(late.values()) < 20, late


def test_a_deadline(runs):
    found = runs("disease", network={**SLOW_LINE, "speed": {"Siemens": 0.1}}, sampling={"deadline_s": 30.0})
    assert virtual(found, "GE") < 30 < virtual(found, "Siemens", speed=0.1)
    assert found.summary["virtual_seconds"] == 60.0 and [line["unused"] for line in totals(found)] == [["Siemens"]] * 2
    same = runs("disease", network={**SLOW_LINE, "speed": {"Siemens": 0.1}}, sampling={"wait_for": 0.75})
    assert found.hashes == same.hashes, "who is left out is the same, sooner or later"


def test_scaffold_s_c_is_the_mean_of_the_c_k_whoever_was_late(runs):
    """The change of c_k that was lost with an answer did not happen: nothing later would bring it to the server."""
    late = {"network": SLOW_LINE, "faults": {"late_s": 9.0}, "sampling": {"wait_for": 0.75}}
    found = runs("disease", strategy={"name": "scaffold"}, training__optimiser="sgd", training__rounds=4, **late)
    lost = [client for line in totals(found) for client in line["unused"]]
    assert len(lost) == 4 and len(set(lost)) > 1 and len(set(VENDORS) - set(lost)) > 0
    (end, _), _ = checkpoint.latest(found.folder / "checkpoints")
    variates = [state.trees["c_k"] for state in end.states.values() if "c_k" in state.trees]
    for name, value in end.server.trees["c"].items():
        np.testing.assert_allclose(value, sum(tree[name] for tree in variates) / len(VENDORS), atol=1e-6 * np.abs(value).max() + 1e-9)


def test_a_second_exchange_takes_its_time(runs):
    rule = {"name": "rate_my_lora", "rule": "peer"}
    found, plain = runs("disease", strategy=rule, network=SLOW_LINE), runs("disease", strategy={"name": "rate_my_lora"}, network=SLOW_LINE)
    more = [a["bytes_down"] - b["bytes_down"] for a, b in zip(totals(found), totals(plain), strict=True)]
    answers = 8 * (1 + 3)  # a count and three scores, where `drop` sends two scores with its update
    first = found.summary["virtual_seconds"] - plain.summary["virtual_seconds"]
    assert first == pytest.approx(2 * (2 * 0.5 + 8e-6 * (answers - 16) / 0.01) + 8e-6 * sum(more) / 4 / 0.02)


def test_the_steps_on_the_clock_are_those_that_are_taken(prepared_folder, monkeypatch, tmp_path):
    from raylora.training import local

    taken, plans = {}, local._batches
    monkeypatch.setattr(local, "_batches", lambda job, *rest: taken.setdefault(job.client, plans(job, *rest)))
    for task, missing in (("segmentation", 0.5), ("disease", 0.0)):
        taken.clear()
        config = tiny(prepared_folder, task, training={"rounds": 1, "local_epochs": 2, "batch_size": 2}, faults={"missing_frames": missing})
        found = run(config, tmp_path / task)
        assert found.plan.dials.steps == {client: len(batches) for client, batches in taken.items()}


# ---- asynchronous rounds


FAST_AND_SLOW = {"step_s": 1.0, "speed": {"Canon": 4.0, "GE": 2.0, "Philips": 1.0, "Siemens": 0.4}}  # 0.5, 1, 2 and 5 s a round


def test_answers_come_in_the_order_of_virtual_time(runs):
    """Buffer of 2. By hand: Canon 0.5, GE 1.0 | Canon 1.5, Philips 2.0 = GE 2.0 (Philips waits since round 0) | GE 2.0, Canon 2.5 | ..."""
    found = runs("disease", network=FAST_AND_SLOW, sampling={"buffer": 2}, training__rounds=4)
    assert [line["virtual_seconds"] for line in totals(found)] == [1.0, 2.0, 2.5, 3.5]
    landed = [{c: line.get("staleness", 0) for c, line in clients_of(found, t).items()} for t in range(4)]
    assert landed == [{"Canon": 0, "GE": 0}, {"Canon": 0, "Philips": 1}, {"Canon": 0, "GE": 1}, {"Canon": 0, "GE": 0}]
    assert found.summary["bytes_up"] == 8 * clients_of(found, 0)["GE"]["bytes_up"], "what has not arrived is not counted"


def test_an_old_movement_is_added_to_the_model_of_now(runs):
    """The server's step is the size-weighted mean of weight * (sent - received), by hand from the messages that crossed."""
    found = runs("disease", network=FAST_AND_SLOW, sampling={"buffer": 2, "staleness": 0.5}, training__rounds=4, evaluation__every=0)
    sent = {(client, b.task.round): b.adapter for client, b in found.sent}
    received = {}
    for update, (client, b) in zip(found.received, found.sent, strict=True):
        received[client, b.task.round] = update
    old, fresh = received["GE", 1], received["Canon", 2]
    n = np.array([old.num_examples, fresh.num_examples], float)
    p = n / n.sum()
    now, after = sent["Canon", 2], sent["Canon", 3]
    for name in now:
        step = p[0] * 2**-0.5 * (old.adapter[name] - sent["GE", 1][name]) + p[1] * (fresh.adapter[name] - now[name])
        np.testing.assert_allclose(after[name], now[name] + step, rtol=1e-5, atol=1e-7)


def test_an_asynchronous_run_goes_on_as_if_it_had_never_stopped(runs, prepared_folder, tmp_path):
    options = {"network": FAST_AND_SLOW, "sampling": {"buffer": 2}, "training__rounds": 4, "strategy": {"name": "med_duallora"}}
    expected = runs("disease", **options)
    config = tiny(prepared_folder, "disease", **options)
    plan = planning.make_plan(config)
    events = experiment.run_experiment(plan, tmp_path, lambda p: InProcess(build_host(p.spec, p.weights)))
    told = (event for event in events if event["event"] != "note")
    assert [next(told)["event"] for _ in range(3)] == ["start", "round", "round"]
    events.close()
    (saved, _), _ = checkpoint.latest(tmp_path / "checkpoints")
    assert saved.virtual_s == 2.0 and set(unpacked(saved.under_way)) == {"GE", "Siemens"}
    assert packed(unpacked(saved.under_way)).values == saved.under_way.values
    again = run(config, tmp_path, resume=True)
    assert again.hashes == expected.hashes and again.summary["virtual_seconds"] == expected.summary["virtual_seconds"]


@pytest.mark.parametrize(
    ("strategy", "why"),
    [
        ("flora", "start anew each round"),
        ("rate_my_lora", "start anew each round"),
        ("flexlora", "start anew each round"),
        ("fedex_lora", "folds into the base"),
        ("rolora", "which they are not sent"),
        ("fedalt", "which they are not sent"),
        ("scaffold", "is about one round"),
        ("centralised", "one client"),
    ],
)
def test_what_cannot_work_asynchronously_says_why(prepared_folder, strategy, why):
    config = tiny(prepared_folder, strategy={"name": strategy}, sampling={"buffer": 1}, network={"step_s": 1.0})
    with pytest.raises(InputError, match=f"sampling.buffer: {strategy} cannot work asynchronously: .*{why}"):
        planning.make_plan(config)


@pytest.mark.parametrize("strategy", [{"name": "feddpa", "schedule": "F"}, {"name": "med_duallora", "mode": "staged"}])
def test_a_strategy_that_asks_for_other_names_later_is_found_out_before_it_starts(prepared_folder, strategy):
    options = {"sampling": {"buffer": 2}, "network": {"step_s": 1.0}, "training__rounds": 4}
    with pytest.raises(InputError, match="cannot work asynchronously: from round 3 on it asks for other names"):
        planning.make_plan(tiny(prepared_folder, "disease", strategy={**strategy, "stage_rounds": 2}, **options))
    planning.make_plan(tiny(prepared_folder, "disease", strategy={**strategy, "stage_rounds": 4}, **options))


@pytest.mark.parametrize("strategy", ["fedit", "ffa_lora", "fedsa_lora", "feddpa", "fedadam", "fedprox", "fedavg_full", "local", "hetlora"])
def test_what_can_is_let_through(prepared_folder, strategy):
    planning.make_plan(tiny(prepared_folder, strategy={"name": strategy}, sampling={"buffer": 2}, network={"step_s": 1.0}))


@pytest.mark.parametrize(
    "options",
    [
        {"sampling": {"wait_for": 0.5}, "network": {"up_mbit": 1.0}, "privacy": {"clip": 1.0, "delta": 0.1}},  # clipping alone
        {"sampling": {"kind": "uniform"}, "faults": {"leaves": 0.5}, "privacy": {"clip": 1.0, "sigma": 1.0, "delta": 0.1}},  # all are drawn
    ],
)
def test_a_private_mean_that_can_be_accounted_is_let_through(prepared_folder, options):
    planning.make_plan(tiny(prepared_folder, "disease", **options))


# ---- what does not fit together


@pytest.mark.parametrize(
    ("task", "dials", "message"),
    [
        ("disease", {"faults": {"contour_mm": 1.0}}, "faults.contour_mm: a class has no contours"),
        ("disease", {"faults": {"missing_structure": 0.5}}, "faults.missing_structure: a class has no contours"),
        ("disease", {"network": {"up_mbit": {"Toshiba": 1.0}}}, "network.up_mbit: no client 'Toshiba', expected some of Canon"),
        ("disease", {"sampling": {"wait_for": 0.5}}, "sampling.wait_for: who answers first is a question of time"),
        ("disease", {"sampling": {"buffer": 2}}, "sampling.buffer: who answers first is a question of time"),
        (
            "disease",
            {"sampling": {"buffer": 2}, "network": {"up_mbit": {"GE": 1.0}}},
            "sampling.buffer: Canon, .* answer at once and fill",
        ),
        ("disease", {"sampling": {"buffer": 2}, "network": {"outage": 0.1}}, "sampling.buffer: Canon, .* answer at once and fill"),
        ("disease", {"sampling": {"buffer": 5}, "network": SLOW_LINE}, "sampling.buffer: expected at most the 4 clients"),
        ("disease", {"sampling": {"buffer": 2, "deadline_s": 3.0}, "network": SLOW_LINE}, "sampling.deadline_s: in asynchronous rounds"),
        (
            "disease",
            {"sampling": {"buffer": 2}, "network": SLOW_LINE, "privacy": {"clip": 1.0, "delta": 0.1}},
            "privacy.clip: in asynchronous",
        ),
        (
            "disease",
            {"sampling": {"wait_for": 0.5}, "network": SLOW_LINE, "privacy": {"clip": 1.0, "sigma": 1.0, "delta": 0.1}},
            "sampling.wait_for: with privacy.sigma expected 1.0, found 0.5",
        ),
        (
            "disease",
            {
                "sampling": {"kind": "uniform", "fraction": 0.5},
                "faults": {"leaves": 0.5},
                "privacy": {"clip": 1.0, "sigma": 1.0, "delta": 0.1},
            },
            "faults.leaves: with privacy.sigma and sampling.kind uniform expected 0, found 0.5",
        ),
        (
            "disease",
            {"strategy": {"name": "med_duallora", "mode": "alternating"}, "training__local_steps": 1},
            "client Canon: 1 local steps a round, too few for the 2 phases of strategy.name med_duallora",
        ),
        ("disease", {"clients": {"by": "vendor", "sizes": 1.0}}, "clients.sizes: expected clients.by: iid, found vendor"),
    ],
)
def test_what_does_not_fit_is_refused_by_key(prepared_folder, task, dials, message):
    with pytest.raises(InputError, match=message):
        planning.make_plan(tiny(prepared_folder, task, **dials))


def test_a_reduction_that_dropouts_would_starve_is_refused_before_the_run(prepared_folder):
    """Five clients are enough for Krum with one liar; the rounds in which somebody drops out are known before."""
    options = {"clients": {"by": "iid", "count": 5}, "strategy": {"name": "fedit", "reduce": {"name": "krum", "f": 1}}}
    planning.make_plan(tiny(prepared_folder, **options))
    with pytest.raises(InputError, match=r"expected at least 5 clients in every round, found [1-4]"):
        planning.make_plan(tiny(prepared_folder, **options, faults={"dropout": 0.3}, training__rounds=5))


def test_folds_are_not_kept_for_who_has_left(prepared_folder, tmp_path):
    """Each checkpoint would hold every fold since then."""
    config = tiny(prepared_folder, "disease", strategy={"name": "flora"}, faults={"leaves": 0.5}, training__rounds=5)
    found = run(config, tmp_path / "run")
    ends = [end for _, end in found.plan.dials.tenures.values()]
    assert min(ends) < 4 and max(ends) == 5
    after, _ = checkpoint.load(tmp_path / "run" / "checkpoints" / "round_0005")
    assert set(after.deltas) == {5} or not after.deltas, sorted(after.deltas)


@pytest.mark.parametrize(
    ("dials", "key"),
    [
        ({"faults": {"slow": 0.5}}, "faults.slow"),
        ({"network": {"speed": 2.0, "latency_s": 1.0}}, "network.speed"),
        ({"network": {"speed_spread": 0.5}}, "network.speed_spread"),
        ({"network": {"spread": 0.5, "step_s": 1.0}}, "network.spread"),
        ({"sampling": {"deadline_s": 5.0}}, "sampling.deadline_s"),
        ({"privacy": {"sigma": 1.0}}, "privacy.sigma"),
        ({"privacy": {"clip": 1.0}, "strategy": {"name": "fedit", "weights": "size"}}, "strategy.weights"),
        ({"compress": {"bits": 4}}, "compress.bits"),
        ({"compress": {"kind": "quantise", "share": 0.01}}, "compress.share"),
        ({"faults": {"attack": "gaussian"}}, "faults.attack"),
        ({"strategy": {"name": "hetlora", "lam": 0.1}}, "strategy.lam"),
        ({"strategy": {"name": "fedit", "head": "private"}, "model__head": "frozen"}, "strategy.head"),
    ],
)
def test_a_dial_that_nobody_notices_is_said(prepared_folder, dials, key):
    (said,) = said_of(tiny(prepared_folder, **dials))
    assert said.startswith(f"{key} changes nothing here: ")
    noticed = {"network": {"step_s": 1.0, "up_mbit": 8, "spread": 1.0, "speed_spread": 1.0}, "faults": {"slow": 0.5}}
    assert said_of(tiny(prepared_folder, **noticed)) == []
