"""What goes around a strategy: privacy, compression, sampling; how it is counted, what it must not change, what is refused."""

import numpy as np
import pytest
from safetensors.numpy import load_file
from small_runs import Finished, tiny
from test_bytes import CLIENTS, CONVOLUTIONS, FACTORS, HEAD, ROUNDS

from raylora import planning
from raylora.core import privacy
from raylora.core import tree as trees
from raylora.core.errors import InputError
from raylora.core.types import Broadcast, ClientState, Phase, Task
from raylora.federation import checkpoint
from raylora.federation.build import build_host
from raylora.federation.protocol import initial_tree

TENSORS = 2 * len(CONVOLUTIONS) + 2
ELEMENTS = FACTORS + HEAD


# ---- neutral values


@pytest.mark.parametrize(
    "neutral",
    [
        {"sampling": {"kind": "uniform", "fraction": 1.0}},
        {"sampling": {"kind": "size", "fraction": 1.0}},
        {"sampling": {"kind": "poisson", "fraction": 1.0}},
        {"compress": {"kind": "none", "bits": 3, "share": 0.5}},
        {"privacy": {"sigma": 5.0}},  # without a clip it is off
        {"strategy": {"name": "fedit", "reduce": "mean"}},
    ],
)
def test_neutral_values_change_no_bit(runs, neutral):
    run = runs("disease", **neutral)
    assert run.hashes == runs("disease").hashes
    assert [run.summary[key] for key in ("bytes_up", "bytes_down", "epsilon")] == [
        *(runs("disease").summary[key] for key in ("bytes_up", "bytes_down")),
        None,
    ]


# ---- privacy

PRIVATE = {"clip": 0.05, "sigma": 1.5, "delta": 1e-3}


def moves(run: Finished) -> list[float]:
    """How far the server went in each round but the last: the distance of what it sent."""
    sent = {b.task.round: b.adapter for _, b in run.sent}
    return [trees.norm(trees.subtract(sent[t + 1], sent[t])) for t in sorted(sent) if t + 1 in sent]


def test_no_client_moves_the_server_by_more_than_its_clip(runs):
    run = runs("disease", privacy={"clip": 0.05})
    assert moves(run)[0] <= 0.05 * (1 + 1e-6) < moves(runs("disease", strategy={"name": "fedit", "weights": "uniform"}))[0]


def test_the_epsilon_of_every_round_is_the_accountants(runs):
    run = runs("disease", privacy=PRIVATE, sampling={"kind": "poisson", "fraction": 0.5}, training__rounds=4)
    told = [line["epsilon"] for line in run.lines if line["kind"] == "round"]
    options = {"sigma": 1.5, "cohort": 2, "population": 4, "delta": 1e-3, "sampling": "poisson"}
    assert told == [pytest.approx(privacy.epsilon(rounds=t + 1, **options)) for t in range(4)]
    assert run.summary["epsilon"] == told[-1] and told == sorted(told)
    everybody = runs("disease", privacy=PRIVATE)
    assert everybody.summary["epsilon"] == pytest.approx(privacy.epsilon(rounds=2, **{**options, "cohort": 4, "sampling": "all"}))


def test_noise_has_its_size_and_comes_even_if_nobody_does(runs):
    """Poisson sampling of which some rounds are empty: the server still moves, by noise of sigma clip / (q N) in every coordinate."""
    run = runs(
        "disease", privacy={**PRIVATE, "clip": 1e-6, "sigma": 1e5}, sampling={"kind": "poisson", "fraction": 0.1}, training__rounds=6
    )
    counts = [sum(line["kind"] == "client" and line["round"] == t for line in run.lines) for t in range(6)]
    assert 0 in counts
    folder = run.folder / "checkpoints"
    (late, _), (early, _) = (checkpoint.load(path) for path in sorted(folder.glob("round_*"), reverse=True))
    moved = np.concatenate(
        [(late.server.trees["adapter"][n] - early.server.trees["adapter"][n]).ravel() for n in late.server.trees["adapter"]]
    )
    expected = 1e5 * 1e-6 / 0.4
    assert np.std(moved) == pytest.approx(
        expected, rel=5 / np.sqrt(2 * len(moved))
    )  # five standard errors: fails by chance 6 in 10 million


