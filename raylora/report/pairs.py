"""Every pair of configurations, tested on the same patients, with a plain sentence; and the baseline against itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from raylora.metrics.bootstrap import REPLICATES
from raylora.metrics.panel import Panel
from raylora.metrics.significance import (
    Difference,
    delong,
    holm,
    mcnemar,
    paired_bootstrap,
    rank_biserial,
    resolvable_difference,
    wilcoxon,
)
from raylora.report.groups import Group
from raylora.report.table import p_text
from raylora.report.words import inside

LEVEL = 0.05
WILCOXON = "Wilcoxon"


@dataclass(frozen=True)
class SelfTest:
    """The A/A row: the baseline against itself under other seeds."""

    baseline: str
    scores: dict[int, float]  # by seed
    largest: float | None = None  # the largest difference between two of its seeds
    resolvable: float | None = None  # between means over as many seeds as it has

    @property
    def sentence(self) -> str:
        if self.resolvable is None:
            return f"A/A is not available: it needs two seeds of the baseline ({self.baseline}), there is {len(self.scores) or 'none'}."
        return (
            f"A/A: {self.baseline} differs from itself by up to {self.largest:.3f} between {len(self.scores)} seeds; "
            f"means over {len(self.scores)} seeds that differ by less than {self.resolvable:.3f} are not resolvable here."
        )


@dataclass(frozen=True)
class Pair:
    """A minus B on the same patients, scores averaged over seeds. A is the one that is ahead."""

    a: str
    b: str
    n: int
    test: str
    difference: float | None = None
    ci95: tuple[float, float] | None = None
    p_value: float | None = None
    p_holm: float | None = None
    effect: float | None = None  # matched-pairs rank-biserial, -1 to 1
    resolvable: float | None = None  # the A/A limit for as many seeds as these two have
    auc: Difference | None = None  # DeLong; disease only, exploratory
    mcnemar_p: float | None = None  # of the first common seed; disease only, exploratory
    verdict: str = "not tested"  # A better, no difference shown, not resolvable, not tested
    sentence: str = ""
    clients: tuple[int, int] = (0, 0)  # those whose patients were tested, and those of the wider of the two


def self_test(baseline: Group | None, metric: str) -> SelfTest:
    """The A/A row of one block."""
    if baseline is None:
        return SelfTest("none of these runs", {})
    scores = {seed: score for seed, score in baseline.in_client(metric).seed_scores.items() if score is not None}
    values = list(scores.values())
    if len(values) < 2:
        return SelfTest(baseline.label, scores)
    return SelfTest(baseline.label, scores, max(values) - min(values), resolvable_difference(values, len(values), len(values)))


def pairs_of(
    groups: Sequence[Group], metric: str, a_a: SelfTest, root_seed: int = 0, replicates: int = REPLICATES, against: Group | None = None
) -> list[Pair]:
    """All pairs of groups, or each group with the one it is held `against`: tested, corrected (Holm over these pairs), put into words."""
    panels = {group.label: group.in_client(metric) for group in groups}
    probability = {group.label: group.in_client("auc") for group in groups} if metric == "balanced_accuracy" else {}
    pairs = []
    for a, b in combinations(groups, 2) if against is None else [(group, against) for group in groups if group is not against]:
        one, other = common(panels[a.label], panels[b.label])
        if (one.point or 0.0) < (other.point or 0.0):
            a, b, one, other = b, a, other, one
        limit = resolvable_difference(list(a_a.scores.values()), len(a.seeds), len(b.seeds))
        everybody = max(len(set(panels[label].clients)) for label in (a.label, b.label))
        pair = pair_of(a.label, b.label, one, other, metric, root_seed, replicates)
        pair = replace(pair, resolvable=limit, clients=(pair.clients[0], everybody))
        if probability and pair.difference is not None:
            pair = replace(pair, auc=delong(*common(probability[a.label], probability[b.label])), mcnemar_p=_mcnemar(one, other))
        pairs.append(pair)
    adjusted = holm([pair.p_value for pair in pairs])
    family = sum(p is not None for p in adjusted)
    return [worded(replace(pair, p_holm=p), metric, family, a_a.baseline) for pair, p in zip(pairs, adjusted, strict=True)]


def common(a: Panel, b: Panel) -> tuple[Panel, Panel]:
    """Both panels on the patients they share, a patient counted for the client it has in A."""
    shared = sorted(set(a.patients) & set(b.patients))
    one, other = a.restrict(shared), b.restrict(shared)
    return one, replace(other, clients=one.clients)


def pair_of(a: str, b: str, one: Panel, other: Panel, metric: str, root_seed: int, replicates: int) -> Pair:
    """The test of two configurations on the same patients, not corrected yet: on those of the clients that both have a score of."""
    valued = one.valued & other.valued
    if valued:
        kept = [patient for patient, client in zip(one.patients, one.clients, strict=True) if client in valued]
        one, other = one.restrict(kept), other.restrict(kept)
    n, here = len(one.patients), len(set(one.clients))
    by_patient = metric == "dice"  # a patient has a Dice; it has no balanced accuracy
    test = WILCOXON if by_patient else "paired bootstrap"
    estimate = paired_bootstrap(one, other, root_seed, replicates) if n > 1 else None
    if estimate is None:
        return Pair(a=a, b=b, n=n, test=test, clients=(here, here))
    differences = one.values.mean(0) - other.values.mean(0) if by_patient else one.decisions.mean(0) - other.decisions.mean(0)
    p_value = wilcoxon(differences) if by_patient else estimate.p_value
    if not by_patient and p_value is not None:  # no less than coins as many as the patients on whom the decisions differ: few may not vary
        p_value = min(1.0, max(p_value, 2.0 ** (1 - np.count_nonzero(differences))))
    effect = rank_biserial(differences)
    return Pair(
        a=a, b=b, n=n, test=test, difference=estimate.difference, ci95=estimate.ci95, p_value=p_value, effect=effect, clients=(here, here)
    )


def _mcnemar(one: Panel, other: Panel) -> float | None:
    """Decisions of the models of the first seed that both have: a test of one pair of models."""
    seeds = sorted(set(one.seeds) & set(other.seeds))
    if not seeds:
        return None
    return mcnemar(one.decisions[one.seeds.index(seeds[0])], other.decisions[other.seeds.index(seeds[0])])


def worded(pair: Pair, metric: str, family: int, baseline: str) -> Pair:
    """The pair with its verdict and sentence."""
    if pair.difference is None:
        why = "they share fewer than two test patients" if pair.n < 2 else "a score is missing"
        return replace(pair, sentence=f"{pair.a} and {pair.b} were not tested: {why}.")
    d, a, b = pair.difference, pair.a, pair.b
    evidence = _evidence(pair, family)
    if pair.resolvable is not None and d < pair.resolvable:
        said = (
            f"Not resolvable here: {a} and {b} differ by {d:.3f} in {inside(metric)}, "
            f"and {baseline} differs from itself by as much as {pair.resolvable:.3f} under other seeds ({evidence})."
        )
        return replace(pair, verdict="not resolvable", sentence=said)
    shown = pair.p_holm is not None and pair.p_holm < LEVEL
    if shown and pair.test == WILCOXON and pair.effect is not None and pair.effect <= 0:  # the test counts patients alike, the mean clients
        said = (
            f"No difference shown between {a} and {b} in {inside(metric)}: as a mean over clients {a} is ahead by {d:.3f}, "
            f"over all patients alike {b} is ({evidence})."
        )
        return replace(pair, verdict="no difference shown", sentence=said)
    if shown and pair.ci95 is not None and pair.ci95[0] > 0:
        here = "In these runs " if pair.resolvable is None else ""  # without A/A another seed might say otherwise
        said = f"{here}{a} is better than {b} by {d:.3f} in {inside(metric)} ({evidence})."
        return replace(pair, verdict="A better", sentence=said)
    if d == 0:
        said = f"No difference shown between {a} and {b} in {inside(metric)}: their means are the same ({evidence})."
        return replace(pair, verdict="no difference shown", sentence=said)
    wanting = ", for want of an interval" if shown and pair.ci95 is None else ""
    said = f"No difference shown between {a} and {b} in {inside(metric)}{wanting}: {a} is ahead by {d:.3f} ({evidence})."
    return replace(pair, verdict="no difference shown", sentence=said)


def _evidence(pair: Pair, family: int) -> str:
    parts = ["no interval: a client has one patient, or one of a class"]
    if pair.ci95 is not None:
        parts = [f"95 % interval {pair.ci95[0]:+.3f} to {pair.ci95[1]:+.3f}"]
    if pair.p_holm is not None:
        p = p_text(pair.p_holm)
        corrected = f" after Holm over {family} pairs" if family > 1 else ""
        parts.append(f"p {p if p.startswith('<') else '= ' + p}{corrected}")
    tested, everybody = pair.clients
    return "; ".join([*parts, f"{pair.n} patients" + (f" of {tested} of {everybody} clients" if tested < everybody else "")])
