"""One table, three forms: a terminal (rich), a CSV file, a page. Missing values read "n/a" everywhere."""

from __future__ import annotations

import csv
import io
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

MISSING = "n/a"
NARROW, EDGES = 16, 2  # characters: below which words are not folded; between two columns


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % interval and the number of patients behind it."""

    value: float | None
    low: float | None = None
    high: float | None = None
    n: int | None = None


Cell = str | float | int | bool | Estimate | None


@dataclass(frozen=True)
class Column:
    """A column and how its cells read. Numbers stand right, words left."""

    name: str
    text: Callable[[Cell], str] = str
    number: bool = True
    essential: bool = True  # shown on a terminal, not only on the page
    brief: str = ""  # its name on a terminal, where an estimate then goes without its interval


@dataclass(frozen=True)
class Table:
    """Rows under columns."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""
    marked: frozenset[int] = frozenset()  # rows that are emphasised
    marks: str = ""  # what every form of the table must say (see `marks`)

    def texts(self) -> Iterator[list[str]]:
        """Every row as it reads."""
        for row in self.rows:
            yield [MISSING if _missing(cell) else column.text(cell) for column, cell in zip(self.columns, row, strict=True)]

    def keys(self) -> Iterator[list[str]]:
        """Every row as it sorts: numbers as numbers, missing ones as nothing."""
        for row in self.rows:
            yield [_plain(cell) for cell in row]


def words(name: str, *, essential: bool = True) -> Column:
    return Column(name, text=str, number=False, essential=essential)


def whole(name: str, *, essential: bool = True) -> Column:
    return Column(name, text=lambda cell: f"{cell:,}", essential=essential)


def decimal(name: str, digits: int = 3, *, essential: bool = True) -> Column:
    return Column(name, text=lambda cell: f"{cell:.{digits}f}", essential=essential)


def signed(name: str, digits: int = 3, *, essential: bool = True) -> Column:
    """A difference: value and interval with their signs."""
    return Column(name, text=lambda cell: estimate_text(cell, f"+.{digits}f"), essential=essential)


def estimate(name: str, digits: int = 3, *, essential: bool = True, brief: str = "") -> Column:
    """A mean with its interval: 0.873 [0.861, 0.885]."""
    return Column(name, text=lambda cell: estimate_text(cell, f".{digits}f"), essential=essential, brief=brief)


def p_value(name: str, *, essential: bool = True) -> Column:
    return Column(name, text=p_text, essential=essential)


def size(name: str, *, essential: bool = True) -> Column:
    return Column(name, text=bytes_text, essential=essential)


def seconds(name: str, *, essential: bool = True) -> Column:
    return Column(name, text=seconds_text, essential=essential)


def estimate_text(cell: Cell, form: str) -> str:
    if not isinstance(cell, Estimate):
        return format(cell, form)
    if cell.low is None or cell.high is None:
        return format(cell.value, form)
    return f"{cell.value:{form}} [{cell.low:{form}}, {cell.high:{form}}]"


NO_INTERVAL = "No interval where a client has one test patient (or one of a class): how much its patients vary is not known."


LOWER = "↓: lower is better."


def without_interval(cells: Iterable[Cell]) -> str:
    """For a table's note: " " and `NO_INTERVAL` if one of the estimates has none, or nothing."""
    return f" {NO_INTERVAL}" if any(isinstance(c, Estimate) and c.value is not None and c.low is None for c in cells) else ""


def interval_words(score: Estimate) -> str:
    """ " (95 % interval 0.861 to 0.885)", or nothing."""
    return "" if score.low is None or score.high is None else f" (95 % interval {score.low:.3f} to {score.high:.3f})"


def p_text(cell: Cell) -> str:
    return "< 0.001" if cell < 0.001 else f"{cell:.3f}"


def bytes_text(cell: Cell) -> str:
    """Decimal units, as networks count."""
    value = float(cell)
    for unit in ("B", "kB", "MB"):
        if abs(value) < 999.5:
            return f"{value:.0f} B" if unit == "B" else f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} GB" if abs(value) < 999.5 else f"{value / 1000:,.3g} TB"


def seconds_text(cell: Cell) -> str:
    value = float(cell)
    if value < 120:
        return f"{value:.1f} s" if value < 10 else f"{value:.0f} s"
    return f"{value / 60:.1f} min" if value < 7200 else f"{value / 3600:.1f} h"


