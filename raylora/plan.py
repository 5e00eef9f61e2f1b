"""What planning found: everything that a run needs and that can be known before it starts. No torch: a driver has it sent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from raylora.cohort import Cohort
from raylora.config import Config
from raylora.core.types import Client, State, Strategy
from raylora.dials import Dials
from raylora.federation.protocol import initial_tree
from raylora.federation.spec import HostSpec, protocol_of
from raylora.models.outline import Outline

NOTHING = np.empty(0, np.float32)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One experiment, ready to run. Made by `planning.make_plan`."""

    config: Config
    spec: HostSpec
    clients: tuple[Client, ...]  # those that train
    homes: tuple[str, ...]  # clients whose patients are scored in-client
    held_out: tuple[str, ...]
    weights: Mapping[str, np.ndarray]  # of the frozen backbone
    outline: Outline  # of the model that is adapted
    seen_cases: tuple[str, ...]  # validation, rating and test cases that the weights have seen; empty unless overridden
    data_sha256: str
    splits: Mapping[str, Mapping[str, Sequence[str]]]  # client -> part -> study ids
    left_out: Mapping[str, str]  # study id -> why it is in no client
    cohort: Cohort
    dials: Dials
    no_cache: str = ""  # why no features are kept
    notes: tuple[str, ...] = ()  # what a user should know before anything is trained

    def with_weights(self, weights: Mapping[str, np.ndarray]) -> Plan:
        """The same with these weights: none where they travel apart, read-only ones where they arrive."""
        plain = {name: weights.get(name, NOTHING) for name in self.outline.plain}
        return replace(self, weights=weights, outline=replace(self.outline, plain=plain))


def opening(strategy: Strategy, outline: Outline, spec: HostSpec, clients: Sequence[Client]) -> State:
    """The server's state before the first round."""
    first = initial_tree(outline, protocol_of(spec), clients[0].id, spec.max_rank)
    private = tuple(f"{adapter}." for adapter in strategy.adapters if adapter)
    return strategy.init({name: value for name, value in first.items() if not name.startswith(private)})
