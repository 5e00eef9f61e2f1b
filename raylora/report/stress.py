"""Strategies against dials: what each level does to the mean client and to the worst one, and one number for robustness."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from raylora.metrics.bootstrap import REPLICATES, interval
from raylora.metrics.matrix import PRIMARY
from raylora.metrics.panel import Panel, panel_interval
from raylora.report.groups import Group, value_text
from raylora.report.html import render, save_pictures, table_context, write_page
from raylora.report.marks import common_marks, stamped
from raylora.report.pairs import Pair, pairs_of, self_test
from raylora.report.runs import read_run
from raylora.report.scores import Score, score_of
from raylora.report.stress_plots import campaign_pictures
from raylora.report.table import Estimate, Table, decimal, estimate, p_value, print_table, seconds, signed, size, terminal, whole, words
from raylora.report.words import inside, metric_words


@dataclass(frozen=True)
class Ended:
    """One experiment of a campaign, and how it ended."""

    number: int
    label: str
    levels: tuple[Any, ...]  # of the dials, in their order
    seed: int
    status: str  # finished | refused | failed
    why: str
    folder: Path


@dataclass(frozen=True)
class Point:
    """One strategy at one setting of the dials, means over its seeds."""

    level: Any  # of the first dial
    score: Score | None  # None: every seed was refused or failed
    worst: Estimate  # the client with the lowest mean, with the interval over its patients
    worst_client: str = ""
    virtual_s: float | None = None
    faulty: str = ""  # clients whom something was drawn for once, under the first seed


@dataclass(frozen=True)
class Curve:
    """One strategy against the first dial, the second one (if there is one) held."""

    label: str
    held: Any  # level of the second dial
    points: tuple[Point, ...]
    height: Estimate  # the mean one
    worst_height: float | None


@dataclass(frozen=True)
class Campaign:
    """What a stress campaign found."""

    name: str
    metric: str
    dials: Mapping[str, tuple[Any, ...]]
    curves: tuple[Curve, ...]
    pairs: Mapping[tuple[Any, ...], tuple[Pair, ...]]  # levels -> every strategy against the first one there
    ended: tuple[Ended, ...]
    remarks: tuple[str, ...]
    marks: tuple[str, ...]

    @property
    def dial(self) -> str:
        """The first one: the axis of the curves."""
        return next(iter(self.dials))

    @property
    def holds(self) -> tuple[Any, ...]:
        """Levels of the second dial; (None,) without one."""
        return tuple(self.dials.values())[1] if len(self.dials) > 1 else (None,)

    def held_text(self, held: Any) -> str:
        """Of the second dial, or nothing."""
        return "" if len(self.dials) < 2 else f"{list(self.dials)[1]} {value_text(held)}"

    def findings(self) -> list[str]:
        """A sentence for each curve, best mean first, then what the tests at the last level say."""
        said = []
        for curve in sorted(self.curves, key=lambda c: (self.holds.index(c.held), -(c.height.value or -math.inf))):
            first, last = curve.points[0], curve.points[-1]
            where = f", {self.held_text(curve.held)}" if self.held_text(curve.held) else ""
            if first.score is None or last.score is None or curve.height.value is None:
                said.append(f"{curve.label}{where}: without a score at {self._missing(curve)}, so its curve has no mean height.")
                continue
            said.append(
                f"{curve.label}{where}: {inside(self.metric)} {_number(first.score.in_client.value)} at {self.dial} {value_text(first.level)} and "
                f"{_number(last.score.in_client.value)} at {value_text(last.level)} (its worst client, {last.worst_client}: "
                f"{_number(last.worst.value)}); mean height of its curve {curve.height.value:.3f}."
            )
        for held in self.holds:
            levels = (self.dials[self.dial][-1], *([held] if len(self.dials) > 1 else []))
            said += [f"At {self._at(levels)}: {pair.sentence}" for pair in self.pairs.get(levels, ())]
        return said

    def _missing(self, curve: Curve) -> str:
        return ", ".join(value_text(p.level) for p in curve.points if p.score is None or p.score.in_client.value is None)

    def _at(self, levels: tuple[Any, ...]) -> str:
        return ", ".join(f"{key} {value_text(level)}" for key, level in zip(self.dials, levels, strict=True))

    # ---- tables

    def tables(self) -> list[Table]:
        """In reading order."""
        return [stamped(table, self.marks) for table in (self.robustness(), self.levels_table(), self.pairs_table(), self.runs_table())]

    def robustness(self) -> Table:
        """One row a curve."""
        first, last = (value_text(self.dials[self.dial][i]) for i in (0, -1))
        two = [words(list(self.dials)[1])] if len(self.dials) > 1 else []
        columns = (
            words("Strategy"),
            *two,
            estimate(f"At {first} [95 %]", brief=f"At {first}"),
            estimate(f"At {last} [95 %]", brief=f"At {last}"),
            estimate("Mean height [95 %]", brief="Mean height"),
            estimate(f"Worst client at {last} [95 %]", brief="Worst client"),
            decimal("Mean height, worst client"),
        )
        rows = []
        for c in self.curves:
            ends = [Estimate(None) if p.score is None else p.score.in_client for p in (c.points[0], c.points[-1])]
            held = [value_text(c.held)] if two else []
            rows.append((c.label, *held, *ends, c.height, c.points[-1].worst, c.worst_height))
        note = (
            f"{metric_words(self.metric)} in-client on test patients, means over seeds and clients, byzantine clients included. Mean "
            "height: of the curve as it is drawn, each level as far from the next (trapezoids: the ends count half). Intervals draw patients within "
            "clients, then seeds."
        )
        return Table(f"Robustness to {self.dial}", columns, tuple(rows), note)

    def levels_table(self) -> Table:
        """One row a point."""
        columns = (
            words("Strategy"),
            *(words(key) for key in self.dials),
            whole("Seeds"),
            estimate("Mean [95 %]"),
            estimate("Worst client [95 %]"),
            words("Which"),
            words("Faulty"),
            estimate("Cross-client [95 %]"),
            size("Bytes"),
            seconds("Virtual time"),
        )
        rows = []
        for c in self.curves:
            for p in c.points:
                levels = [value_text(p.level), *([value_text(c.held)] if len(self.dials) > 1 else [])]
                s = p.score
                scored = (
                    (None, None, None, "", "", None, None)
                    if s is None
                    else (len(s.seeds), s.in_client, p.worst, p.worst_client, p.faulty, s.cross_client, s.bytes_total)
                )
                rows.append((c.label, *levels, *scored, p.virtual_s))
        note = (
            "The worst client is chosen after looking at the test patients: its score is lower than another draw of patients would make it. "
            "Faulty: what was drawn for clients once (under the first seed); what is drawn in every round is not listed."
        )
        return Table("Every level", columns, tuple(rows), note)

    def pairs_table(self) -> Table:
        """Every strategy against the first one, at every setting."""
        columns = (
            *(words(key) for key in self.dials),
            words("A"),
            words("B"),
            signed("A - B [95 %]"),
            p_value("p, Holm"),
            words("Verdict"),
            whole("n"),
        )
        rows, first = [], self.curves[0].label
        for levels, pairs in self.pairs.items():
            for p in pairs:
                a, difference, verdict = p.a, Estimate(p.difference, *(p.ci95 or (None, None)), p.n), p.verdict
                if p.a == first:  # it is ahead: the first strategy stays in B, so that rows can be read down
                    a, verdict = p.b, verdict.replace("A better", "B better")
                    ends = (None, None) if p.ci95 is None else (-p.ci95[1], -p.ci95[0])
                    difference = Estimate(None if p.difference is None else 0.0 - p.difference, *ends, p.n)
                rows.append((*map(value_text, levels), a, first, difference, p.p_holm, verdict, p.n))
        note = "On the same test patients, averaged over seeds first; p values of one setting are corrected together (Holm)."
        return Table("Against the first strategy", columns, tuple(rows), note)

    def runs_table(self) -> Table:
        """Every experiment and how it ended."""
        columns = (whole("Number"), words("Strategy"), *(words(key) for key in self.dials), whole("Seed"), words("Status"), words("Why"))
        rows = tuple((e.number, e.label, *map(value_text, e.levels), e.seed, e.status, e.why) for e in self.ended)
        return Table("Experiments", columns, rows)

    # ---- forms

    def show(self, console: Console | None = None) -> None:
        """Print the essential table and the sentences."""
        console = console or terminal()
        print_table(console, stamped(self.robustness(), self.marks))
        for sentence in (*self.findings(), *(f"! {remark}" for remark in self.remarks)):
            console.print(f"- {sentence}".replace("- !", "!"), highlight=False, markup=False)

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "schema": 1,
            "name": self.name,
            "metric": self.metric,
            "dials": {key: list(levels) for key, levels in self.dials.items()},
            "curves": [_curve(curve) for curve in self.curves],
            "findings": self.findings(),
            "remarks": list(self.remarks),
            "experiments": [
                {"number": e.number, "strategy": e.label, "levels": list(e.levels), "seed": e.seed, "status": e.status, "why": e.why}
                for e in self.ended
            ],
        }


def campaign(
    name: str, dials: Mapping[str, tuple[Any, ...]], labels: Sequence[str], ended: Sequence[Ended], replicates: int = REPLICATES
) -> Campaign:
    """Score what has ended.

    dials: dotted key -> its levels, one or two; labels: the strategies, the baseline of the pairs first. Experiments that were refused or
    failed leave gaps.
    """
    dials = {key: tuple(map(_level, levels)) for key, levels in dials.items()}
    ended = [replace(e, levels=tuple(map(_level, e.levels))) for e in ended]
    runs = {e.number: read_run(e.folder) for e in ended if e.status == "finished"}
    some = next(iter(runs.values()), None)
    metric = PRIMARY[some.task] if some else "dice"
    groups: dict[tuple[str, tuple[Any, ...]], Group] = {}
    for e in ended:
        if e.number in runs:
            known = groups.get((e.label, e.levels), Group(e.label, {}, ()))
            groups[e.label, e.levels] = replace(known, runs=(*known.runs, runs[e.number]))
    first, *second = dials.values()
    holds = second[0] if second else (None,)
    curves = []
    for held in holds:
        for label in labels:
            points = []
            for level in first:
                levels = (level, held) if second else (level,)
                points.append(_point(level, groups.get((label, levels)), metric, replicates))
            curves.append(_measured(label, held, points, first))
    pairs = {}
    for levels in dict.fromkeys(e.levels for e in ended):
        here = [groups[label, levels] for label in labels if (label, levels) in groups]
        if len(here) > 1 and here[0].label == labels[0]:
            pairs[levels] = tuple(pairs_of(here, metric, self_test(here[0], metric), 0, replicates, against=here[0]))
    remarks = sorted({remark for run in runs.values() for remark in run.remarks()})
    if len({e.seed for e in ended}) == 1:
        remarks.append("One seed each: the intervals are over patients only and do not say what another seed would give.")
    remarks += [
        f"{e.label} at {', '.join(map(value_text, e.levels))}, seed {e.seed}: {e.status}: {e.why}" for e in ended if e.status != "finished"
    ]
    marks = tuple(common_marks([run.summary for run in runs.values()]))
    return Campaign(name, metric, dials, tuple(curves), pairs, tuple(ended), tuple(remarks), marks)


def _level(value: Any) -> Any:
    """A level as it stands in tables and tells experiments apart: one number, word or switch, or the text of several (one for each client)."""
    return value_text(value) if isinstance(value, list | dict) else value


def _point(level: Any, group: Group | None, metric: str, replicates: int) -> Point:
    if group is None:
        return Point(level, None, Estimate(None))
    client, worst = worst_client(group.in_client(metric), replicates)
    faulty = group.runs[0].summary.get("faults") or {}
    said = [f"{client}: {_drawn(about)}" for client, about in faulty.items() if _drawn(about)]
    return Point(level, score_of(group, metric, 0, replicates), worst, client, group.mean("virtual_seconds"), "; ".join(said))


def _drawn(about: Mapping[str, Any]) -> str:
    """What is wrong with a client; its line and its device are not."""
    return ", ".join(f"{key} {value_text(value)}" for key, value in about.items() if key not in ("up_mbit", "down_mbit", "speed"))


def worst_client(own: Panel, replicates: int = REPLICATES) -> tuple[str, Estimate]:
    """The client with the lowest mean over seeds and its patients, with the interval over them; ("", nothing) without a score."""
    scores = {client: value for client, value in (own.client_scores if own.patients else {}).items() if value is not None}
    if not scores:
        return "", Estimate(None)
    client = min(scores, key=lambda c: (scores[c], c))
    mine = own.restrict([p for p, c in zip(own.patients, own.clients, strict=True) if c == client])
    low, high = panel_interval(mine, 0, replicates) or (None, None)
    return client, Estimate(scores[client], low, high, len(mine.patients))


def _measured(label: str, held: Any, points: Sequence[Point], levels: Sequence[Any]) -> Curve:
    heights = [None if p.score is None else p.score.in_client.value for p in points]
    value, height = mean_height(heights), Estimate(None)
    if value is not None:
        scores = [p.score for p in points if p.score is not None]
        drawn = np.sum([w * score.replicates for w, score in zip(trapezoids(len(levels)), scores, strict=True)], axis=0)
        low, high = interval(drawn, min(score.degrees for score in scores)) or (None, None)
        height = Estimate(value, low, high)
    return Curve(label, held, tuple(points), height, mean_height([p.worst.value for p in points]))


def trapezoids(levels: int) -> list[float]:
    """The weight of each level's height in the mean height of the curve through them, each as far from the next; they sum to 1.

    Over the dial's own values a curve over [100, 1, 0.5] would be its first two levels alone.
    """
    weights = np.ones(levels)
    weights[[0, -1]] = 0.5
    return [float(w) for w in weights / weights.sum()]


def mean_height(heights: Sequence[float | None]) -> float | None:
    """Of the curve; None where a level has none."""
    if any(height is None for height in heights):
        return None
    return float(np.dot(trapezoids(len(heights)), np.array(heights, dtype=np.float64)))


def _number(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.3f}"


def _curve(curve: Curve) -> dict[str, Any]:
    def said(one: Estimate) -> dict[str, Any]:
        return {"value": one.value, "low": one.low, "high": one.high, "n": one.n}

    points = [
        {
            "level": p.level,
            "mean": None if p.score is None else said(p.score.in_client),
            "worst": {"client": p.worst_client, **said(p.worst)},
            "virtual_seconds": p.virtual_s,
        }
        for p in curve.points
    ]
    return {
        "strategy": curve.label,
        "held": curve.held,
        "mean_height": said(curve.height),
        "worst_mean_height": curve.worst_height,
        "points": points,
    }


def write_campaign(found: Campaign, path: Path, settings: str) -> Path:
    """One self-contained page. settings: the campaign's file, as resolved. Returns the page's path."""
    page = render(
        "stress.html",
        title=found.name,
        metric=metric_words(found.metric),
        dials=", ".join(found.dials),
        experiments=len(found.ended),
        settings=settings,
        findings=found.findings(),
        remarks=found.remarks,
        tables=[table_context(table) for table in found.tables() if table.rows],
        pictures=save_pictures(campaign_pictures(found), None),
    )
    return write_page(path, page)
