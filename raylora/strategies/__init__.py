"""Every federated method: {name: factory(**options) -> Strategy}. Importing this needs numpy only."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from raylora.core.types import Strategy
from raylora.strategies.centralised import centralised
from raylora.strategies.contract import check as check
from raylora.strategies.fedadam import fedadam
from raylora.strategies.fedalt import fedalt
from raylora.strategies.fedavg_full import fedavg_full
from raylora.strategies.fedavgm import fedavgm
from raylora.strategies.feddpa import feddpa
from raylora.strategies.fedex_lora import fedex_lora
from raylora.strategies.fedit import fedit
from raylora.strategies.fedprox import fedprox
from raylora.strategies.fedsa_lora import fedsa_lora
from raylora.strategies.fedyogi import fedyogi
from raylora.strategies.ffa_lora import ffa_lora
from raylora.strategies.flexlora import flexlora
from raylora.strategies.flora import flora
from raylora.strategies.hetlora import hetlora
from raylora.strategies.local import local
from raylora.strategies.lora_fair import lora_fair
from raylora.strategies.med_duallora import med_duallora
from raylora.strategies.rate_my_lora import rate_my_lora
from raylora.strategies.registry import create_from, defaults
from raylora.strategies.rolora import rolora
from raylora.strategies.scaffold import scaffold
from raylora.strategies.sdflora import sdflora

STRATEGIES: Mapping[str, Callable[..., Strategy]] = {
    "local": local,
    "centralised": centralised,
    "fedavg_full": fedavg_full,
    "fedit": fedit,
    "ffa_lora": ffa_lora,
    "fedsa_lora": fedsa_lora,
    "flora": flora,
    "hetlora": hetlora,
    "flexlora": flexlora,
    "fedex_lora": fedex_lora,
    "rolora": rolora,
    "lora_fair": lora_fair,
    "feddpa": feddpa,
    "fedalt": fedalt,
    "sdflora": sdflora,
    "fedprox": fedprox,
    "scaffold": scaffold,
    "fedavgm": fedavgm,
    "fedadam": fedadam,
    "fedyogi": fedyogi,
    "rate_my_lora": rate_my_lora,
    "med_duallora": med_duallora,
}


def create(name: str, options: Mapping[str, object] | None = None, *, seed: int = 0, clients: int | None = None) -> Strategy:
    """The strategy of that name (or of `package.module:factory`) with these options.

    seed, clients: the run's root seed and the number of sites, given to a factory that has parameters of these names.
    Raises InputError for an unknown name or option, with the nearest known one, and for a value out of range.
    """
    return create_from(STRATEGIES, name, options or {}, {"seed": seed, "clients": clients})


def default_options(name: str) -> dict[str, object]:
    """{option: its default, as a configuration would say it} of a strategy of the registry, but for what it is given by the run (seed,
    clients); of any other strategy nothing is known."""
    found = defaults(STRATEGIES[name], hidden=("seed", "clients")) if name in STRATEGIES else {}
    return found | {"reduce": "mean"} if "reduce" in found else found
