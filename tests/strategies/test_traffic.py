"""Bytes of every strategy against a count by hand.

Modules of (out, in) = (7, 6) and (5, 12), head of 3 + 12 elements, rank 2, three clients. So A has 2 * (6 + 12) = 36 elements, B has
2 * (7 + 5) = 24, a pair 60. A stack of three clients has rank 6: 6 * 13 = 78 for the first module, and 5 * 17 = 85 for the second, whose
smaller side is 5.
"""

from dataclasses import replace

import pytest

from raylora.core.payload import bytes_of
from raylora.core.types import Client
from raylora.strategies import STRATEGIES, create, toy

A, B, PAIR, HEAD, STACK, FULL = 36, 24, 60, 15, 78 + 85, 7 * 6 + 5 * 12
SITES = tuple(Client(id=name, num_examples=size, rank=2) for name, size in (("a", 3), ("b", 1), ("c", 2)))

# name: (options, down in round 0, 1, 2, up in round 0, 1, 2) in elements, for each client
ELEMENTS: dict[str, tuple[dict[str, object], tuple[int, int, int], tuple[int, int, int]]] = {
    "local": ({}, (0, 0, 0), (0, 0, 0)),
    "centralised": ({}, (PAIR + HEAD,) * 3, (PAIR + HEAD,) * 3),
    "fedavg_full": ({}, (FULL + HEAD,) * 3, (FULL + HEAD,) * 3),
    "fedit": ({}, (PAIR + HEAD,) * 3, (PAIR + HEAD,) * 3),
    "ffa_lora": ({}, (B + HEAD,) * 3, (B + HEAD,) * 3),
    "fedsa_lora": ({}, (A + HEAD,) * 3, (A + HEAD,) * 3),
    "flora": ({}, (PAIR + HEAD, STACK + PAIR + HEAD, STACK + PAIR + HEAD), (PAIR + HEAD,) * 3),
    "hetlora": ({}, (PAIR + HEAD,) * 3, (PAIR + HEAD,) * 3),
    "flexlora": ({}, (PAIR + HEAD,) * 3, (PAIR + HEAD,) * 3),
    "fedex_lora": ({}, (PAIR + HEAD, 2 * PAIR + PAIR + HEAD, 2 * PAIR + PAIR + HEAD), (PAIR + HEAD,) * 3),  # residual: K - 1 pairs
    "rolora": ({}, (0, B + HEAD, A + HEAD), (B + HEAD, A + HEAD, B + HEAD)),  # round 0: the seeded start is everybody's already
    "lora_fair": ({}, (PAIR + HEAD,) * 3, (PAIR + HEAD,) * 3),
    "feddpa": ({}, (PAIR + HEAD,) * 3, (PAIR + HEAD,) * 3),
    "fedalt": ({}, (PAIR + HEAD,) * 3, (PAIR + HEAD,) * 3),  # down: the mean of the others
    "sdflora": ({}, (PAIR + HEAD,) * 3, (PAIR + HEAD,) * 3),
    "fedprox": ({}, (PAIR + HEAD,) * 3, (PAIR + HEAD,) * 3),
    "scaffold": ({}, (2 * (PAIR + HEAD),) * 3, (2 * (PAIR + HEAD),) * 3),
    "fedavgm": ({}, (PAIR + HEAD,) * 3, (PAIR + HEAD,) * 3),
    "fedadam": ({}, (PAIR + HEAD,) * 3, (PAIR + HEAD,) * 3),
    "fedyogi": ({}, (PAIR + HEAD,) * 3, (PAIR + HEAD,) * 3),
    "rate_my_lora": ({}, (PAIR + HEAD, STACK + PAIR + HEAD, STACK + PAIR + HEAD), (PAIR + HEAD,) * 3),
    "med_duallora": ({}, (PAIR + HEAD,) * 3, (PAIR + HEAD,) * 3),
}
PRIVATE_HEAD = {
    "fedit": (PAIR, PAIR),
    "ffa_lora": (B, B),
    "fedsa_lora": (A, A),
    "med_duallora": (PAIR, PAIR),
    "fedalt": (PAIR, PAIR),
    "flora": (STACK + PAIR, PAIR),
}
SCORES = {"rate_my_lora": 2}  # received, trained


def test_every_strategy_is_counted() -> None:
    assert ELEMENTS.keys() == STRATEGIES.keys()