@pytest.mark.parametrize(
    "name", ["fedavg_full", "ffa_lora", "fedsa_lora", "rolora", "feddpa", "fedprox", "fedavgm", "fedadam", "fedyogi", "med_duallora"]
)
def test_every_mean_can_be_private(prepared_folder, name):
    plan = planning.make_plan(tiny(prepared_folder, "disease", strategy={"name": name}, privacy=PRIVATE))
    assert len(plan.clients) == 4


# ---- compression


def test_bytes_of_quantised_and_sparse_updates_by_hand(runs):
    beside = ROUNDS * CLIENTS * 8 * 2
    eight = runs(compress={"kind": "quantise", "bits": 8})
    assert eight.summary["bytes_up"] == ROUNDS * CLIENTS * (ELEMENTS + TENSORS * 2 * 8) + beside
    assert eight.summary["bytes_down"] == runs().summary["bytes_down"]
    tenth = runs(compress={"kind": "top_k", "share": 0.1})
    assert tenth.summary["bytes_up"] == ROUNDS * CLIENTS * 8 * int(np.ceil(0.1 * ELEMENTS)) + beside


def test_what_top_k_left_out_is_remembered_and_sent_later(runs):
    run = runs("disease", compress={"kind": "top_k", "share": 0.1}, training__rounds=3)
    (late, _), (early, _) = (checkpoint.load(path) for path in sorted((run.folder / "checkpoints").glob("round_*"), reverse=True))
    update = next(u for u in run.received[8:] if u.client_id == "GE")
    received = next(b.adapter for client, b in run.sent if client == "GE" and b.task.round == 2)
    decoded = trees.subtract(update.adapter, received)
    sent = sum(np.count_nonzero(value) for value in decoded.values())
    assert sent <= np.ceil(0.1 * trees.size(decoded))
    before, after = early.states["GE"].trees["error"], late.states["GE"].trees["error"]
    assert before.keys() == after.keys() == update.adapter.keys()
    for name in after:  # of what was sent nothing is left
        kept = after[name][decoded[name] != 0]
        np.testing.assert_allclose(kept, 0.0, atol=1e-6)
    assert trees.norm(after) > 0


def test_what_was_left_out_is_added_to_what_is_sent(prepared_folder):
    """sent + left out = movement + what was left out before: the same round with and without the latter differs by it."""
    plan = planning.make_plan(tiny(prepared_folder, "disease", compress={"kind": "top_k", "share": 0.1}))
    host = build_host(plan.spec, plan.weights)
    first = initial_tree(host.model.outline, host.protocol, "GE", 1)
    told = Broadcast(adapter=first, task=Task(round=1, phases=(Phase(trains=("*",)),), uploads=("*",)))
    rng = np.random.default_rng(0)
    before = {name: rng.normal(0, 0.1, value.shape).astype(np.float32) for name, value in first.items()}

    def sent_and_left(error):
        host.restore({"GE": ClientState(trees={"error": error}, round=0)})
        (outcome,) = host.train(["GE"], [told])
        return trees.add(trees.subtract(outcome.update.adapter, first), outcome.state.trees["error"])

    with_it, without = sent_and_left(before), sent_and_left({})
    for name, value in before.items():
        np.testing.assert_allclose(with_it[name] - without[name], value, atol=1e-6)


def test_the_local_model_is_not_compressed(runs):
    """Compression is between client and server: a private adapter keeps its bits, and the head of a private client too."""
    plain, tenth = (runs("disease", strategy={"name": "local"}, **more) for more in ({}, {"compress": {"kind": "top_k", "share": 0.1}}))
    assert plain.hashes == tenth.hashes


