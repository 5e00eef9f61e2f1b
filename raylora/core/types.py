"""The vocabulary of a round: what crosses between server and clients, and what a strategy is.

Construct everything by keyword: new fields have defaults.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

Tree = Mapping[str, np.ndarray]
"""Flat names to read-only float32 arrays. A LoRA pair is ``<module>.lora_A`` (r, in) and ``<module>.lora_B`` (out, r); a convolution's
pair is the same in 2-D: A (r, in * kernel), B (out, r). A second, local adapter has the same names behind ``local.``; heads and decoders
have plain names like any other parameter."""

EMPTY: Tree = {}


@dataclass(frozen=True, kw_only=True)
class Client:
    """What the server knows of one site."""

    id: str
    num_examples: int  # training patients
    rank: int
    scaling: float = 1.0  # alpha / rank: the pair adds scaling * B @ A


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One stretch of local training."""

    trains: tuple[str, ...]  # fnmatch patterns of the names that are optimised; a leading "!" takes names out again
    share: float = 1.0  # of the local steps
    terms: Mapping[str, float] = field(default_factory=dict)  # added to the local step: {"prox": mu}, {"control": 1.0}, ...
    gates: Mapping[str, float] = field(default_factory=dict)  # adapter -> factor on its output: {"": a, "local": 1 - a}; absent: 1
    detached: tuple[str, ...] = ()  # adapters whose output takes no gradient in this phase (FedDPA's stop-gradient)


@dataclass(frozen=True, kw_only=True)
class Task:
    """What the server asks of a client this round."""

    round: int
    phases: tuple[Phase, ...] = ()  # one after the other; none: score only
    uploads: tuple[str, ...] = ()  # patterns of the names that come back (`core.tree.match`); every other name is private and stays
    scores: tuple[str, ...] = ()  # models to score on the client's rating cases: "received", "trained", or an extra tree of unit pairs
    keeps: tuple[str, ...] = ()  # names that stay at the client although they are uploaded (FedALT's own adapter)

    @property
    def prunes(self) -> bool:
        """Whether clients may go on with a lower rank (HetLoRA)."""
        return any("het_gamma" in phase.terms for phase in self.phases)


@dataclass(frozen=True, kw_only=True)
class Broadcast:
    """Server to client."""

    adapter: Tree  # overwrites the names it holds
    task: Task
    base_delta: Tree = field(default_factory=dict)  # pairs of unit scale to fold into the frozen base first
    base_version: int = 0  # the base's version after that fold
    extra: Mapping[str, Tree] = field(default_factory=dict)  # whatever else a method sends


@dataclass(frozen=True, kw_only=True)
class ClientUpdate:
    """Client to server."""

    client_id: str
    num_examples: int
    adapter: Tree  # the uploads only
    metrics: Mapping[str, float] = field(default_factory=dict)  # finite numbers; score_received, score_trained, loss, ...
    extra: Mapping[str, Tree] = field(default_factory=dict)
    scaling: float = 1.0
    adapter_bytes: int | None = None  # true size of a compressed adapter; None: 4 bytes an element


@dataclass(frozen=True, kw_only=True)
class ClientState:
    """What a client keeps and never sends: local adapters, control variates, error feedback."""

    trees: Mapping[str, Tree] = field(default_factory=dict)
    base_version: int = 0
    round: int = -1


@dataclass(frozen=True, kw_only=True)
class State:
    """What a server keeps between rounds: named trees plus JSON values, so that a checkpoint needs no pickle. Of the values `round` counts
    the rounds, and `weights` ({client: weight}), where a method has them, goes into the record."""

    trees: Mapping[str, Tree] = field(default_factory=dict)
    values: Mapping[str, object] = field(default_factory=dict)

    @property
    def round(self) -> int:
        """The number of rounds aggregated so far."""
        return int(str(self.values.get("round", 0)))


@dataclass(frozen=True, kw_only=True)
class Strategy:
    """A federated method: pure functions over named arrays. It knows nothing of torch, Ray or files.

    >>> mean = Strategy(
    ...     init=lambda tree: State(trees={"adapter": tree}, values={"round": 0}),
    ...     broadcast=lambda state, client: Broadcast(adapter=state.trees["adapter"], task=Task(
    ...         round=state.values["round"], phases=(Phase(trains=("*",)),), uploads=("*",))),
    ...     aggregate=lambda state, updates: State(values={"round": state.values["round"] + 1}, trees={"adapter": {
    ...         name: sum(u.adapter[name] for u in updates) / len(updates) for name in updates[0].adapter}}))
    >>> one = mean.aggregate(mean.init({"w": np.zeros(1)}), [ClientUpdate(client_id="a", num_examples=1, adapter={"w": np.ones(1)})])
    >>> one.trees["adapter"]["w"].tolist()
    [1.0]
    """

    init: Callable[[Tree], State]
    broadcast: Callable[[State, Client], Broadcast]
    aggregate: Callable[[State, Sequence[ClientUpdate]], State]
    review: Callable[[State, Sequence[ClientUpdate], Client], Broadcast | None] | None = None  # a second exchange (peer rating)
    name: str = ""
    trains: str = "adapters"  # "adapters", or "all": every weight of the model is in the tree (fedavg_full)
    adapters: Mapping[str, int | None] = field(default_factory=lambda: {"": None})
    """The adapters a client's model has, of `core.tree.ADAPTERS`: "" (global), "local" (private), "rest" (the others', FedALT); the value is
    the rank, None for the client's own `lora.rank`."""
    router: bool = False  # outputs of the adapters are mixed by a trained softmax(W_r x) instead of summed (FedALT)
    pools_data: bool = False  # one client holds everybody's training data (the bound `centralised`)
    mixed_ranks: bool = True  # clients may differ in rank
    steady: bool = True  # a factor's rows and columns mean the same in every round: what compression left out can be sent later
    gates: Mapping[str, float] = field(default_factory=dict)  # as Phase.gates, for the evaluation of a client's full model
    product: str = ""
    """What a round is claimed to make of the clients' products: "exact" (sum p_k scaling_k B_k A_k), "best" (its best approximation of the
    rank that is sent), "inexact", or "" (no claim). The contract matrix holds a strategy to it."""
    exempt: Mapping[str, str] = field(default_factory=dict)  # property of the contract matrix -> why this method's definition exempts it
    optimiser: str = ""  # of the clients, if the method is derived for one: with another the user is told so
    stage_rounds: int = 0  # rounds of its first stage: a run that ends in it is told that the second never comes
    leaves_self_out: bool = False  # each client is sent the mean of the others
    idle: Mapping[str, str] = field(default_factory=dict)  # option -> why it changes nothing beside the others
