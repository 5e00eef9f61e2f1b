"""A federation of a few small matrices in memory: enough to hold a strategy to its contract, or to try one, without torch or Ray.

A client here does what a real one does with a broadcast: folds the base deltas that it has missed, overlays its tree, trains the names
of the task, sends the uploads and keeps the rest.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from raylora.core import lowrank
from raylora.core import tree as trees
from raylora.core.seeds import generator
from raylora.core.types import Broadcast, Client, ClientUpdate, State, Strategy, Task, Tree

MODULES = {"blocks.0.q": (7, 6), "blocks.1.conv": (5, 12)}
"""{module: (out, in)}; the second is a convolution of 3 channels and 4 taps."""


@dataclass(frozen=True, kw_only=True)
class Seat:
    """What a client sees in a round: its model's names, and its base as dense changes {module: (out, in)} since the start."""

    client: Client
    tree: Tree
    base: Mapping[str, np.ndarray]
    broadcast: Broadcast


Learn = Callable[[Seat], tuple[Tree, Mapping[str, Tree]]]
"""A seat to (the client's tree after training, extra trees to send)."""


@dataclass(frozen=True, kw_only=True)
class Game:
    """A federation between two rounds."""

    strategy: Strategy
    initial: Tree  # the seeded tree at the largest rank, all adapters included
    state: State
    base: Mapping[str, np.ndarray] = field(default_factory=dict)  # dense sum of the base deltas so far
    version: int = 0  # how many of them there are
    kept: Mapping[str, Tree] = field(default_factory=dict)  # client -> names that it keeps
    updates: tuple[ClientUpdate, ...] = ()  # of the last round


def initial_tree(strategy: Strategy, rank: int, seed: int = 0, modules: Mapping[str, tuple[int, int]] = MODULES) -> Tree:
    """What `init` is given: for each declared adapter A random and B zero, a router if there is one, a head; or plain weights only."""
    draw = generator(seed, "toy")
    tree: dict[str, np.ndarray] = {"head.bias": np.zeros(3), "head.weight": draw.normal(size=(3, 4))}
    for module, (out, inputs) in modules.items():
        if strategy.trains == "all":
            tree[f"{module}.weight"] = draw.normal(size=(out, inputs))
        for adapter, own_rank in strategy.adapters.items() if strategy.trains != "all" else ():
            r = own_rank or rank
            pair = draw.normal(size=(r, inputs)) / np.sqrt(inputs), np.zeros((out, r))
            tree |= lowrank.named({module: pair}, adapter)
        if strategy.router:
            tree[f"router.{module}.weight"] = draw.normal(size=(len(strategy.adapters), inputs))
    return trees.freeze(tree)


def start(strategy: Strategy, rank: int, seed: int = 0, initial: Tree | None = None) -> Game:
    """The federation before round 0."""
    initial = initial_tree(strategy, rank, seed) if initial is None else initial
    return Game(strategy=strategy, initial=initial, state=strategy.init(initial))


def seat(game: Game, client: Client) -> Seat:
    """What a client sees if it takes part in the next round. Raises ValueError for a name or a shape that its model does not have."""
    broadcast = game.strategy.broadcast(game.state, client)
    base, version = folded(game, broadcast)
    if broadcast.base_version != version:
        raise ValueError(f"base version {broadcast.base_version} after {version} base deltas")
    own_rank = None if game.strategy.adapters.get("") is not None else lowrank.rank_of(broadcast.adapter) or client.rank
    if own_rank is not None:  # it may have been pruned
        client = replace(client, rank=own_rank, scaling=client.scaling * client.rank / own_rank)
    has = {**shared_cut(game.initial, own_rank), **game.kept.get(client.id, {})}
    for name, array in broadcast.adapter.items():
        if name not in has or has[name].shape != array.shape:
            raise ValueError(
                f"broadcast {name} {array.shape} to client {client.id}, which has {has[name].shape if name in has else 'no such name'}"
            )
    return Seat(client=client, tree={**has, **broadcast.adapter}, base=base, broadcast=replace(broadcast, base_delta={}))


