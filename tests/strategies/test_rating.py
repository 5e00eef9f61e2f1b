"""The rating rules of Rate-My-LoRA by hand, and what a rating does to a client's step."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raylora.core.errors import RunError
from raylora.core.types import ClientUpdate, State
from raylora.strategies import create, toy
from raylora.strategies.compare import relative
from raylora.strategies.rating import RULES

NAMES = "abc"


def updates(received: list[float], trained: list[float], peers: dict[tuple[str, str], float] | None = None) -> list[ClientUpdate]:
    """One update a client; peers: {(rater, rated): score}."""
    return [
        ClientUpdate(
            client_id=name,
            num_examples=1,
            adapter={},
            metrics={
                "score_received": r,
                "score_trained": t,
                **{f"score_peer:{rated}": v for (rater, rated), v in (peers or {}).items() if rater == name},
            },
        )
        for name, r, t in zip(NAMES, received, trained, strict=False)
    ]


def weigh(rule: str, sent: list[ClientUpdate], temperature: float, before: dict[str, float] | None = None, round: int = 1) -> list[float]:
    state = State(values={"round": round, **({"trained": before} if before is not None else {})})
    return RULES[rule][0](state, sent, temperature, 0)


def test_drop_compares_the_last_own_model_with_what_came_back() -> None:
    """v_local of the round before 0.9, 0.6, 0.5; v_global now 0.7, 0.8, 0.5: losses 0.2, none, none."""
    found = weigh("drop", updates([0.7, 0.8, 0.5], [0.0, 0.0, 0.0]), 0.1, {"a": 0.9, "b": 0.6, "c": 0.5})
    assert found == pytest.approx([math.exp(-2.0), 1.0, 1.0])


def test_drop_has_nothing_to_go_by_in_round_0_or_for_a_newcomer() -> None:
    sent = updates([0.1, 0.1, 0.1], [0.9, 0.9, 0.9])
    assert weigh("drop", sent, 0.1, round=0) == [1.0, 1.0, 1.0]
    assert weigh("drop", sent, 0.1, {"a": 0.2})[1:] == [1.0, 1.0]


def test_trend_compares_own_models_of_two_rounds() -> None:
    found = weigh("trend", updates([0.0] * 3, [0.5, 0.9, 0.7]), 0.2, {"a": 0.6, "b": 0.6})
    assert found == pytest.approx([math.exp(-0.5), 1.0, 1.0])


def test_softmax_sums_to_the_number_of_clients() -> None:
    found = weigh("softmax", updates([0.0] * 3, [0.5, 0.7, 0.9]), 0.2)
    odds = [math.exp(v / 0.2) for v in (0.5, 0.7, 0.9)]
    assert found == pytest.approx([3 * x / sum(odds) for x in odds])


def test_peer_by_hand() -> None:
    """Means over the others: a (0.8 + 0.4) / 2 = 0.6, b 0.3, c 0.45; over the largest 1, 0.5, 0.75, squared at T = 1/2."""
    peers = {("b", "a"): 0.8, ("c", "a"): 0.4, ("a", "b"): 0.2, ("c", "b"): 0.4, ("a", "c"): 0.5, ("b", "c"): 0.4}
    assert weigh("peer", updates([0.0] * 3, [0.0] * 3, peers), 0.5) == pytest.approx([1.0, 0.25, 0.5625])
    none = dict.fromkeys(peers, 0.0)
    assert weigh("peer", updates([0.0] * 3, [0.0] * 3, none), 0.5) == [1.0, 1.0, 1.0]
    assert weigh("peer", updates([0.0], [0.0]), 0.5) == [1.0]


def test_shuffled_permutes_the_weights_of_drop() -> None:
    sent, before = updates([0.7, 0.5, 0.3], [0.0] * 3), {"a": 0.8, "b": 0.8, "c": 0.8}
    plain = weigh("drop", sent, 0.1, before)
    drawn = [weigh("shuffled", sent, 0.1, before, round) for round in range(30)]
    assert all(sorted(w) == sorted(plain) for w in drawn)
    assert len({tuple(w) for w in drawn}) == 6  # all permutations of three


@settings(deadline=None, max_examples=40)
@given(st.sampled_from(sorted(RULES)), st.lists(st.floats(0, 1), min_size=9, max_size=9))
def test_infinite_temperature_gives_1_for_any_scores(rule: str, v: list[float]) -> None:
    peers = {(r, c): x for x, (r, c) in zip(v, [(r, c) for r in NAMES for c in NAMES if r != c], strict=False)}
    sent = updates(v[:3], v[3:6], peers)
    assert weigh(rule, sent, math.inf, dict(zip(NAMES, v[6:], strict=True))) == [1.0, 1.0, 1.0]


@settings(deadline=None, max_examples=40)
@given(st.sampled_from(["drop", "trend", "peer", "shuffled"]), st.lists(st.floats(0, 1), min_size=9, max_size=9), st.floats(0.01, 10))
def test_penalties_lie_between_0_and_1(rule: str, v: list[float], temperature: float) -> None:
    peers = {(r, c): x for x, (r, c) in zip(v, [(r, c) for r in NAMES for c in NAMES if r != c], strict=False)}
    assert all(0.0 <= w <= 1.0 for w in weigh(rule, updates(v[:3], v[3:6], peers), temperature, dict(zip(NAMES, v[6:], strict=True))))


@pytest.mark.parametrize("metrics", [{}, {"score_received": math.nan}])
def test_a_missing_score_names_the_client(metrics: dict[str, float]) -> None:
    sent = [ClientUpdate(client_id="a", num_examples=1, adapter={}, metrics=metrics)]
    with pytest.raises(RunError, match="client a: expected a finite score_received"):
        weigh("drop", sent, 1.0, {"a": 0.5})


def test_a_weight_shrinks_that_clients_step_and_is_not_made_up_for() -> None:
    """W_1 - W_0 = sum_c w_c p_c s B A with w of the state: a weight below 1 makes the sum smaller, nobody else's larger."""
    sites = [toy.Client(id=name, num_examples=n, rank=2, scaling=0.5) for name, n in zip(NAMES, (1, 2, 3), strict=True)]
    game = toy.start(create("rate_my_lora", {"rule": "softmax", "temperature": 0.2}), 2)
    seats = [toy.seat(game, site) for site in sites]
    products = [toy.global_part(toy.replace(seat, tree=toy.at_random(seat)[0]))["blocks.0.q"] for seat in seats]
    game = toy.play(game, sites, toy.at_random)
    w = game.state.values["weights"]
    expected = sum(w[site.id] * site.num_examples / 6 * dense for site, dense in zip(sites, products, strict=True))  # type: ignore[index]
    assert relative(toy.global_part(toy.seat(game, sites[0]))["blocks.0.q"], expected) < 1e-6
    assert len(set(w.values())) == 3  # type: ignore[attr-defined]


