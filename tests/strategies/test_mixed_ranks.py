"""Ranks 2, 4, 8, 16 over four clients: a method that allows them is right, another refuses in one line."""

import numpy as np
import pytest

from raylora.core import lowrank
from raylora.core.errors import InputError
from raylora.core.types import Client
from raylora.strategies import STRATEGIES, create, toy
from raylora.strategies.compare import best, pooled, relative

RANKS = (2, 4, 8, 16)
SITES = tuple(Client(id=str(rank), num_examples=17 - rank, rank=rank, scaling=16 / rank) for rank in RANKS)
MODULES = {"q": (40, 24), "conv": (18, 54)}
ALLOWED = {name for name, factory in STRATEGIES.items() if factory().mixed_ranks}


def start(name: str) -> toy.Game:
    strategy = create(name)
    return toy.start(strategy, 16, initial=toy.initial_tree(strategy, 16, 0, MODULES))


def test_which_methods_allow_them() -> None:
    assert ALLOWED == {"local", "fedavg_full", "flora", "hetlora", "flexlora", "sdflora", "rate_my_lora"}


@pytest.mark.parametrize("name", sorted(ALLOWED - {"local", "fedavg_full"}))
def test_every_client_gets_its_rank(name: str) -> None:
    game = start(name)
    for _ in range(3):
        for site in SITES:
            pairs = lowrank.pairs(toy.seat(game, site).broadcast.adapter)
            assert {a.shape[0] for a, _ in pairs.values()} == {site.rank}
        game = toy.play(game, SITES, toy.at_random)


@pytest.mark.parametrize(("name", "exact"), [("flora", True), ("flexlora", False), ("sdflora", False)])
def test_products_with_their_own_scalings(name: str, exact: bool) -> None:
    """FLoRA: sum p_k s_k B_k A_k at every client; FlexLoRA: its best approximation of the client's rank."""
    game = start(name)
    for _ in range(2):
        seats = [toy.seat(game, site) for site in SITES]
        expected = pooled([toy.replace(seat, tree=toy.at_random(seat)[0]) for seat in seats])
        game = toy.play(game, SITES, toy.at_random)
        for site in SITES:
            found = toy.global_part(toy.seat(game, site))
            for module, dense in expected.items():
                assert relative(found[module], dense if exact else best(dense, site.rank)) < 2e-6


def test_hetlora_pads_and_weighs_by_norm() -> None:
    """Rows that only the rank-16 client has come from it alone, weighted by its share of the norms."""
    game = start("hetlora")
    after = toy.play(game, SITES, toy.at_random)
    pairs = {update.client_id: lowrank.pairs(update.adapter)["q"] for update in after.updates}
    norms = {site.id: site.scaling * np.linalg.norm(lowrank.product(pairs[site.id])) for site in SITES}
    a, b = lowrank.pairs(after.state.trees["adapter"])["q"]
    np.testing.assert_allclose(a[8:], norms["16"] / sum(norms.values()) * pairs["16"][0][8:], rtol=1e-5)
    by_hand = sum(norms[site.id] * pairs[site.id][0][:2] for site in SITES) / sum(norms.values())
    np.testing.assert_allclose(a[:2], by_hand, rtol=1e-5)
    by_hand = sum(norms[site.id] * site.scaling * pairs[site.id][1][:, :2] for site in SITES) / sum(norms.values())
    np.testing.assert_allclose(b[:, :2], by_hand, rtol=1e-5)


def test_hetlora_hands_a_product_on_to_other_ranks_as_it_is() -> None:
    """Scalings are 16 / rank: what the rank-2 client has learnt adds the same to the others' models."""
    game = toy.play(start("hetlora"), SITES[:1], toy.at_random)
    small, *others = (toy.global_part(toy.seat(game, site))["q"] for site in SITES)
    assert np.linalg.norm(small) > 0 and all(relative(other, small) < 1e-6 for other in others)


def test_hetlora_s_pruning_keeps_what_is_left_of_the_product() -> None:
    strategy, one = create("hetlora", {"gamma": 0.5, "lam": 0.1}), SITES[1:2]
    game = toy.play(toy.start(strategy, 16, initial=toy.initial_tree(strategy, 16, 0, MODULES)), one, toy.at_random)

    def vanish(seat: toy.Seat) -> tuple[dict[str, np.ndarray], dict[str, dict[str, np.ndarray]]]:
        return {n: np.concatenate([x[:, :2], 1e-3 * x[:, 2:]], axis=1) if n.endswith("lora_B") else x for n, x in seat.tree.items()}, {}

    before = toy.global_part(toy.seat(game, one[0]))
    a, b = lowrank.pairs(toy.seat(game, one[0]).tree)["q"]
    kept = one[0].scaling * b[:, :2] @ a[:2]
    game = toy.play(game, one, vanish)
    assert game.state.values["ranks"] == {"4": 2} and relative(before["q"], kept) > 0.1
    seat = toy.seat(game, one[0])
    assert (seat.client.rank, seat.client.scaling) == (2, 8.0) and relative(toy.global_part(seat)["q"], kept) < 1e-6
    moved = toy.at_random(seat)[0]
    expected = 8.0 * moved["q.lora_B"] @ moved["q.lora_A"]
    assert relative(toy.global_part(toy.seat(toy.play(game, one, toy.at_random), one[0]))["q"], expected) < 1e-6


