"""What every strategy has to keep to, whatever its method: `check(factory)` says in words which property fails.

A property that a method's own definition breaks is named in `Strategy.exempt`, with the reason; it is then left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from raylora.core import lowrank
from raylora.core import tree as trees
from raylora.core.errors import InputError
from raylora.core.types import Client, State, Strategy
from raylora.strategies import toy
from raylora.strategies.compare import TIGHT, best, digest, pooled, relative, unequal, view

RANK = 2
SITES = (
    Client(id="a", num_examples=3, rank=RANK, scaling=2.0),
    Client(id="b", num_examples=1, rank=RANK, scaling=0.7),
    Client(id="c", num_examples=2, rank=RANK, scaling=2.0),
)

Factory = Callable[[], Strategy]
Property = Callable[[Strategy], str | None]


def check(factory: Factory) -> list[str]:
    """The failed properties, each as "name: what was seen"; empty if all hold. The factory is called without arguments."""
    strategy = factory()
    failed = [f"{key}: exempt, but no such property" for key in strategy.exempt if key not in PROPERTIES]
    failed += [f"{key}: exempt, but without a reason" for key, reason in strategy.exempt.items() if not reason]
    for key, holds in PROPERTIES.items():
        if key in strategy.exempt:
            continue
        try:
            problem = holds(factory())
        except Exception as error:  # a user's strategy may fail in any way; it is this property that then does not hold
            problem = f"raised {type(error).__name__}: {error}"
        if problem:
            failed.append(f"{key}: {problem}")
    return failed


def own_product(strategy: Strategy) -> str | None:
    """One client in, its own model out: sum of its adapters, base, head."""
    (alone,) = SITES[:1]
    game = toy.start(strategy, RANK)
    trained = replace(toy.seat(game, alone), tree=toy.at_random(toy.seat(game, alone))[0])
    back = toy.seat(toy.play(game, [alone], toy.at_random), alone)
    return unequal(toy.whole_model(trained), toy.whole_model(back), "of the only client changed by")


def product(strategy: Strategy) -> str | None:
    """The claim about the products (`Strategy.product`), over three rounds with sizes and scalings that differ."""
    if strategy.product not in ("", "exact", "best", "inexact"):
        return f"expected a claim of exact, best, inexact or nothing, found {strategy.product}"
    game, sites = toy.start(strategy, RANK), SITES if strategy.product != "inexact" else SITES[::2]
    worst = 0.0
    for _ in range(3 if strategy.product else 0):
        expected = pooled([replace(seat, tree=toy.at_random(seat)[0]) for seat in (toy.seat(game, client) for client in sites)])
        game = toy.play(game, sites, toy.at_random)
        for seat in (toy.seat(game, client) for client in sites):
            for module, dense in expected.items():
                gap = relative(toy.global_part(seat)[module], best(dense, RANK) if strategy.product == "best" else dense)
                worst = max(worst, gap)
    if strategy.product in ("exact", "best") and worst > 2 * TIGHT:
        wanted = "sum p_k scaling_k B_k A_k" + (" at its best rank" if strategy.product == "best" else "")
        return f"the global part is {worst:.1e} (relative) away from {wanted}"
    if strategy.product == "inexact" and worst < 1e-3:
        return f"declared inexact, but within {worst:.1e} (relative) of sum p_k scaling_k B_k A_k"
    return None


def order(strategy: Strategy) -> str | None:
    """The order of arrival changes no bit."""
    game = played(strategy, 2)
    last = toy.play(game, SITES, toy.at_random)
    orders = (last.updates[::-1], (last.updates[1], last.updates[2], last.updates[0]))
    if any(digest(strategy.aggregate(game.state, arrived)) != digest(last.state) for arrived in orders):
        return "the state after a round depends on the order in which updates arrive"
    return None


def repeatable(strategy: Strategy) -> str | None:
    """The same rounds twice give the same bits: no hidden state, no global randomness."""
    game = played(strategy, 2)
    again = strategy.aggregate(game.state, toy.play(game, SITES, toy.at_random).updates)
    if digest(again) != digest(toy.play(game, SITES, toy.at_random).state) or digest(played(strategy, 2).state) != digest(game.state):
        return "the same updates twice give different states"
    return None


def untouched(strategy: Strategy) -> str | None:
    """Initial tree, state and updates are the same after as before."""
    initial = {name: np.array(array) for name, array in toy.initial_tree(strategy, RANK).items()}  # writable on purpose
    before = digest(State(trees={"initial": initial}))
    game = toy.start(strategy, RANK, initial=initial)
    for _ in range(2):
        played_on = toy.play(game, SITES, toy.at_random)
        updates = [replace(u, adapter={name: np.array(x) for name, x in u.adapter.items()}) for u in played_on.updates]
        state, sent = digest(game.state), [digest(State(trees={"sent": u.adapter, **u.extra})) for u in updates]
        strategy.aggregate(game.state, updates)
        if digest(game.state) != state:
            return "aggregate or broadcast changed the state it was given"
        if [digest(State(trees={"sent": u.adapter, **u.extra})) for u in updates] != sent:
            return "aggregate changed an update it was given"
        game = played_on
    return None if digest(State(trees={"initial": initial})) == before else "the initial tree was changed"


def alive(strategy: Strategy) -> str | None:
    """No dead direction: no i with A[i, :] = 0 and B[:, i] = 0 in a pair that a client trains; its gradient would be 0 for ever."""
    game = toy.start(strategy, RANK)
    for _ in range(3):
        for client in SITES:
            seat = toy.seat(game, client)
            for adapter in [name for name in strategy.adapters if name != "rest"]:
                for module, (a, b) in lowrank.pairs(seat.tree, adapter).items():
                    if np.any((np.abs(a).max(axis=1) == 0) & (np.abs(b).max(axis=0) == 0)):
                        return f"round {seat.broadcast.task.round}: {module} has a dead direction at client {client.id}"
        game = toy.play(game, SITES, toy.at_random)
    return None


def private(strategy: Strategy) -> str | None:
    """Names of the private adapter are in no broadcast, no update and no state of the server."""
    game = toy.start(strategy, RANK)
    for _ in range(2):
        seat = toy.seat(game, SITES[0])
        extra = [name for tree in seat.broadcast.extra.values() for name in tree]
        if sent := trees.match([*seat.broadcast.adapter, *seat.broadcast.base_delta, *extra], (trees.LOCAL,)):
            return f"the server sends {sent[0]}"
        game = toy.play(game, SITES, toy.at_random)
        if sent := trees.match([name for update in game.updates for name in update.adapter], (trees.LOCAL,)):
            return f"a client sends {sent[0]}"
        if held := trees.match([name for tree in game.state.trees.values() for name in tree], (trees.LOCAL,)):
            return f"the server keeps {held[0]}"
    return None


def reload(strategy: Strategy) -> str | None:
    """The state's way through named trees and JSON changes nothing."""
    game = played(strategy, 2)
    back = replace(game, state=toy.reloaded(game.state))
    if back.state.values != game.state.values:  # integer keys and tuples come back as something else
        return "the state's values do not survive JSON"
    same = digest(toy.play(back, SITES, toy.at_random).state) == digest(toy.play(game, SITES, toy.at_random).state)
    return None if same else "the round after a reload differs"


