"""The strategy of a configuration and what goes around it: a robust or a private mean at the server, compression at the clients.

What does not fit together is refused with its reason.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from raylora.config import Config
from raylora.core import privacy
from raylora.core.compress import Scheme
from raylora.core.errors import InputError
from raylora.core.reduce import Weighing, trimmed
from raylora.core.types import Strategy, Task
from raylora.strategies import create, default_options
from raylora.strategies.registry import reduction


def make_strategy(config: Config, clients: int | None = None) -> Strategy:
    """The strategy with its options, its reduction and its private mean. clients: how many train (None: not known yet).

    Raises InputError.
    """
    name, options = config.strategy.name, config.strategy.options
    if clients is not None:
        require_cohort(config, lambda: 1 if config.sampling.kind == "poisson" else expected_cohort(config, clients))
    if config.privacy.clip is None:
        return create(name, options, seed=config.seed, clients=clients)
    _require_accountable(config)
    if "reduce" in options:
        raise InputError(f"privacy.clip: a private mean takes the place of strategy.reduce, found both ({options['reduce']})")
    cohort = None if clients is None else expected_cohort(config, clients)
    private = privacy.dp_mean(config.privacy.clip, config.privacy.sigma, seed=config.seed, cohort=cohort)
    try:
        return create(name, {**options, "reduce": private}, seed=config.seed, clients=clients)
    except InputError as error:
        raise InputError(str(error).replace("strategy.reduce:", "privacy.clip:", 1)) from None


def _require_accountable(config: Config) -> None:
    """Refuse rounds whose sensitivity or sampling rate is not the one that epsilon is computed for. Raises InputError."""
    s, f = config.sampling, config.faults
    if not config.privacy.sigma:  # clipping alone: epsilon is infinite, and says so
        return
    if s.wait_for < 1:
        raise InputError(
            f"sampling.wait_for: with privacy.sigma expected 1.0, found {s.wait_for:g}: where the first answers count, a client that stays "
            "away lets another one in, and the sum moves by twice the clip"
        )
    if s.kind == "uniform" and s.fraction < 1 and (f.joins or f.leaves):
        name = "joins" if f.joins else "leaves"
        raise InputError(
            f"faults.{name}: with privacy.sigma and sampling.kind uniform expected 0, found {getattr(f, name):g}: of fewer clients each would "
            "be drawn more often than epsilon assumes"
        )


def expected_cohort(config: Config, clients: int) -> float:
    """How many clients come to a round: exactly, or on average (poisson)."""
    kind, fraction = config.sampling.kind, config.sampling.fraction
    if kind == "poisson":
        return fraction * clients
    return clients if kind == "all" else math.ceil(fraction * clients - 1e-9)


def require_cohort(config: Config, fewest: Callable[[], float]) -> None:
    """Raise InputError if a round may have fewer clients than the reduction needs. `fewest`: how many at least, which may take long to know."""
    found = config.strategy.options.get("reduce")
    rule = reduction(found) if found is not None else None
    if isinstance(rule, Weighing) and rule.needs > (least := fewest()):
        raise InputError(
            f"strategy.reduce: expected at least {rule.needs} clients in every round, found {least:g} (see sampling and faults)"
        )


def caveats(config: Config, strategy: Strategy, clients: int) -> list[str]:
    """What runs, but is not what its name promises, in words for the user."""
    found, sampling, rounds = [], config.sampling, config.training.rounds
    answers = sampling.buffer or math.ceil(expected_cohort(config, clients) * sampling.wait_for - 1e-9)
    if strategy.optimiser not in ("", config.training.optimiser):
        found.append(
            f"strategy.name: {strategy.name} is derived for {strategy.optimiser}, found {config.training.optimiser} "
            f"(training.optimiser={strategy.optimiser})"
        )
    if rounds <= strategy.stage_rounds:
        found.append(
            f"strategy.stage_rounds: all {rounds} rounds are of the first stage, the second never comes "
            "(more training.rounds, or fewer stage_rounds)"
        )
    if config.sampling.kind == "size" and _weights(config) == "size":
        found.append(
            "sampling.kind: size draws large clients more often, and in the mean strategy.weights: size lets them count for more once again "
            "(strategy.weights=uniform)"
        )
    if config.data.split == "official" and config.data.turned(["fractions"]):
        found.append("data.fractions: data.split: official names the test patients, the last share changes nothing")
    found += [f"{key} changes nothing here: {why}" for key, why in _without_effect(config, strategy).items()]
    rule = config.strategy.options.get("reduce")
    trim = rule.get("trim") if isinstance(rule, Mapping) and rule.get("name") == "trimmed_mean" else None
    several = answers - 1 if strategy.leaves_self_out else answers
    if trim and trimmed(trim, several) == 0:
        found.append(f"strategy.reduce: of {several} clients trimmed_mean with trim {trim:g} leaves none out: it is the plain mean")
    return found


def _without_effect(config: Config, strategy: Strategy) -> dict[str, str]:
    """Dials that are turned, and why no client notices."""
    f, n, p, c, options, found = config.faults, config.network, config.privacy, config.compress, config.strategy.options, {}
    if not n.step_s:  # computing takes no virtual time
        turned = {"faults.slow": f.slow, "network.speed": n.speed != 1.0, "network.speed_spread": n.speed_spread}
        found |= {key: "a step takes no virtual time (network.step_s)" for key, value in turned.items() if value}
    if n.spread and n.up_mbit == n.down_mbit == math.inf:
        found["network.spread"] = "lines are infinitely fast (network.up_mbit, down_mbit)"
    if config.sampling.deadline_s != math.inf and not config.clock_runs:
        found["sampling.deadline_s"] = "nothing takes virtual time (network, faults.late_s)"
    if f.byzantine and f.attack != "label_flip" and strategy.pools_data:
        found["faults.byzantine"] = "where all data are in one place nobody sends an update"
    if not f.byzantine:
        found |= {f"faults.{key}": "no client is byzantine (faults.byzantine)" for key in f.turned(["attack", "strength"])}
    if p.clip is None:
        found |= {f"privacy.{key}": "nothing is clipped (privacy.clip)" for key in p.turned(["sigma", "delta", "accountant"])}
    elif options.get("weights") == "size":
        found["strategy.weights"] = "in a private mean every client counts alike (privacy.clip)"
    for key, kind in (("bits", "quantise"), ("share", "top_k")):
        if c.kind != kind and c.turned([key]):
            found[f"compress.{key}"] = f"it is of compress.kind: {kind}, found {c.kind}"
    if config.model.head == "frozen" and "head" in options:
        found["strategy.head"] = "nobody trains the head (model.head: frozen)"
    return found | {f"strategy.{key}": why for key, why in strategy.idle.items() if key in options}


def _weights(config: Config) -> object:
    """How clients count in the mean: by size, unless a method or a configuration says otherwise; None where that is no option."""
    if config.privacy.clip is not None:
        return "uniform"
    return {**default_options(config.strategy.name), **config.strategy.options}.get("weights")


def epsilon(config: Config, rounds: int, clients: int) -> float | None:
    """What these rounds have spent of privacy at `privacy.delta`; None without privacy. It is about what the server makes of the updates:
    adapters and heads. Losses and scores in the record are outside of it. Raises InputError for what cannot be accounted."""
    p = config.privacy
    if p.clip is None:
        return None
    if p.delta * clients >= 1:
        raise InputError(f"privacy.delta: expected less than 1 / clients = {1 / clients:g}, found {p.delta:g}")
    return privacy.epsilon(
        sigma=p.sigma,
        rounds=rounds,
        cohort=expected_cohort(config, clients),
        population=clients,
        delta=p.delta,
        sampling=config.sampling.kind,
        accountant=p.accountant,
    )


def scheme(config: Config) -> Scheme:
    """How clients compress what they send."""
    return Scheme(kind=config.compress.kind, bits=config.compress.bits, share=config.compress.share)


def require_compressible(config: Config, strategy: Strategy, task: Task) -> None:
    """Raise InputError if what the clients of this strategy send cannot be compressed."""
    kind = config.compress.kind
    if kind != "none" and task.keeps:
        raise InputError(
            f"compress.kind: {strategy.name} goes on from what it sends, and the server's copy would fall behind, found {kind}"
        )
    if kind != "none" and task.prunes:
        raise InputError(
            f"compress.kind: {strategy.name} prunes ranks by the norms of what clients send, which compression changes, found {kind}"
        )
    if scheme(config).remembers and not strategy.steady:
        raise InputError(
            f"compress.kind: {strategy.name} starts its pairs anew each round, and what {kind} left out could not be sent later"
        )