def test_lag_over_two_rounds() -> None:
    """Round 1's weights come from round 0's trained scores and round 1's received ones."""
    strategy = create("rate_my_lora", {"temperature": 0.1})
    sites = [toy.Client(id=name, num_examples=1, rank=2) for name in NAMES]
    first = toy.play(toy.start(strategy, 2), sites, toy.at_random)
    second = toy.play(first, sites, toy.at_random)
    assert set(first.state.values["weights"].values()) == {1.0}  # type: ignore[attr-defined]
    for before, now in zip(first.updates, second.updates, strict=True):
        loss = max(0.0, before.metrics["score_trained"] - now.metrics["score_received"])
        assert second.state.values["weights"][now.client_id] == pytest.approx(math.exp(-loss / 0.1))  # type: ignore[index]
    assert second.state.values["trained"] == {u.client_id: u.metrics["score_trained"] for u in second.updates}


def test_every_round_starts_from_zero_with_a_fresh_a() -> None:
    strategy = create("rate_my_lora")
    site = toy.Client(id="a", num_examples=1, rank=2)
    game, rows = toy.start(strategy, 2), []
    for _ in range(4):
        tree = toy.seat(game, site).tree
        assert not tree["blocks.0.q.lora_B"].any()
        rows.append(tree["blocks.0.q.lora_A"])
        game = toy.play(game, [site], toy.at_random)
    assert np.linalg.matrix_rank(np.concatenate(rows)) == 6
