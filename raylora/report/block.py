"""All runs of one task on the same data: scores, pairs, winners and what must be said beside them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from raylora.metrics.matrix import PRIMARY
from raylora.report.groups import Group, baseline_of, frozen_group, groups_of, has_all_seeds, varied_keys
from raylora.report.marks import common_marks
from raylora.report.pairs import Pair, SelfTest, pairs_of, self_test
from raylora.report.runs import Run
from raylora.report.scores import Score, frozen_score, score_of
from raylora.report.words import inside, listing

OTHER_MODELS = ("model.name", "model.weights", "model.size")  # and model.sizes
DIVISION = ("clients.", "data.fractions", "data.split", "data.protocol")  # who is in which part of which client
MOST_TESTED = 40  # configurations of which all pairs are tested
Blocks = Mapping[tuple[str, str], Sequence[Run]]  # (task, data hash) -> runs


@dataclass(frozen=True)
class Winner:
    """The configuration of a strategy that validation patients chose."""

    strategy: str
    score: Score
    tried: int  # configurations of this strategy, pruned and failed ones included
    overall: bool


@dataclass(frozen=True)
class Block:
    """All runs of one task on the same data."""

    task: str
    metric: str  # the one primary metric; all others are exploratory
    data_sha256: str
    varied: tuple[str, ...]
    runs: tuple[Run, ...]
    scores: tuple[Score, ...]
    frozen: Score | None
    pairs: tuple[Pair, ...]
    a_a: SelfTest
    winners: tuple[Winner, ...]
    tried: int  # configurations, pruned and failed ones included
    remarks: tuple[str, ...]
    marks: tuple[str, ...] = ()  # what every table of these runs must say

    @property
    def title(self) -> str:
        return f"{self.task.capitalize()}, data {self.data_sha256[:8] or 'without a hash'}"

    @property
    def chosen(self) -> Winner | None:
        """The configuration with the best validation score of all; None where nothing was validated."""
        return next((w for w in self.winners if w.overall and w.score.validation.value is not None), None)

    def findings(self) -> list[str]:
        """The sentences, most important first: what validation chose, A/A, the chosen one's pairs, all other pairs."""
        if self.chosen is None:
            return [self.a_a.sentence, *(pair.sentence for pair in self.pairs)]
        score = self.chosen.score
        reached = "n/a" if score.in_client.value is None else f"{score.in_client.value:.3f}"
        patients = f"on validation patients ({score.validation.value:.3f}, n = {score.validation.n})"
        where = f"{patients}; on test patients it reaches {reached}."
        first = f"Of {self.tried} configurations tried, {score.label} has the best {inside(self.metric)} {where}"
        if same := [s.label for s in self.scores if s is not score and s.validation.value == score.validation.value]:
            share = f"{listing((score.label, *same), 4)} share the best {inside(self.metric)} {patients}"
            first = f"Of {self.tried} configurations tried, {share}; the first of them reaches {reached} on test patients."
        if self.tried == 1:
            first = f"{score.label} was scored {where}"
        pairs = sorted(self.pairs, key=lambda p: score.label not in (p.a, p.b))
        return [first, self.a_a.sentence, *(pair.sentence for pair in pairs)]