@pytest.mark.parametrize("name", ELEMENTS)
def test_bytes_by_hand(name: str) -> None:
    options, down, up = ELEMENTS[name]
    game = toy.start(create(name, options), 2)
    for round in range(3):
        sent = [bytes_of(game.strategy.broadcast(game.state, site)) for site in SITES]
        game = toy.play(game, SITES, toy.at_random)
        assert sent == [4 * down[round]] * 3
        assert [bytes_of(update) for update in game.updates] == [4 * up[round] + 8 * (1 + SCORES.get(name, 0))] * 3


@pytest.mark.parametrize("name", PRIVATE_HEAD)
def test_a_private_head_is_not_sent(name: str) -> None:
    game = toy.start(create(name, {"head": "private"}), 2)
    game = toy.play(game, SITES, toy.at_random)
    assert bytes_of(game.strategy.broadcast(game.state, SITES[0])) == 4 * PRIVATE_HEAD[name][0]
    assert bytes_of(game.updates[0]) == 4 * PRIVATE_HEAD[name][1] + 8


def test_peer_rating_costs_the_other_clients_adapters() -> None:
    """The second exchange: two pairs and heads down to each of three clients, two scores up."""
    strategy = create("rate_my_lora", {"rule": "peer"})
    game = toy.play(toy.start(strategy, 2), SITES, toy.at_random)
    assert strategy.review is not None
    asked = strategy.review(strategy.init(game.initial), game.updates, SITES[0])
    assert asked is not None and bytes_of(asked) == 4 * 2 * (PAIR + HEAD)
    assert asked.task.phases == () and asked.task.scores == ("peer:b", "peer:c")
    assert bytes_of(game.updates[0]) == 4 * (PAIR + HEAD) + 8 * (1 + 2)
    assert strategy.review(game.state, game.updates[:1], SITES[0]) is None


def test_rolora_sends_both_factors_to_a_client_that_was_away() -> None:
    game = toy.start(create("rolora"), 2)
    for cohort in (SITES, SITES[:2], SITES[:2]):
        game = toy.play(game, cohort, toy.at_random)
    sent = [bytes_of(game.strategy.broadcast(game.state, site)) for site in SITES]
    assert sent == [4 * (B + HEAD), 4 * (B + HEAD), 4 * (PAIR + HEAD)]


def test_rolora_sends_again_what_a_round_that_nobody_finished_in_time_took_from_its_clients() -> None:
    """A client gives away the factor that it uploads. If no answer counts, the server's has not changed, and the client has none."""
    game = toy.start(create("rolora"), 2)
    for _ in range(2):
        game = toy.play(game, SITES, toy.at_random)
    late = replace(game, state=game.strategy.aggregate(game.state, []))  # of B, in the third round
    assert [bytes_of(late.strategy.broadcast(late.state, site)) for site in SITES] == [4 * (PAIR + HEAD)] * 3
    fresh = toy.start(create("rolora"), 2)
    fresh = replace(fresh, state=fresh.strategy.aggregate(fresh.state, []))
    assert bytes_of(fresh.strategy.broadcast(fresh.state, SITES[0])) == 4 * (B + HEAD)


@pytest.mark.parametrize("period", [1, 3])
def test_rolora_sends_both_factors_after_however_many_rounds(period: int) -> None:
    game = toy.start(create("rolora", {"period": period}), 2)
    for _ in range(2 * period):
        game = toy.play(game, SITES, toy.at_random)
    state = game.state
    for _ in range(20):
        state = game.strategy.aggregate(state, [])  # of which no answer counted: a client may have given both away
    assert bytes_of(game.strategy.broadcast(state, SITES[1])) == 4 * (PAIR + HEAD)


def test_ranks_by_client_pay_for_their_own() -> None:
    sites = [Client(id=str(rank), num_examples=1, rank=rank) for rank in (1, 2, 4)]
    game = toy.play(toy.start(create("flexlora"), 4), sites, toy.at_random)
    assert [bytes_of(update) for update in game.updates] == [4 * (30 * rank + HEAD) + 8 for rank in (1, 2, 4)]
    assert [bytes_of(game.strategy.broadcast(game.state, site)) for site in sites] == [4 * (30 * rank + HEAD) for rank in (1, 2, 4)]