def short_key(key: str, keys: Iterable[str]) -> str:
    """The last part of a dotted key, if no other one of the keys ends so."""
    last = key.rpartition(".")[2]
    return last if sum(other.rpartition(".")[2] == last for other in keys) == 1 else key


def rich_table(table: Table) -> RichTable:
    """For a terminal: the essential columns, of the note the first sentence and what explains a gap or an arrow, and the marks."""
    explained = [text for text in (NO_INTERVAL, LOWER) if text in table.note]
    caption = "\n".join(text for text in (table.note.split(". ")[0], *explained, table.marks) if text)
    shown = RichTable(title=escape(table.title), caption=escape(caption) or None, box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    shown.title_justify = shown.caption_justify = "left"
    keep = [i for i, column in enumerate(table.columns) if column.essential]
    rows = [[_brief(table.columns[i], row[i]) for i in keep] for row in table.rows]
    for place, i in enumerate(keep):
        column = table.columns[i]
        name = column.brief or column.name
        widest = max(map(len, (*name.split(), *(row[place] for row in rows))), default=0)  # a head may stand on several lines
        narrowest = widest if column.number else min(widest, NARROW)
        shown.add_column(escape(name), justify="right" if column.number else "left", overflow="fold", min_width=narrowest)
    for number, row in enumerate(rows):
        shown.add_row(*map(escape, row), style="bold" if number in table.marked else None)
    return shown


def print_table(console: Console, table: Table) -> None:
    """All of it, also where the terminal is too narrow: lines that a terminal folds can be read, columns that are cut off cannot."""
    shown = rich_table(table)
    needed = sum((column.min_width or 0) + EDGES for column in shown.columns) + EDGES
    if needed > console.width:
        shown.width = needed
    console.print(shown, crop=False)


def terminal() -> Console:
    """Standard output; where it is no terminal (a file, a pipe) lines may be wide."""
    return Console() if sys.stdout.isatty() else Console(width=140)


def _brief(column: Column, cell: Cell) -> str:
    if column.brief and isinstance(cell, Estimate):
        cell = Estimate(cell.value)
    return MISSING if _missing(cell) else column.text(cell)


def to_csv(table: Table) -> str:
    """Raw values; an estimate takes four columns. A missing value is an empty cell. Marks are a last column."""
    spread = [any(isinstance(row[i], Estimate) for row in table.rows) for i in range(len(table.columns))]
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    header: list[str] = []
    for column, wide in zip(table.columns, spread, strict=True):
        header += [column.name, f"{column.name} low", f"{column.name} high", f"{column.name} n"] if wide else [column.name]
    writer.writerow([*header, "Marks"] if table.marks else header)
    for row in table.rows:
        cells: list[str] = []
        for cell, wide in zip(row, spread, strict=True):
            if wide:
                whole_cell = cell if isinstance(cell, Estimate) else Estimate(cell)
                cells += [_plain(v) for v in (whole_cell.value, whole_cell.low, whole_cell.high, whole_cell.n)]
            else:
                cells.append(_plain(cell))
        writer.writerow([*cells, table.marks] if table.marks else cells)
    return buffer.getvalue()


def to_markdown(table: Table) -> str:
    """The rows as they read, as a Markdown table; words left, numbers right."""
    head = [column.name for column in table.columns]
    rule = ["---:" if column.number else "---" for column in table.columns]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *table.texts()))


def estimate_of(block: Mapping[str, object] | None) -> Estimate:
    """One metric of `final` as an estimate."""
    if not block:
        return Estimate(None)
    low, high = block.get("ci95") or (None, None)
    return Estimate(block.get("mean"), low, high, block.get("n"))


def file_name(table: Table) -> str:
    """A file's name from the table's title."""
    return "".join(c if c.isalnum() else "_" for c in table.title.lower()).strip("_")


def _missing(cell: Cell) -> bool:
    value = cell.value if isinstance(cell, Estimate) else cell
    return value is None or (isinstance(value, float) and not math.isfinite(value))


def _plain(cell: Cell) -> str:
    value = cell.value if isinstance(cell, Estimate) else cell
    return "" if _missing(value) else (repr(value) if isinstance(value, float) else str(value))