def test_everything_at_once(runs):
    """A robust mean of quantised updates of a drawn cohort, ranks by client on top where the method allows them."""
    around = {"compress": {"kind": "quantise", "bits": 8}, "sampling": {"kind": "size", "fraction": 0.75}}
    run = runs("disease", strategy={"name": "med_duallora", "reduce": "median"}, **around)
    assert run.summary["status"] == "finished" and all(line["kind"] == "round" or line["bytes_up"] > 0 for line in run.lines)
    mixed = runs("disease", strategy={"name": "flora", "reduce": "geometric_median"}, lora__rank=[1, 2, 3, 4], **around)
    assert mixed.summary["status"] == "finished"
    noisy = runs("disease", strategy={"name": "ffa_lora"}, privacy=PRIVATE, **{**around, "sampling": {"kind": "uniform", "fraction": 0.5}})
    assert noisy.summary["epsilon"] > 0
    heads = load_file(noisy.folder / "adapters" / "global" / "head.safetensors")
    assert all(np.isfinite(value).all() for value in heads.values())


# ---- refused before anything starts


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"strategy": {"name": "scaffold"}, "privacy": PRIVATE}, "privacy.clip: scaffold needs the plain mean"),
        ({"strategy": {"name": "rate_my_lora"}, "privacy": PRIVATE}, "privacy.clip: rate_my_lora rates the clients itself"),
        ({"strategy": {"name": "local"}, "privacy": PRIVATE}, "privacy.clip: local aggregates nothing"),
        ({"strategy": {"name": "flora"}, "privacy": PRIVATE}, "privacy.clip: flora adds products"),
        ({"strategy": {"name": "fedalt"}, "privacy": PRIVATE}, "privacy.clip: fedalt sends each client another mean"),
        (
            {"strategy": {"name": "fedit", "reduce": "median"}, "privacy": PRIVATE},
            "privacy.clip: a private mean takes the place of strategy.reduce",
        ),
        ({"privacy": {"clip": 1.0, "sigma": 1.0, "delta": 0.3}}, r"privacy.delta: expected less than 1 / clients = 0.25, found 0.3"),
        ({"privacy": PRIVATE, "sampling": {"kind": "size", "fraction": 0.5}}, "privacy: expected sampling all, poisson or uniform"),
        (
            {"privacy": {**PRIVATE, "accountant": "pld"}, "sampling": {"kind": "uniform", "fraction": 0.5}},
            "privacy: expected sampling all, poisson or uniform",
        ),
        ({"strategy": {"name": "fedalt"}, "compress": {"kind": "quantise"}}, "compress.kind: fedalt goes on from what it sends"),
        (
            {"strategy": {"name": "hetlora", "gamma": 0.5}, "compress": {"kind": "quantise"}},
            "compress.kind: hetlora prunes ranks by the norms",
        ),
        (
            {"strategy": {"name": "hetlora", "gamma": 0.5}, "sampling": {"buffer": 2}, "network": {"step_s": 1.0}},
            "sampling.buffer: .*prunes ranks",
        ),
        ({"strategy": {"name": "flora"}, "compress": {"kind": "top_k"}}, "compress.kind: flora starts its pairs anew each round"),
        ({"strategy": {"name": "flexlora"}, "compress": {"kind": "top_k"}}, "compress.kind: flexlora starts its pairs anew each round"),
        (
            {
                "strategy": {"name": "fedit", "reduce": {"name": "multi_krum", "f": 0, "m": 3}},
                "sampling": {"kind": "uniform", "fraction": 0.5},
            },
            "strategy.reduce: expected at least 3 clients in every round, found 2",
        ),
        (
            {
                "strategy": {"name": "fedit", "reduce": {"name": "multi_krum", "f": 0, "m": 3}},
                "sampling": {"kind": "poisson", "fraction": 0.9},
            },
            "strategy.reduce: expected at least 3 clients in every round, found 1",
        ),
    ],
)
def test_refused_with_the_reason(prepared_folder, change, message):
    with pytest.raises(InputError, match=message) as refused:
        planning.make_plan(tiny(prepared_folder, "disease", **change))
    assert "\n" not in str(refused.value)
