"""Every federated method: {name: factory(**options) -> Strategy}. Importing this needs numpy only."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from raylora.core.types import Strategy
from raylora.strategies.centralised import centralised
from raylora.strategies.fedavg_full import fedavg_full
from raylora.strategies.fedit import fedit
from raylora.strategies.flora import flora
from raylora.strategies.local import local
from raylora.strategies.med_duallora import med_duallora
from raylora.strategies.rate_my_lora import rate_my_lora
from raylora.strategies.registry import create_from

STRATEGIES: Mapping[str, Callable[..., Strategy]] = {
    "local": local,
    "centralised": centralised,
    "fedavg_full": fedavg_full,
    "fedit": fedit,
    "flora": flora,
    "rate_my_lora": rate_my_lora,
    "med_duallora": med_duallora,
}


def create(name: str, options: Mapping[str, object] | None = None, *, seed: int = 0, clients: int | None = None) -> Strategy:
    """The strategy of that name (or of `package.module:factory`) with these options.

    seed, clients: the run's root seed and the number of sites, given to a factory that has parameters of these names.
    Raises InputError for an unknown name or option, with the nearest known one, and for a value out of range.
    """
    return create_from(STRATEGIES, name, options or {}, {"seed": seed, "clients": clients})
