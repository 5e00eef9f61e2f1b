"""What the clients of an experiment have in common, and the tree that one of them starts a round with. No torch: the server knows it too."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from raylora.core import lowrank
from raylora.core.compress import UNCOMPRESSED, Scheme
from raylora.core.seeds import generator
from raylora.core.types import ClientState, Tree
from raylora.models.outline import Outline
from raylora.training.settings import Settings


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """What all clients of an experiment have in common."""

    task: str  # segmentation | disease
    seed: int
    alpha: float
    max_rank: int  # over the clients: the initial global A is drawn at this rank and cut to the client's
    settings: Settings
    depth: int  # slices after padding
    eval_batch: int
    gates: Mapping[str, float] = field(default_factory=dict)  # factors on the adapters' outputs in a client's full model
    compress: Scheme = UNCOMPRESSED  # of what is uploaded


def initial_tree(outline: Outline, protocol: Protocol, client: str, rank: int) -> dict[str, np.ndarray]:
    """A client's tree before the first broadcast: the global part is everybody's, private adapters are drawn from (seed, client)."""
    tree = outline.initial(generator(protocol.seed, "initial"), generator(protocol.seed, "initial", client=client), protocol.max_rank)
    for adapter, own_rank in outline.adapters.items():
        if own_rank is None:  # drawn at the largest rank, so that everybody's first rows are the same
            pairs = {m: (a[:rank], b[:, :rank]) for m, (a, b) in lowrank.pairs(tree, adapter).items()}
            tree |= lowrank.named(pairs, adapter)
    return tree


def compose(
    outline: Outline, protocol: Protocol, site_id: str, rank: int, state: ClientState | None, adapter: Tree
) -> dict[str, np.ndarray]:
    """A client's model: its initial tree, overlaid by what it kept, overlaid by what it was sent.

    Raises ValueError for a broadcast name that the model does not have.
    """
    kept = state.trees.get("private", {}) if state is not None else {}
    given = {**kept, **adapter}
    unknown = sorted(set(given) - outline.names)
    if unknown:
        raise ValueError(f"client {site_id} was sent names that its model does not have: {unknown[:5]}")
    if len(given) < len(outline.names):  # drawn where something is missing only: it takes longer than a small client's step
        given = {**initial_tree(outline, protocol, site_id, rank), **given}
    return dict(sorted(given.items()))