def folded(game: Game, broadcast: Broadcast) -> tuple[Mapping[str, np.ndarray], int]:
    """The base and its version once the delta of a broadcast is in it; a client that missed earlier ones is sent them too."""
    if broadcast.base_version == game.version:
        return game.base, game.version
    pairs = lowrank.pairs(broadcast.base_delta)
    changed = {module: game.base.get(module, 0.0) + lowrank.product(pair) for module, pair in pairs.items()}
    return {**game.base, **changed}, game.version + 1


def shared_cut(tree: Tree, rank: int | None) -> Tree:
    """The global pairs cut to a client's rank (None: one rank for all); private ones, heads and routers as they are."""
    if rank is None:
        return tree
    shared = trees.select(tree, trees.GLOBAL)
    return {**tree, **lowrank.cut(shared, min(rank, lowrank.rank_of(shared)))}


def play(game: Game, cohort: Sequence[Client], learn: Learn) -> Game:
    """One round with these clients, the review of `Strategy.review` included."""
    updates, kept = [], dict(game.kept)
    for client in cohort:
        here = seat(game, client)
        task = here.broadcast.task
        after, extra = learn(here)
        uploads = trees.match(after, task.uploads)
        stays = trees.match(after, ("*", *(f"!{name}" for name in uploads), *task.keeps))
        kept[client.id] = trees.freeze({name: after[name] for name in stays})
        updates.append(
            ClientUpdate(
                client_id=client.id,
                num_examples=client.num_examples,
                adapter=trees.freeze({name: after[name] for name in uploads}),
                metrics=scores(task, client),
                extra={key: trees.freeze(tree) for key, tree in extra.items()},
                scaling=here.client.scaling,
            )
        )
    if game.strategy.review is not None:
        asked = [game.strategy.review(game.state, updates, client) for client in cohort]
        replies = [{} if b is None else scores(b.task, client) for b, client in zip(asked, cohort, strict=True)]
        updates = [replace(update, metrics={**update.metrics, **reply}) for update, reply in zip(updates, replies, strict=True)]
    base, version = folded(game, game.strategy.broadcast(game.state, cohort[0]))
    state = game.strategy.aggregate(game.state, updates)
    return replace(game, state=state, base=base, version=version, kept=kept, updates=tuple(updates))


def scores(task: Task, client: Client) -> dict[str, float]:
    """A number in (0.5, 0.9) for each model that the task wants scored."""
    return {f"score_{name}": 0.5 + 0.4 * float(generator(0, name, task.round, client.id).random()) for name in task.scores}


def at_random(seat: Seat) -> tuple[Tree, Mapping[str, Tree]]:
    """Training that moves every trained name by a draw of (round, client)."""
    task = seat.broadcast.task
    draw = generator(1, "learn", task.round, seat.client.id)
    trained = {name for phase in task.phases for name in trees.match(seat.tree, phase.trains)}
    moved = {name: array + 0.3 * draw.normal(size=array.shape) for name, array in sorted(seat.tree.items()) if name in trained}
    control = {name: draw.normal(size=array.shape) for name, array in sorted(seat.broadcast.extra.get("c", {}).items())}
    return trees.freeze({**seat.tree, **moved}), {"delta_c": control} if control else {}


def global_part(seat: Seat) -> dict[str, np.ndarray]:
    """{module: base + scaling * B @ A of the global adapter}, and plain names."""
    pairs = lowrank.pairs(seat.tree)
    dense = {module: seat.base.get(module, 0.0) + seat.client.scaling * lowrank.product(pair) for module, pair in pairs.items()}
    return {**{name: seat.tree[name] for name in trees.match(seat.tree, trees.HEAD)}, **dense}


def whole_model(seat: Seat) -> dict[str, np.ndarray]:
    """The global part plus the private adapter."""
    whole = global_part(seat)
    for module, pair in lowrank.pairs(seat.tree, "local").items():
        whole[module] = whole.get(module, 0.0) + seat.client.scaling * lowrank.product(pair)
    return whole


def reloaded(state: State) -> State:
    """The state as a checkpoint would bring it back: copies of its trees, its values through JSON."""
    copies = {key: trees.freeze({name: np.array(array) for name, array in tree.items()}) for key, tree in state.trees.items()}
    return State(trees=copies, values=json.loads(json.dumps(state.values, allow_nan=False)))
