"""The pictures of one run: learning curves, aggregation weights, the cross-client matrix, traffic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator

from raylora.metrics.matrix import PRIMARY
from raylora.report.figures import Picture, Theme, colours, figure, legend_outside, markers
from raylora.report.runs import Run
from raylora.report.table import Column, Table, bytes_text, decimal, size, whole, words
from raylora.report.words import listing, metric_words

MOST_LINES = 10  # beyond so many clients lines are grey and the mean speaks
MOST_NUMBERS = 16  # beyond so many columns a heat map is colours only; its table has the numbers

Series = Mapping[str, Mapping[int, float]]  # client -> round -> value


def run_pictures(run: Run) -> list[Picture]:
    """Every picture that this run's files allow, in reading order."""
    made = (learning_curves(run), weights_by_round(run), cross_client_heat_map(run), bytes_by_direction(run))
    return [picture for picture in made if picture is not None]


def learning_curves(run: Run) -> Picture | None:
    """Validation score and training loss of each client by round."""
    records = run.records("client")
    kept = {name for r in records for name in (r.get("validation") or {})}
    metric = next((m for m in (PRIMARY[run.task], "likelihood", "accuracy") if m in kept), PRIMARY[run.task])
    score = _series(records, lambda r: (r.get("validation") or {}).get(metric))
    loss = _series(records, lambda r: r.get("loss"))
    panels = [(name, series) for name, series in ((f"Validation: {metric_words(metric)}", score), ("Training loss", loss)) if series]
    if not panels:
        return None
    clients = sorted({*run.clients, *score, *loss})  # not all have validation patients; in every picture each has one colour

    def draw(theme: Theme) -> Figure:
        made, axes = figure(theme, 8.6, 3.4, columns=len(panels))
        for one, (name, series) in zip(axes, panels, strict=True):
            _lines(one, series, theme, among=clients)
            one.set(title=name, xlabel="Round")
            one.xaxis.set_major_locator(MaxNLocator(integer=True))
        legend_outside(axes[-1], "Client")
        return made

    title = "Learning curves by client"
    return Picture("learning_curves", title, f"{title}. {_ends(panels[0][0], panels[0][1])}", draw, _by_round(title, dict(panels)))


def weights_by_round(run: Run) -> Picture | None:
    """The strategy's own weight of each client in each round."""
    series: dict[str, dict[int, float]] = {}
    for record in run.records("round"):
        for client, weight in sorted((record.get("weights") or {}).items()):
            series.setdefault(client, {})[_counted(record)] = float(weight)
    if not series:
        return None
    title = "Rating weights by round" if run.strategy == "rate_my_lora" else "Aggregation weights by round"

    def draw(theme: Theme) -> Figure:
        made, (axes,) = figure(theme, 7.0, 3.2)
        _lines(axes, series, theme, mean=False, among=sorted({*run.clients, *series}))
        axes.set(xlabel="Round", ylabel="Weight")
        axes.set_ylim(0, 1.06 * max(max(values.values()) for values in series.values()) or 1)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        legend_outside(axes, "Client")
        return made

    return Picture("weights", title, f"{title}. {_ends('Weight', series)}", draw, _by_round(title, {"Weight": series}))


def cross_client_heat_map(run: Run) -> Picture | None:
    """Each model (rows) on each client's test patients (columns)."""
    metric = PRIMARY[run.task]
    block = run.cross_client(metric)
    if not block["rows"]:
        return None
    values = np.array([[np.nan if v is None else v for v in row] for row in block["values"]], dtype=float)
    title = f"Cross-client matrix: {metric_words(metric)} on test patients"

    def draw(theme: Theme) -> Figure:
        rows, columns = values.shape
        wide, high = (0.85, 0.42) if columns <= MOST_NUMBERS else (0.2, 0.16)  # inches a cell
        made, (axes,) = figure(theme, max(4.6, 1.6 + wide * columns), max(2.4, 1.3 + high * rows))
        heat_map(axes, values, block["rows"], block["columns"], theme, metric_words(metric))
        axes.set(xlabel="Data of", ylabel="Model of")
        return made

    data = Table(
        title,
        (words("Model of"), *(decimal(f"On {column}") for column in block["columns"])),
        tuple((name, *row) for name, row in zip(block["rows"], block["values"], strict=True)),
        note='"frozen": before any training. "global": the shared part alone. A client: its full model, private parts included.',
    )
    seen = values[np.isfinite(values)]
    between = f" Values lie between {seen.min():.3f} and {seen.max():.3f}." if seen.size else ""
    return Picture("cross_client", title, f"Heat map of {values.shape[0]} models by {values.shape[1]} clients.{between}", draw, data)


