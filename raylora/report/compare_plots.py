"""The pictures of a comparison: scores with intervals, score against cost, the objective against each varied key, rank by blocks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from raylora.report.block import Block
from raylora.report.figures import Picture, Theme, colours, figure, legend_outside, markers
from raylora.report.groups import value_text
from raylora.report.plots import heat_map
from raylora.report.scores import Score, mean_estimate
from raylora.report.table import Estimate, Table, bytes_text, decimal, estimate, seconds, seconds_text, size, whole, words
from raylora.report.words import listing, metric_words

WIDE = 10.0  # an axis is logarithmic if its values span more than this factor
MOST_SCORES = 40  # configurations in one picture
MOST_WORDS = 12  # values on an axis that are not numbers


def block_pictures(block: Block) -> list[Picture]:
    """Every picture that this block allows, in reading order."""
    made: list[Picture | None] = [
        scores_picture(block),
        cost_picture(block, "bytes", "Bytes sent, both directions", lambda s: s.bytes_total, bytes_text),
        cost_picture(block, "seconds", "Wall time of a run", lambda s: s.seconds, seconds_text),
        *(key_picture(block, key) for key in swept_keys(block)),
        *(rank_by_blocks(block, strategy) for strategy in dict.fromkeys(s.strategy for s in block.scores)),
    ]
    return [picture for picture in made if picture is not None]


def scores_picture(block: Block) -> Picture | None:
    """In-client and cross-client score of each configuration with its interval; of many, those that validation patients put first."""
    scored = [s for s in block.scores if s.in_client.value is not None]
    first = sorted(scored, key=lambda s: -math.inf if s.validation.value is None else s.validation.value, reverse=True)[:MOST_SCORES]
    shown = [s for s in (block.frozen, *scored) if s is not None and s.in_client.value is not None and (s is block.frozen or s in first)]
    if not shown:
        return None
    metric = metric_words(block.metric)
    most = f" (the {MOST_SCORES} best on validation patients of {len(scored)})" if len(scored) > MOST_SCORES else ""
    bars = ", with 95 % intervals" if any(e.low is not None for s in shown for e in (s.in_client, s.cross_client)) else ""
    title = f"{metric} on test patients{bars}{most}"

    def draw(theme: Theme) -> Figure:
        made, (axes,) = figure(theme, 7.6, 1.3 + 0.42 * len(shown))
        for name, colour, marker, shift, read in (
            ("in-client", theme.lines[0], "o", -0.12, lambda s: s.in_client),
            ("cross-client", theme.lines[1], "s", 0.12, lambda s: s.cross_client),
        ):
            points = [(i + shift, read(s)) for i, s in enumerate(shown) if read(s).value is not None]
            if points:
                places, estimates = zip(*points, strict=True)
                axes.errorbar([e.value for e in estimates], places, xerr=_bars(estimates), fmt=marker, color=colour, capsize=3, label=name)
        axes.set_yticks(range(len(shown)), [s.label for s in shown])
        axes.set(xlabel=metric, ylim=(len(shown) - 0.5, -0.5))
        legend_outside(axes)
        return made

    rows = tuple((s.label, s.in_client, s.cross_client, s.in_client.n) for s in shown)
    data = Table(title, (words("Configuration"), estimate("In-client"), estimate("Cross-client"), whole("n")), rows)
    alt = f"{title}: {listing((f'{s.label} {s.in_client.value:.3f}' for s in shown), 12)}, in-client."
    return Picture(f"{block.task}_scores", title, alt, draw, data)


def pareto(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Which (cost, score) points no other point beats: cheaper or as cheap, and better or as good, once strictly."""
    return [not any(c <= cost and s >= score and (c < cost or s > score) for c, s in points) for cost, score in points]