def make_block(by_block: Blocks, task: str, data: str, baseline: str | None, root_seed: int, replicates: int) -> Block:
    """Score, test and word one of the blocks; the others are mentioned where they are of the same task."""
    runs = by_block[task, data]
    finished = [run for run in runs if run.finished]
    metric = PRIMARY[task]
    groups, remarks = groups_of(finished)
    tried, _ = groups_of(runs)
    base = baseline_of(groups, baseline)
    if baseline and base is None:
        remarks.append(f"No configuration of this block is called {baseline}: A/A is not available.")
    a_a = self_test(base, metric)
    scores = tuple(score_of(group, metric, root_seed, replicates) for group in groups)
    partial = [group.label for group in groups if not has_all_seeds(group, tried)]
    winners = _winners(scores, tried, partial)
    of_strategies = {winner.score.label: winner.overall for winner in winners}
    for label in partial:
        if not of_strategies.get(label, False):
            among = "among all strategies it is not chosen" if label in of_strategies else "it is not chosen"
            remarks.append(f"{label} has not finished every seed that was tried: {among}.")
    chosen = next(
        (group for group, score in zip(groups, scores, strict=True) if any(w.overall and w.score is score for w in winners)), None
    )
    against = chosen if len(groups) > MOST_TESTED else None  # nobody reads a hundred thousand sentences
    if against is not None:
        remarks.append(f"{len(groups)} configurations: only pairs with {against.label}, which validation patients chose, are tested.")
    with_frozen, varied = frozen_group(groups), tuple(varied_keys(finished))
    if with_frozen and any(key.startswith(OTHER_MODELS) for key in varied):
        remarks.append(f"These runs start from different models: the frozen one is that of {with_frozen.label}.")
    if len({_patients(run) for run in finished}) > 1:
        keys = ", ".join(key for key in varied if key.startswith(DIVISION))
        remarks.append(
            f"These runs do not score the same patients{f' ({keys})' if keys else ''}: means beside each other, and what validation chose, are of "
            "different ones; only the pairs are over the test patients that both have."
        )
    return Block(
        task=task,
        metric=metric,
        data_sha256=data,
        varied=varied,
        runs=tuple(runs),
        scores=scores,
        frozen=frozen_score(with_frozen, metric, root_seed, replicates) if with_frozen else None,
        pairs=tuple(pairs_of(groups, metric, a_a, root_seed, replicates, against)),
        a_a=a_a,
        winners=tuple(winners),
        tried=len(tried),
        remarks=tuple([*remarks, *_remarks(by_block, task, data, groups)]),
        marks=tuple(common_marks([run.summary for run in finished])),
    )


def _patients(run: Run) -> tuple[frozenset[str], ...]:
    """The test and the validation patients of the clients that trained."""
    return tuple(
        frozenset(patient for client in run.clients for patient in table.patients.get((table.own_model(client), client), {}))
        for table in (run.test, run.validation)
    )


def _winners(scores: Sequence[Score], tried: Sequence[Group], partial: Sequence[str]) -> list[Winner]:
    """For each strategy the configuration with the best validation score (the first of equals); one of them is the best of all. Of a
    configuration in `partial` the worse seeds may have been stopped: it is chosen only where there is no other."""

    def rank(score: Score) -> tuple[bool, float]:
        return score.label not in partial, _validated(score)

    chosen: dict[str, Score] = {}
    for score in scores:
        known = chosen.get(score.strategy)
        if known is None or rank(score) > rank(known):
            chosen[score.strategy] = score
    best = max(chosen.values(), key=rank)
    counts = {strategy: sum(group.strategy == strategy for group in tried) for strategy in chosen}
    return [Winner(strategy, score, counts[strategy], score is best) for strategy, score in chosen.items()]


def _validated(score: Score) -> float:
    return -math.inf if score.validation.value is None else score.validation.value


def _remarks(by_block: Blocks, task: str, data: str, groups: Sequence[Group]) -> list[str]:
    """What a reader must know beside the numbers."""
    runs = by_block[task, data]
    said = sorted({remark for run in runs for remark in run.remarks()})
    for run in runs:
        if not run.finished:
            said.append(f"{run.name} is {run.summary['status']}: it counts as tried and is not compared.")
    others = [other for of, other in by_block if of == task and other != data]
    if others:
        said.append(f"Other runs of this task were on other data ({', '.join(o[:8] for o in others)}): they are not tested against these.")
    seeds = sorted({len(group.runs) for group in groups})
    if seeds == [1]:
        said.append("One seed each: the intervals are over patients only and do not say what another seed would give.")
    elif len(seeds) > 1:
        said.append(f"Configurations have {seeds[0]} to {seeds[-1]} seeds.")
    return said
