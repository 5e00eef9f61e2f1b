"""The pictures of a stress campaign: degradation of the mean and of the worst client, and virtual time."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure

from raylora.report.figures import Picture, Theme, colours, figure, legend_outside, markers
from raylora.report.groups import value_text
from raylora.report.table import Estimate, Table, estimate, seconds, seconds_text, words
from raylora.report.words import listing, metric_words

if TYPE_CHECKING:  # it draws itself with these
    from raylora.report.stress import Campaign, Curve


def campaign_pictures(found: Campaign) -> list[Picture]:
    """For each level of the second dial: the curves, and the virtual time if a clock ran."""
    made = []
    for number, held in enumerate(found.holds):
        curves = [curve for curve in found.curves if curve.held == held]
        if any(p.score is not None for c in curves for p in c.points):
            made.append(_degradation(found, curves, held, number))
        if any(p.virtual_s is not None for c in curves for p in c.points):
            made.append(_times(found, curves, held, number))
    return made


def _degradation(found: Campaign, curves: list[Curve], held: Any, number: int) -> Picture:
    metric, levels = metric_words(found.metric), list(found.dials[found.dial])
    title = _title(found, f"{metric} against {found.dial}", held)

    def draw(theme: Theme) -> Figure:
        made, axes = figure(theme, 9.6, 3.5, columns=2, sharey=True)
        for place, (panel, name) in enumerate(zip(axes, ("mean over clients", "worst client"), strict=True)):
            for curve, colour, marker in zip(curves, colours(theme, len(curves)), markers(len(curves)), strict=True):
                heights = _heights(curve)[place]
                value, low, high = (_with_gaps(getattr(e, name) for e in heights) for name in ("value", "low", "high"))
                panel.plot(range(len(heights)), value, color=colour, marker=marker, label=curve.label)
                panel.fill_between(range(len(heights)), low, high, color=colour, alpha=0.15, linewidth=0)
            panel.set_xticks(range(len(levels)), [value_text(level) for level in levels])
            panel.set(title=name, xlabel=found.dial)
        axes[0].set_ylabel(f"{metric}, in-client")
        legend_outside(axes[-1])
        return made

    rows = tuple((c.label, value_text(p.level), *(h[i] for h in _heights(c))) for c in curves for i, p in enumerate(c.points))
    data = Table(title, (words("Strategy"), words(found.dial), estimate("Mean [95 %]"), estimate("Worst client [95 %]")), rows)
    ends = [(c.label, c.points[-1].score) for c in curves]
    last = listing((f"{label} {s.in_client.value:.3f}" for label, s in ends if s is not None and s.in_client.value is not None), 8)
    return Picture(f"degradation_{number}", title, f"{title}. At {value_text(levels[-1])}: {last}.", draw, data)


def _times(found: Campaign, curves: list[Curve], held: Any, number: int) -> Picture:
    levels = list(found.dials[found.dial])
    title = _title(found, f"Virtual time of a run against {found.dial}", held)

    def draw(theme: Theme) -> Figure:
        made, (axes,) = figure(theme, 7.2, 3.2)
        for curve, colour, marker in zip(curves, colours(theme, len(curves)), markers(len(curves)), strict=True):
            taken = _with_gaps(p.virtual_s or None for p in curve.points)
            axes.plot(range(len(taken)), taken, color=colour, marker=marker, label=curve.label)
        axes.set_xticks(range(len(levels)), [value_text(level) for level in levels])
        axes.set(xlabel=found.dial, ylabel="Virtual seconds", yscale="log")
        legend_outside(axes)
        return made

    rows = tuple((c.label, value_text(p.level), p.virtual_s) for c in curves for p in c.points)
    data = Table(title, (words("Strategy"), words(found.dial), seconds("Virtual time")), rows)
    last = listing((f"{c.label} {seconds_text(p.virtual_s)}" for c in curves for p in c.points[-1:] if p.virtual_s is not None), 8)
    return Picture(f"virtual_time_{number}", title, f"{title}. At {value_text(levels[-1])}: {last}.", draw, data)


def _heights(curve: Curve) -> tuple[list[Estimate], list[Estimate]]:
    """(means, worst clients) of a curve's points."""
    return [Estimate(None) if p.score is None else p.score.in_client for p in curve.points], [p.worst for p in curve.points]


def _title(found: Campaign, what: str, held: Any) -> str:
    return f"{what} ({found.held_text(held)})" if found.held_text(held) else what


def _with_gaps(values: Iterable[float | None]) -> list[float]:
    """For a line: what is not there is a gap."""
    return [math.nan if value is None else value for value in values]