def cost_picture(
    block: Block, name: str, label: str, cost: Callable[[Score], float | None], text: Callable[[float], str]
) -> Picture | None:
    """Score against a cost, with the Pareto front."""
    shown = [s for s in block.scores if s.in_client.value is not None and cost(s) is not None]
    if len(shown) < 2:
        return None
    points = [(float(cost(s)), float(s.in_client.value)) for s in shown]
    front = pareto(points)
    metric = metric_words(block.metric)
    title = f"{metric} against {label[0].lower()}{label[1:]}"

    def draw(theme: Theme) -> Figure:
        made, (axes,) = figure(theme, 7.6, 3.6)
        best = sorted(p for p, on in zip(points, front, strict=True) if on)
        axes.step(*zip(*best, strict=True), where="post", color=theme.ink, linestyle=":", linewidth=1.2, label="Pareto front", zorder=1)
        strategies = list(dict.fromkeys(s.strategy for s in shown))
        for strategy, colour, marker in zip(strategies, colours(theme, len(strategies)), markers(len(strategies)), strict=True):
            mine = [(p, s.in_client, on) for p, s, on in zip(points, shown, front, strict=True) if s.strategy == strategy]
            x, y = [p[0] for p, _, _ in mine], [p[1] for p, _, _ in mine]
            axes.errorbar(x, y, yerr=_bars([e for _, e, _ in mine]), fmt="none", ecolor=colour, alpha=0.45, capsize=2)
            faces = [colour if on else theme.paper for _, _, on in mine]
            axes.scatter(x, y, marker=marker, s=46, facecolors=faces, edgecolors=colour, linewidths=1.4, label=strategy, zorder=3)
        axes.set(xlabel=label, ylabel=f"{metric}, in-client")
        _scale(axes, [p[0] for p in points], text)
        legend_outside(axes)
        return made

    rows = tuple((s.label, p[0], s.in_client, "yes" if on else "no") for s, p, on in zip(shown, points, front, strict=True))
    column = size(label) if name == "bytes" else seconds(label)
    data = Table(title, (words("Configuration"), column, estimate(f"{metric}, in-client"), words("On the front")), rows)
    alt = f"{title}. On the Pareto front (filled): {listing((s.label for s, on in zip(shown, front, strict=True) if on), 8)}."
    return Picture(f"{block.task}_{name}", title, alt, draw, data)


def swept_keys(block: Block) -> list[str]:
    """The varied keys with two values or more that can stand on an axis: numbers, or a few words. The strategy has pictures of its own, and
    what is one value here and a section there (a rank for all, ranks by client) has none."""
    found = []
    for key in block.varied:
        if any(other.startswith(f"{key}.") or key.startswith(f"{other}.") for other in block.varied):
            continue
        values = {_hashable(s.settings.get(key)) for s in block.scores if _has(s, key)}
        if key != "strategy.name" and len(values) > 1 and (all(map(_number, values - {None})) or len(values) <= MOST_WORDS):
            found.append(key)
    return found


def key_picture(block: Block, key: str) -> Picture | None:
    """The score against one key, on validation patients (what configurations are chosen by) and on test patients: for each strategy the mean
    over the configurations with a value, and the band of that mean."""
    series: dict[str, list[tuple[object, Estimate, Estimate]]] = {}
    for strategy in dict.fromkeys(s.strategy for s in block.scores):
        mine = [s for s in block.scores if s.strategy == strategy and s.in_client.value is not None and _has(s, key)]
        values = sorted({_hashable(s.settings.get(key)) for s in mine}, key=_order)
        if len(values) > 1:
            same = [(v, [s for s in mine if _hashable(s.settings.get(key)) == v]) for v in values]
            series[strategy] = [(v, mean_estimate(scores, "validation"), mean_estimate(scores)) for v, scores in same]
    if not series:
        return None
    metric = metric_words(block.metric)
    title = f"{metric} against {key}"
    every = sorted({v for points in series.values() for v, _, _ in points}, key=_order)
    as_numbers = len(every) > 8 and all(_number(v) and math.isfinite(v) for v in every)

    def draw(theme: Theme) -> Figure:
        made, panels = figure(theme, 8.6, 3.4, columns=2, sharey=True)
        for place, axes, name in zip((1, 2), panels, ("validation patients", "test patients"), strict=True):
            for (strategy, points), colour, marker in zip(series.items(), colours(theme, len(series)), markers(len(series)), strict=True):
                shown = [
                    (v if as_numbers else every.index(v), point[place])
                    for point in points
                    if point[place].value is not None
                    for v in point[:1]
                ]
                x, estimates = [at for at, _ in shown], [e for _, e in shown]
                axes.plot(x, [e.value for e in estimates], color=colour, marker=marker, label=strategy)
                down, up = _bars(estimates)
                values = np.array([e.value for e in estimates])
                axes.fill_between(x, values - down, values + up, color=colour, alpha=0.18, linewidth=0)
            axes.set(xlabel=key, title=name)
            if as_numbers:
                _scale(axes, every, value_text)
            else:
                axes.set_xticks(range(len(every)), [value_text(v) for v in every])
        panels[0].set_ylabel(f"{metric}, in-client")
        legend_outside(panels[1])
        return made

    rows = tuple((strategy, value_text(v), test, validation) for strategy, points in series.items() for v, validation, test in points)
    columns = (words("Strategy"), words(key), estimate("Test, in-client [95 %]"), estimate("Validation [95 %]"))
    best = {strategy: max(points, key=lambda p: -math.inf if p[1].value is None else p[1].value) for strategy, points in series.items()}
    chosen = {strategy: point for strategy, point in best.items() if point[1].value is not None}
    said = listing(
        (f"{strategy} at {value_text(v)}: {e.value:.3f}, on test patients {t.value:.3f}" for strategy, (v, e, t) in chosen.items()), 8
    )
    alt = f"{title}. Highest on validation patients: {said}." if said else f"{title}, on test patients."
    return Picture(f"{block.task}_by_{key.replace('.', '_')}", title, alt, draw, Table(title, columns, rows))


