"""A plain description of what a process needs to build its share of the federation. No torch: `build` makes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from raylora.core.byzantine import Attack
from raylora.core.compress import UNCOMPRESSED, Scheme
from raylora.data.damage import Damage
from raylora.data.transforms import Augmentation
from raylora.federation.protocol import Protocol
from raylora.training.settings import CacheSpec, Settings


@dataclass(frozen=True, kw_only=True)
class SiteSpec:
    """One client as names: its studies are found in the prepared sets."""

    id: str
    rank: int
    training: tuple[str, ...]
    validation: tuple[str, ...] = ()
    rating: tuple[str, ...] = ()
    test: tuple[str, ...] = ()
    damage: Mapping[str, Damage] = field(default_factory=dict)  # training study -> what is wrong with it; absent: nothing
    attack: Attack | None = None


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """The backbone and what of it is trained."""

    name: str
    task: str
    size: str
    image_size: tuple[int, int, int]
    sizes: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    checkpointing: bool = False
    targets: tuple[str, ...] | None = None
    blocks: str | int | tuple[int, ...] = "all"
    dropout: float = 0.0
    plain: tuple[str, ...] = ()  # patterns of the trained plain names: head, decoder
    adapters: Mapping[str, int | None] = field(default_factory=lambda: {"": None})
    router: bool = False
    full: bool = False


@dataclass(frozen=True, kw_only=True)
class HostSpec:
    """Everything but the weights."""

    model: ModelSpec
    sets: tuple[str, ...]  # prepared folders
    sets_sha256: tuple[str, ...]  # of what is in them
    sites: tuple[SiteSpec, ...]
    diseased: Mapping[str, int]  # study id -> 0 or 1, for disease
    task: str
    seed: int
    alpha: float
    max_rank: int
    settings: Settings
    gates: Mapping[str, float] = field(default_factory=dict)
    compress: Scheme = UNCOMPRESSED
    eval_batch: int = 4
    augmentation: Augmentation | None = None
    cache: CacheSpec | None = None  # of the frozen prefix's features
    threads: int = 1
    dtype: str = "float32"  # of the computation
    device: str = "cpu"  # or cuda, or auto: cuda where the process that asks finds it

    def of(self, clients: Sequence[str]) -> HostSpec:
        """The same for some of the clients."""
        return replace(self, sites=tuple(site for site in self.sites if site.id in set(clients)))


def protocol_of(spec: HostSpec) -> Protocol:
    return Protocol(
        task=spec.task,
        seed=spec.seed,
        alpha=spec.alpha,
        max_rank=spec.max_rank,
        settings=spec.settings,
        depth=spec.model.image_size[2],
        eval_batch=spec.eval_batch,
        gates=spec.gates,
        compress=spec.compress,
    )