@pytest.mark.parametrize("alpha", [8.0, 10.0, 16 / 3])
def test_hetlora_does_not_prune_whose_tail_stood_still(alpha: float) -> None:
    """Whatever rounding makes of a scaling."""
    strategy = create("hetlora", {"gamma": 0.5, "lam": 0.1})
    sites = [Client(id=str(rank), num_examples=1, rank=rank, scaling=alpha / rank) for rank in RANKS]
    game = toy.play(toy.start(strategy, 16, initial=toy.initial_tree(strategy, 16, 0, MODULES)), sites, toy.at_random)
    for _ in range(5):
        game = toy.play(game, sites, lambda seat: (seat.tree, {}))
        assert game.state.values["ranks"] == {site.id: site.rank for site in sites}


def test_hetlora_keeps_rows_that_nobody_brought() -> None:
    game = toy.play(start("hetlora"), SITES, toy.at_random)
    before = lowrank.pairs(game.state.trees["adapter"])["q"]
    after = lowrank.pairs(toy.play(game, SITES[:2], toy.at_random).state.trees["adapter"])["q"]
    np.testing.assert_array_equal(after[0][4:], before[0][4:])
    assert not np.array_equal(after[0][:4], before[0][:4])


def test_what_every_client_of_hetlora_has_pruned_is_in_no_model() -> None:
    """Neither in the server's, which newcomers get; a client that is away with its rank keeps the rows alive."""
    strategy = create("hetlora", {"gamma": 0.5, "lam": 0.1})
    game = toy.play(toy.start(strategy, 16, initial=toy.initial_tree(strategy, 16, 0, MODULES)), SITES, toy.at_random)

    def shrink(seat: toy.Seat) -> tuple[dict[str, np.ndarray], dict[str, dict[str, np.ndarray]]]:
        return {n: 0.5 * x if n.endswith("lora_B") else x for n, x in seat.tree.items()}, {}

    def tail(rank: int) -> float:
        return float(np.abs(lowrank.pairs(game.state.trees["adapter"])["q"][1][:, rank:]).max())

    game = toy.play(game, SITES[:3], shrink)
    assert game.state.values["ranks"] == {"2": 1, "4": 2, "8": 4, "16": 16} and tail(8) > 0
    game = toy.play(game, SITES[3:], shrink)
    assert game.state.values["ranks"]["16"] == 8 and tail(8) == 0 < tail(4)
    newcomer = Client(id="new", num_examples=1, rank=16, scaling=1.0)
    assert relative(*(toy.global_part(toy.seat(game, site))["q"] for site in (newcomer, SITES[3]))) < 1e-6


def test_hetlora_prunes_a_client_whose_tail_shrinks() -> None:
    """gamma 1/2: a client that halves the columns beyond half of its rank goes on with that half; one that grows them does not."""
    strategy = create("hetlora", {"gamma": 0.5, "lam": 0.1})
    game = toy.play(toy.start(strategy, 16, initial=toy.initial_tree(strategy, 16, 0, MODULES)), SITES, toy.at_random)
    assert game.state.values["ranks"] == {site.id: site.rank for site in SITES}
    assert strategy.broadcast(game.state, SITES[0]).task.phases[0].terms == {"het_prune": 0.1, "het_gamma": 0.5, "het_least": 1}

    def shrink(seat: toy.Seat) -> tuple[dict[str, np.ndarray], dict[str, dict[str, np.ndarray]]]:
        half, factor = seat.client.rank // 2, 0.5 if seat.client.rank in (4, 16) else 1.5
        tree = {name: array.copy() for name, array in seat.tree.items()}
        for name in tree:
            if name.endswith("lora_B"):
                tree[name][:, half:] *= factor
        return tree, {}

    game = toy.play(game, SITES, shrink)
    assert game.state.values["ranks"] == {"2": 2, "4": 2, "8": 8, "16": 8}
    sent = [lowrank.rank_of(strategy.broadcast(game.state, site).adapter) for site in SITES]
    assert sent == [2, 2, 8, 8]


@pytest.mark.parametrize("name", sorted(STRATEGIES.keys() - ALLOWED))
def test_the_others_refuse(name: str) -> None:
    with pytest.raises(
        InputError, match=rf"{'fedit' if name == 'centralised' else name}: expected one lora.rank for all clients"
    ) as refused:
        toy.play(start(name), SITES, toy.at_random)
    assert "\n" not in str(refused.value)


def test_a_rank_above_the_initial_adapters_is_refused() -> None:
    game = start("flora")
    with pytest.raises(InputError, match="expected at most 16, the rank of the initial adapter, found 17"):
        game.strategy.broadcast(game.state, Client(id="x", num_examples=1, rank=17))


def test_flexlora_fills_the_rank_of_an_absent_client_with_live_directions() -> None:
    """Only the smallest client came: rank 2 is known, the rank-16 client gets 16 rows that can be trained, and the same product."""
    game = toy.play(start("flexlora"), SITES[:1], toy.at_random)
    big, small = (toy.seat(game, site) for site in (SITES[3], SITES[0]))
    a, b = lowrank.pairs(big.tree)["q"]
    assert a.shape[0] == 16 and (np.abs(a).max(axis=1) > 0).all() and not b[:, 2:].any()
    assert relative(toy.global_part(big)["q"], toy.global_part(small)["q"]) < 1e-6