def rank_by_blocks(block: Block, strategy: str) -> Picture | None:
    """Mean score of each pair of rank and adapted blocks, where a strategy was run with several of both."""
    mine = [s for s in block.scores if s.strategy == strategy and s.in_client.value is not None]
    ranks, blocks = (sorted({_hashable(s.settings.get(f"lora.{k}")) for s in mine}, key=_order) for k in ("rank", "blocks"))
    by_client = any(key.startswith("lora.rank.") for key in block.varied)  # such ranks are no row
    if len(ranks) < 2 or len(blocks) < 2 or by_client:
        return None
    cells: dict[tuple[object, object], list[Score]] = {}
    for s in mine:
        cells.setdefault((_hashable(s.settings["lora.rank"]), _hashable(s.settings["lora.blocks"])), []).append(s)
    means = {place: float(np.mean([s.in_client.value for s in found])) for place, found in cells.items()}
    values = np.array([[means.get((r, b), np.nan) for b in blocks] for r in ranks])
    metric = metric_words(block.metric)
    title = f"{metric} by rank and blocks, {strategy}"

    def draw(theme: Theme) -> Figure:
        made, (axes,) = figure(theme, 2.6 + 0.9 * len(blocks), 1.5 + 0.45 * len(ranks))
        heat_map(axes, values, [value_text(r) for r in ranks], [value_text(b) for b in blocks], theme, metric)
        axes.set(xlabel="lora.blocks", ylabel="lora.rank")
        return made

    rows = tuple((value_text(r), *(means.get((r, b)) for b in blocks)) for r in ranks)
    data = Table(title, (words("lora.rank"), *(decimal(f"blocks {value_text(b)}") for b in blocks)), rows)
    (rank, at), top = max(means.items(), key=lambda item: item[1])
    alt = f"{title}, in-client. Highest: {top:.3f} at rank {value_text(rank)}, blocks {value_text(at)}."
    return Picture(f"{block.task}_rank_by_blocks_{strategy}", title, alt, draw, data)


def _bars(estimates: Sequence[Estimate]) -> np.ndarray:
    """Distances (2, n) from each value down and up to the ends of its interval; NaN where there is none: a width of zero would be one."""
    low = [e.value - e.low if e.low is not None else math.nan for e in estimates]
    high = [e.high - e.value if e.high is not None else math.nan for e in estimates]
    return np.clip(np.array([low, high]), 0, None)


def _scale(axes: Axes, values: Sequence[float], text: Callable[[float], str]) -> None:
    """A logarithmic axis where values span a wide range; two ticks where they are nearly equal, and more would read the same."""
    if min(values) > 0 and max(values) / min(values) > WIDE:
        axes.set_xscale("log")
        axes.xaxis.set_minor_formatter(NullFormatter())
    elif 0 < max(values) - min(values) < 0.1 * max(values):
        axes.set_xticks([min(values), max(values)])
    else:
        axes.xaxis.set_major_locator(MaxNLocator(nbins=7, steps=[1, 2, 5, 10]))  # few digits: rounded by `text`, others would not be even
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: text(value)))


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _has(score: Score, key: str) -> bool:
    """Whether a configuration has this key: another strategy's option it has not, whereas nothing is a value of every other key."""
    return score.settings.get(key) is not None or not key.startswith("strategy.")


def _hashable(value: object) -> object:
    if isinstance(value, list):
        return tuple(map(_hashable, value))
    return value_text(value) if isinstance(value, dict) else value


def _order(value: object) -> tuple[int, float, str]:
    """Numbers first, by size; then words."""
    return (0, float(value), "") if _number(value) else (1, 0.0, str(value))
