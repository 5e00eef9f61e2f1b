"""Client-level differential privacy: the clipped, noised mean (DP-FedAvg, McMahan et al. 2018, arXiv 1710.06963) and its epsilon."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from raylora.core import tree as trees
from raylora.core.errors import InputError
from raylora.core.reduce import Reduce, present
from raylora.core.seeds import generator
from raylora.core.types import Tree


@dataclass(frozen=True)
class DPMean:
    """See `dp_mean`. A `Seeded` reduction: `at` gives the one of a round."""

    clip: float
    sigma: float
    seed: int
    cohort: float | None
    round: int = 0

    def __str__(self) -> str:
        return "a private mean"

    def at(self, round: int) -> Reduce:
        """The same with the noise of that round."""
        return replace(self, round=round)

    def __call__(self, several: Sequence[Tree], weights: Sequence[float]) -> Tree:
        kept, _ = present(several, weights)
        total = trees.weighted_sum(kept, [min(1.0, self.clip / max(trees.norm(tree), 1e-300)) for tree in kept])
        noise = generator(self.seed, "dp noise", self.round)
        count = self.cohort or len(kept)
        scale = self.sigma * self.clip if self.sigma > 0 else 0.0
        return {name: (total[name] + (noise.normal(0.0, scale, total[name].shape) if scale else 0.0)) / count for name in sorted(total)}


def dp_mean(clip: float, sigma: float, seed: int = 0, cohort: float | None = None) -> DPMean:
    """(1 / (q N)) (sum_k u_k min(1, S / ||u_k||) + N(0, z^2 S^2 I)) over the movements u_k, all names of a client together.

    clip: S. sigma: z, the noise's standard deviation over S. cohort: q N, the clients expected in a round; None: those that came. Every
    client counts once, whatever its size: a weight by size would change what one client can do to the sum.
    Raises InputError unless clip > 0 and sigma >= 0.
    """
    if not clip > 0 or not sigma >= 0:
        raise InputError(f"privacy: expected clip > 0 and sigma >= 0, found clip={clip}, sigma={sigma}")
    return DPMean(clip=clip, sigma=sigma, seed=seed, cohort=cohort)


def epsilon(
    *, sigma: float, rounds: int, cohort: float, population: int, delta: float, sampling: str = "all", accountant: str = "rdp"
) -> float:
    """The epsilon at `delta` of `rounds` releases of `dp_mean`, by Google's dp-accounting (imported here: nothing else needs it).

    sampling: "all" (no amplification), "poisson" (each client with probability cohort / population), both for adding or removing one
    client; or "uniform" (a cohort of fixed size without replacement) for replacing one client, which moves the sum by twice the clip.
    accountant: "rdp" (quick) or "pld" (tighter; not for "uniform"). Infinite without noise. Raises InputError for what it cannot account.
    """
    if sampling not in ("all", "poisson", "uniform") or accountant not in ("rdp", "pld") or (sampling, accountant) == ("uniform", "pld"):
        raise InputError(
            f"privacy: expected sampling all, poisson or uniform (rdp only) with rdp or pld, found sampling {sampling} with {accountant}"
        )
    if not 0 < delta < 1 or not 0 < cohort <= population or rounds < 0:
        raise InputError(f"privacy: expected delta in (0, 1) and 0 < cohort <= clients, found {delta}, {cohort} of {population}")
    if rounds == 0:
        return 0.0
    if sigma == 0:
        return math.inf
    import dp_accounting  # type: ignore[import-untyped]
    from dp_accounting import pld, rdp

    one = dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE
    event = dp_accounting.GaussianDpEvent(sigma)
    if sampling == "poisson":
        event = dp_accounting.PoissonSampledDpEvent(cohort / population, event)
    if sampling == "uniform":
        one = dp_accounting.NeighboringRelation.REPLACE_ONE
        event = dp_accounting.SampledWithoutReplacementDpEvent(population, int(cohort), dp_accounting.GaussianDpEvent(sigma / 2))
    ledger = rdp.RdpAccountant(neighboring_relation=one) if accountant == "rdp" else pld.PLDAccountant(neighboring_relation=one)
    ledger.compose(event, rounds)
    return float(ledger.get_epsilon(delta))
