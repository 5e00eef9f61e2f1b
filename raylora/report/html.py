"""Self-contained pages: everything is inside one file, nothing is asked from anywhere."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path

import jinja2
import yaml

from raylora.core.files import replacing
from raylora.report.figures import LIGHT, Picture, data_uri, png, shown_width
from raylora.report.marks import marks_of, stamped
from raylora.report.overlays import overlay_pictures
from raylora.report.plots import run_pictures
from raylora.report.runs import read_run
from raylora.report.table import Table, to_csv
from raylora.report.tables import client_table, dataset_table, facts, final_table, headline, record_table

_HERE = Path(__file__).parent
MOST_ROWS = 30  # longer tables scroll under their header
LONG = 24  # letters; longer words are given room, so that they do not break into many lines


def write_report(run_dir: Path) -> Path:
    """Write `report.html` and `plots/*.png` of one run folder, from its files alone. Returns the page's path. Raises InputError."""
    run = read_run(run_dir)
    final = run.final() if run.finished else run.summary.get("final") or {}
    pictures = run_pictures(run) + overlay_pictures(run)
    scores = (
        final_table(final, run.task),
        client_table(final, run.task, run.clients, run.summary.get("patients") or {}),
        dataset_table(run.summary),
    )
    marks = marks_of(run.summary)
    page = render(
        "run.html",
        title=str(run.summary.get("name") or run.folder.name),
        headline=headline(run.summary, final),
        remarks=run.remarks(),
        status=str(run.summary["status"]),
        facts=facts(run),
        tables=[table_context(stamped(t, marks)) for t in scores if t.rows],
        pictures=save_pictures(pictures, run.folder / "plots"),
        record=table_context(record_table(run.summary)),
        config=yaml.safe_dump(dict(run.config), sort_keys=False),
    )
    return write_page(run.folder / "report.html", page)


def save_pictures(pictures: Sequence[Picture], folder: Path | None) -> list[dict[str, object]]:
    """Draw pictures for a page; they are also written to `folder` as PNG."""
    drawn = []
    for picture in pictures:
        image = png(picture)
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{picture.name}.png").write_bytes(image)
        drawn.append(
            {
                "name": picture.name,
                "title": picture.title,
                "alt": picture.alt,
                "image": data_uri(image),
                "width": shown_width(image),
                "light": picture.theme == LIGHT,
                "data": table_context(picture.data),
            }
        )
    return drawn


def table_context(table: Table) -> dict[str, object]:
    """A table as a template needs it: how cells read, how they sort, and the whole as a CSV file in a link."""
    rows: list[dict[str, object]] = []
    for number, (texts, keys) in enumerate(zip(table.texts(), table.keys(), strict=True)):
        cells = [
            {"text": t, "key": k, "number": c.number, "long": not c.number and len(t) > LONG}
            for t, k, c in zip(texts, keys, table.columns, strict=True)
        ]
        rows.append({"cells": cells, "marked": number in table.marked})
    csv_file = base64.b64encode(to_csv(table).encode()).decode("ascii")
    columns = [{"name": c.name, "number": c.number} for c in table.columns]
    note = " ".join(text for text in (table.note, table.marks and f"{table.marks}.") if text)
    tall = len(rows) > MOST_ROWS
    return {"tall": tall, "title": table.title, "columns": columns, "rows": rows, "note": note, "csv": f"data:text/csv;base64,{csv_file}"}


def render(template: str, **values: object) -> str:
    """A page from one of the templates beside this file; every value is escaped."""
    loader = jinja2.FileSystemLoader(_HERE)
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    assets: Mapping[str, str] = {name: (_HERE / f"page.{name}").read_text(encoding="utf-8") for name in ("css", "js")}
    return environment.get_template(template).render(**values, **assets)


def write_page(path: Path, page: str) -> Path:
    """Put a page in its place at once or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        partial.write_text(page, encoding="utf-8")
    return path