def bytes_by_direction(run: Run) -> Picture | None:
    """Traffic up and down, summed over rounds."""
    records = run.records("round")
    if not records:
        return None
    rounds = [_counted(r) for r in records]
    sums = {name: np.cumsum([int(r.get(key) or 0) for r in records]) for name, key in (("up", "bytes_up"), ("down", "bytes_down"))}
    title = "Traffic by direction"

    def draw(theme: Theme) -> Figure:
        made, (axes,) = figure(theme, 6.4, 3.0)
        looks = ((theme.lines[3], "^", "-"), (theme.lines[0], "v", "--"))  # where both are as large, the dashes show the line below
        for (name, total), (colour, marker, dashes) in zip(sums.items(), looks, strict=True):
            way = "clients to server (up)" if name == "up" else "server to clients (down)"
            axes.plot(rounds, total, color=colour, marker=marker, linestyle=dashes, label=f"{way}: {bytes_text(total[-1])}")
        axes.set(xlabel="Round", ylabel="Sent so far, all clients")
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: bytes_text(value)))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(frameon=False, loc="upper left")
        return made

    rows = tuple((t, int(up), int(down)) for t, up, down in zip(rounds, sums["up"], sums["down"], strict=True))
    data = Table(title, (whole("Round"), size("Up so far"), size("Down so far")), rows)
    alt = f"Cumulative traffic: {bytes_text(sums['up'][-1])} up and {bytes_text(sums['down'][-1])} down after {len(rounds)} rounds."
    return Picture("bytes", title, alt, draw, data)


def heat_map(
    axes: Axes, values: np.ndarray, rows: Sequence[object], columns: Sequence[object], theme: Theme, what: str, digits: int = 3
) -> None:
    """Values (rows, columns) of `what` as coloured cells, with their numbers where there is room; NaN is hatched."""
    shown = values[np.isfinite(values)]
    low, high = (float(shown.min()), float(shown.max())) if shown.size else (0.0, 1.0)
    image = axes.imshow(values, cmap="cividis", vmin=low, vmax=max(high, low + 1e-9), aspect="auto")
    numbers = len(columns) <= MOST_NUMBERS
    for (i, j), value in np.ndenumerate(values):
        if not np.isfinite(value):
            axes.add_patch(_hatched(i, j, theme))
        if numbers:
            dark_cell = np.isfinite(value) and (value - low) / max(high - low, 1e-9) < 0.5
            ink = theme.ink if not np.isfinite(value) else "#ffffff" if dark_cell else "#111111"
            axes.text(j, i, f"{value:.{digits}f}" if np.isfinite(value) else "n/a", ha="center", va="center", fontsize=8, color=ink)
    turned = {"rotation": 90 if not numbers else 30, "ha": "center" if not numbers else "right"} if len(columns) > 6 else {}
    size = 9 if numbers else 6
    axes.set_xticks(range(len(columns)), [str(c) for c in columns], fontsize=size, **turned)
    axes.set_yticks(range(len(rows)), [str(r) for r in rows], fontsize=size)
    axes.grid(False)
    axes.figure.colorbar(image, ax=axes, shrink=0.9, label=what)


def _hatched(row: int, column: int, theme: Theme) -> Rectangle:
    return Rectangle((column - 0.5, row - 0.5), 1, 1, facecolor="none", edgecolor=theme.faint, hatch="///", linewidth=0)


def _series(records: Sequence[Mapping[str, object]], read) -> dict[str, dict[int, float]]:
    """client -> round -> value, where there is one."""
    series: dict[str, dict[int, float]] = {}
    for record in records:
        value = read(record)
        if value is not None:
            series.setdefault(str(record["client"]), {})[_counted(record)] = float(value)
    return dict(sorted(series.items()))


def _mean(series: Series) -> dict[int, float]:
    """Over the clients that have a value, by round."""
    rounds = sorted({t for values in series.values() for t in values})
    return {t: float(np.mean([values[t] for values in series.values() if t in values])) for t in rounds}


def _lines(axes: Axes, series: Series, theme: Theme, *, mean: bool = True, among: Sequence[str] | None = None) -> None:
    """One line a client, each with its style among those of all clients; many clients become a grey bundle."""
    clients = list(among or series)
    looks = zip(colours(theme, len(clients)), markers(len(clients)), strict=True)
    styles = {client: {"color": c, "marker": m, "alpha": 0.9} for client, (c, m) in zip(clients, looks, strict=True)}
    bundle = len(clients) > MOST_LINES
    for number, (client, values) in enumerate(series.items()):
        style, label = styles[client], client
        if bundle:
            style, label = {"color": theme.faint, "linewidth": 0.8}, f"each of {len(series)} clients" if number == 0 else "_"
        axes.plot(list(values), list(values.values()), label=label, **style)
    if (mean or bundle) and len(series) > 1:
        average = _mean(series)
        axes.plot(list(average), list(average.values()), color=theme.ink, linewidth=2.4, linestyle="--", label="mean")


def _ends(name: str, series: Series) -> str:
    """The last values in words."""
    last = {client: values[max(values)] for client, values in series.items()}
    when = "in the last round" if len({max(values) for values in series.values()}) == 1 else "in each client's last round"
    if len(last) > MOST_LINES:
        return f"{name} {when}: mean {np.mean(list(last.values())):.3f} over {len(last)} clients."
    return f"{name} {when}: {listing((f'{client} {value:.3f}' for client, value in last.items()), MOST_LINES)}."


def _counted(record: Mapping[str, Any]) -> int:
    """Its round, for readers: from 1, as messages count."""
    return int(record["round"]) + 1


def _by_round(title: str, blocks: Mapping[str, Series]) -> Table:
    """Rounds as rows, one column a client (and block)."""
    columns: list[Column] = [whole("Round")]
    filled: list[Mapping[int, float]] = []
    for name, series in blocks.items():
        for client, values in series.items():
            columns.append(decimal(f"{name}: {client}" if len(blocks) > 1 else client))
            filled.append(values)
    rounds = sorted({t for values in filled for t in values})
    return Table(title, tuple(columns), tuple((t, *(values.get(t) for values in filled)) for t in rounds))
