"""Tests of two models on the same patients, and what they are corrected by.

Patients are the unit; scores are averaged over seeds for each patient before pairing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from raylora.core.seeds import generator
from raylora.metrics.bootstrap import REPLICATES, draws, interval
from raylora.metrics.classification import concordance
from raylora.metrics.panel import Panel, seed_draws


@dataclass(frozen=True)
class Difference:
    """A minus B: the estimate, its 95 % interval and a two-sided p value."""

    difference: float
    ci95: tuple[float, float] | None
    p_value: float | None


def wilcoxon(differences: np.ndarray) -> float:
    """Two-sided p of the signed-rank test (Wilcoxon, 1945; differences of zero dropped, exact where scipy can); 1 if all are zero."""
    differences = np.asarray(differences, dtype=np.float64)
    if not np.any(differences):
        return 1.0
    return float(stats.wilcoxon(differences).pvalue)


def rank_biserial(differences: np.ndarray) -> float:
    """Matched-pairs rank-biserial correlation (Kerby, 2014), the effect size of the signed-rank test: the share of rank sum that favours A
    minus the share that favours B, -1 to 1; 0 if all differences are zero."""
    kept = np.asarray(differences, dtype=np.float64)
    kept = kept[kept != 0]
    if len(kept) == 0:
        return 0.0
    ranks = stats.rankdata(np.abs(kept))
    return float((ranks[kept > 0].sum() - ranks[kept < 0].sum()) / ranks.sum())


def mcnemar(correct_a: np.ndarray, correct_b: np.ndarray) -> float:
    """Exact two-sided p of McNemar's test (1947) on which patients each of two models got right: a binomial test of the discordant ones."""
    a, b = np.asarray(correct_a, bool), np.asarray(correct_b, bool)
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    return float(stats.binomtest(only_a, only_a + only_b, 0.5).pvalue) if only_a + only_b else 1.0


def placements(truth: np.ndarray, probability: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """DeLong's structural components: for each diseased patient the share of normals below it (m,), for each normal the share of diseased
    above it (n,). The mean of either is the AUC."""
    above = concordance(probability[truth == 1], probability[truth == 0])  # (m, n)
    return above.mean(1), above.mean(0)


def delong(a: Panel, b: Panel) -> Difference | None:
    """The difference of two AUCs on the same patients (DeLong, DeLong and Clarke-Pearson, Biometrics 1988).

    With one client and one seed this is their test. An AUC here is the mean over seeds and clients: its components are averaged over seeds
    (an AUC is linear in them), and the variances of clients, which share no patient, add. None if a client that has both classes has only
    one patient in one of them (no variance), or if no client has both.
    """
    if a.patients != b.patients:
        raise ValueError("DeLong's test needs the same patients in both panels")
    differences, variances = [], []
    for client in sorted(set(a.clients)):
        member = np.array([c == client for c in a.clients])
        truth = a.truth[member]
        m, n = int((truth == 1).sum()), int((truth == 0).sum())
        if m == 0 or n == 0:
            continue
        if m == 1 or n == 1:
            return None
        mean = [[np.mean(part, axis=0) for part in zip(*(placements(truth, v[member]) for v in p.values), strict=True)] for p in (a, b)]
        diseased, normal = mean[0][0] - mean[1][0], mean[0][1] - mean[1][1]  # (m,), (n,)
        differences.append(diseased.mean())
        variances.append(diseased.var(ddof=1) / m + normal.var(ddof=1) / n)
    if not differences:
        return None
    difference, se = float(np.mean(differences)), float(np.sqrt(np.sum(variances)) / len(variances))
    if se == 0:
        return Difference(difference, (difference, difference), 1.0 if difference == 0 else 0.0)
    half = float(stats.norm.ppf(0.975)) * se
    return Difference(difference, (difference - half, difference + half), float(2 * stats.norm.sf(abs(difference) / se)))


def paired_bootstrap(a: Panel, b: Panel, root_seed: int = 0, replicates: int = REPLICATES) -> Difference | None:
    """The difference of two panels' scores; both see the same draws of patients within clients (and classes), then of seeds.

    The p value is the one whose interval would just reach zero; there is neither where a client has one patient, or one of a class (see
    `degrees_of_freedom`). Where no replicate is beyond zero, the tail is a normal one with the replicates' spread: counted, it could not be
    below one in `replicates`, and after Holm over a few dozen pairs nothing could ever be shown. No p is below 2^(1 - n), the least that n
    patients can say (all of them one way, in a sign test); `report.pairs` counts those on whom two models decide differently. None if
    either score does not exist.
    """
    if a.patients != b.patients or a.clients != b.clients:
        raise ValueError("a paired bootstrap needs the same patients of the same clients in both panels")
    if a.point is None or b.point is None:
        return None
    weights = draws(a.strata(), replicates, generator(root_seed, "bootstrap patients"))
    drawn = [p.replicates(weights, seed_draws(p.seeds, replicates, root_seed)) for p in (a, b)]
    drawn = drawn[0] - drawn[1]
    degrees = min(a.degrees, b.degrees)
    bounds = interval(drawn, degrees)
    p_value = None
    if bounds is not None:
        kept = drawn[np.isfinite(drawn)]
        beyond = min(int((kept <= 0).sum()), int((kept >= 0).sum()))
        tail = (1 + beyond) / (len(kept) + 1)
        if not beyond:
            spread = float(kept.std())
            tail = min(tail, float(stats.norm.sf(abs(kept.mean()) / spread)) if spread else 0.0)
        p_value = float(2 * stats.t.cdf(stats.norm.ppf(min(tail, 0.5)), degrees))
        p_value = min(1.0, max(p_value, 2.0 ** (1 - len(a.patients))))
    return Difference(a.point - b.point, bounds, p_value)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Adjusted p values of one family (Holm, 1979), in the order given; None is not a member of the family."""
    members = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for step, (p, i) in enumerate(members):
        largest = max(largest, min(1.0, (len(members) - step) * p))
        adjusted[i] = largest
    return adjusted


def resolvable_difference(seed_scores: Sequence[float], seeds_a: int, seeds_b: int, level: float = 0.05) -> float | None:
    """The A/A limit: what a baseline differs by from itself under other seeds, in all but `level` of comparisons.

    From the spread of the baseline's scores over its S seeds: t(S - 1) * sd * sqrt(1 / seeds_a + 1 / seeds_b) for a comparison of means
    over so many seeds. None with fewer than two seeds.
    """
    if len(seed_scores) < 2:
        return None
    spread = float(np.std(seed_scores, ddof=1))
    return float(stats.t.ppf(1 - level / 2, len(seed_scores) - 1)) * spread * float(np.sqrt(1 / seeds_a + 1 / seeds_b))
