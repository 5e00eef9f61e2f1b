"""Bootstrap weights and intervals. Patients are drawn within strata (clients; for decisions: classes within clients), never across."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

REPLICATES = 2000


def draws(strata: Sequence[object] | np.ndarray, replicates: int, rng: np.random.Generator) -> np.ndarray:
    """How often each case is drawn in each replicate: (replicates, n) float64.

    Of a stratum of m cases m - 1 are drawn with replacement, which makes the variance of a stratified mean unbiased (Rao and Wu, JASA
    1988); drawing m would shrink it by (m - 1) / m, much for a client with five patients. A stratum of one case is always drawn: it adds
    nothing to the spread, so what is drawn here has no interval then (see `degrees_of_freedom`).
    """
    labels = np.array([repr(s) for s in strata])
    weights = np.zeros((replicates, len(labels)))
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        m = len(members)
        weights[:, members] = rng.multinomial(max(m - 1, 1), np.full(m, 1 / m), size=replicates)
    return weights


def interval(replicates: np.ndarray, degrees: int, level: float = 0.95) -> tuple[float, float] | None:
    """The expanded percentile interval (Hesterberg, 2015): percentiles at the normal tail area of the t quantile with `degrees` of freedom.

    Replicates that do not exist (NaN) are left out; None if none exists or `degrees` is below 1.
    """
    from scipy.special import ndtr, stdtrit  # a process that comes here late or never starts sooner without it

    kept = replicates[np.isfinite(replicates)]
    if degrees < 1 or len(kept) == 0:
        return None
    tail = ndtr(stdtrit(degrees, (1 - level) / 2))
    low, high = np.quantile(kept, [tail, 1 - tail])
    return float(low), float(high)


def degrees_of_freedom(strata: Sequence[object] | np.ndarray) -> int:
    """Cases minus strata; 0, which means no interval, if a stratum holds one case only.

    One case tells nothing of how much its stratum varies (the "lonely unit" of stratified samples: Lumley, Complex Surveys, 2010, 3.2). To
    count its variance as zero would make an interval too narrow, by as much as nobody knows; `significance.delong` gives none either.
    """
    counts = Counter(repr(s) for s in strata)
    return 0 if 1 in counts.values() else len(strata) - len(counts)