def zero_weight(strategy: Strategy) -> str | None:
    """A client without training patients changes nothing."""
    game = played(strategy, 1)
    idle = replace(SITES[1], id="idle", num_examples=0)
    with_idle, without = toy.play(game, [*SITES, idle], toy.at_random), toy.play(game, SITES, toy.at_random)
    return unequal(view(without, SITES[0]), view(with_idle, SITES[0]), "moved by a client without patients, by")


def scale_free(strategy: Strategy) -> str | None:
    """Ten times as many patients everywhere is the same federation."""
    many = [replace(client, num_examples=10 * client.num_examples) for client in SITES]
    game = played(strategy, 1)
    few_view, many_view = (view(toy.play(game, sites, toy.at_random), SITES[0]) for sites in (SITES, many))
    return unequal(few_view, many_view, "changed when every size was multiplied by ten, by")


def names(strategy: Strategy) -> str | None:
    """Every name that is sent up comes back down, with its shape, as float32; nothing else is sent."""
    game = toy.start(strategy, RANK)
    for _ in range(3):
        game = toy.play(game, SITES, toy.at_random)
        for update in game.updates:
            seat = toy.seat(game, SITES[[client.id for client in SITES].index(update.client_id)])
            back = {**seat.broadcast.adapter, **seat.tree} if seat.broadcast.task.keeps else seat.broadcast.adapter
            if lost := sorted(update.adapter.keys() - back.keys()):
                return f"round {seat.broadcast.task.round}: {lost[0]} was sent up and did not come back"
            if other := [name for name, array in seat.broadcast.adapter.items() if array.dtype != np.float32]:
                return f"{other[0]} is sent as {seat.broadcast.adapter[other[0]].dtype}, expected float32"
    return None


def late_client(strategy: Strategy) -> str | None:
    """Who missed rounds gets the same shared model as who did not."""
    first, late = SITES[0], replace(SITES[2], rank=RANK)  # one scaling, so that equal models have equal factors
    game, shared = toy.start(strategy, RANK), set[str]()
    for _ in range(3):
        seat = toy.seat(game, first)
        shared |= set(trees.match(seat.tree, (*seat.broadcast.task.uploads, *(f"!{name}" for name in seat.broadcast.task.keeps))))
        game = toy.play(game, SITES[:2], toy.at_random)
    early_seat, late_seat = toy.seat(game, first), toy.seat(game, late)
    problem = unequal({n: early_seat.tree[n] for n in sorted(shared)}, {n: late_seat.tree[n] for n in sorted(shared)}, "is stale by")
    return problem or unequal(early_seat.base, late_seat.base, "of the base is stale by")


def mixed_ranks(strategy: Strategy) -> str | None:
    """Ranks 1, 2 and 4 over three clients: a strategy that allows them gets through, another refuses in one line."""
    sites = [replace(client, rank=rank, scaling=8 / rank) for client, rank in zip(SITES, (1, 2, 4), strict=True)]
    game = toy.start(strategy, 4)
    try:
        for _ in range(3):
            game = toy.play(game, sites, toy.at_random)
    except InputError as error:
        one_line = "\n" not in str(error) and "rank" in str(error)
        return None if not strategy.mixed_ranks and one_line else f"ranks 1, 2, 4 are refused: {error}"
    return None if strategy.mixed_ranks else "declares that it needs one rank, but takes ranks 1, 2, 4"


PROPERTIES: Mapping[str, Property] = {
    "own product": own_product,
    "product": product,
    "order": order,
    "repeatable": repeatable,
    "untouched": untouched,
    "alive": alive,
    "private": private,
    "reload": reload,
    "zero weight": zero_weight,
    "scale-free": scale_free,
    "names": names,
    "late client": late_client,
    "mixed ranks": mixed_ranks,
}


def played(strategy: Strategy, rounds: int) -> toy.Game:
    """The federation of `SITES` after some rounds."""
    game = toy.start(strategy, RANK)
    for _ in range(rounds):
        game = toy.play(game, SITES, toy.at_random)
    return game
