"""Runs side by side: what differs, who is better on the same patients, at what cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from raylora.core.errors import InputError
from raylora.core.files import read_json_object, replacing
from raylora.metrics.bootstrap import REPLICATES
from raylora.report.block import Block, Blocks, make_block
from raylora.report.compare_plots import block_pictures
from raylora.report.compare_tables import block_tables, common_settings, terminal_tables
from raylora.report.groups import baseline_of, blocks_of, groups_of
from raylora.report.html import render, save_pictures, table_context, write_page
from raylora.report.runs import find_runs
from raylora.report.sweep import values_text
from raylora.report.table import Table, file_name, print_table, terminal, to_csv
from raylora.report.words import inside, listing, metric_words

MOST_SENTENCES = 8  # on a terminal; the page has all of them


@dataclass(frozen=True)
class Comparison:
    """What `raylora compare` found, one block for each task and data set."""

    blocks: tuple[Block, ...]

    def tables(self) -> list[Table]:
        return [table for block in self.blocks for table in block_tables(block)]

    def show(self, console: Console | None = None) -> None:
        """Print the essential tables and sentences."""
        console = console or terminal()
        for block in self.blocks:
            console.rule(f"{block.title}: {metric_words(block.metric)} on test patients", align="left")
            for table in terminal_tables(block):
                print_table(console, table)
            findings = block.findings()
            for sentence in findings[:MOST_SENTENCES]:
                console.print(f"- {sentence}", highlight=False, markup=False)
            if len(findings) > MOST_SENTENCES:
                console.print(f"- and {len(findings) - MOST_SENTENCES} more sentences on the page (--output FILE.html)", highlight=False)
            for remark in block.remarks:
                console.print(f"! {remark}", highlight=False, markup=False)

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values; numbers are finite or None."""
        return {"schema": 1, "blocks": [_block_dict(block) for block in self.blocks]}

    def write_csv(self, folder: Path) -> list[Path]:
        """One CSV file a table. Returns their paths."""
        folder.mkdir(parents=True, exist_ok=True)
        paths = []
        for block in self.blocks:
            for table in block_tables(block):
                path = folder / f"{block.task}_{block.data_sha256[:8]}_{file_name(table)}.csv"
                with replacing(path) as partial:
                    partial.write_text(to_csv(table), encoding="utf-8")
                paths.append(path)
        return paths

    def write_html(self, path: Path) -> Path:
        """One self-contained page. Returns its path."""
        blocks = []
        for number, block in enumerate(self.blocks):
            blocks.append(
                {
                    "id": f"block_{number}",
                    "title": block.title,
                    "metric": metric_words(block.metric),
                    "findings": block.findings(),
                    "remarks": block.remarks,
                    "tables": [table_context(table) for table in block_tables(block) if table.rows],
                    "pictures": save_pictures(block_pictures(block), None),
                    "common": common_settings(block),
                }
            )
        runs = sum(len(block.runs) for block in self.blocks)
        return write_page(Path(path), render("comparison.html", title="Comparison", runs=runs, blocks=blocks))


def compare(
    run_dirs: Sequence[Path],
    *,
    baseline: str | None = None,
    root_seed: int = 0,
    replicates: int = REPLICATES,
    names: Mapping[Path, str] | None = None,
) -> Comparison:
    """Compare run folders (and sweep folders, by their trials).

    Args:
        run_dirs: folders; runs of different tasks or data come into separate blocks and are not tested against each other.
        baseline: the label or strategy of the A/A row; by default FedIT, else the first.
        root_seed: of the bootstrap.
        names: what runs are called that are not called by their folder.

    Raises InputError if a folder holds no run, if no run is finished, if nothing is called like the baseline, or if runs of one task can
    nowhere be compared because each was on other data.
    """
    found = find_runs(run_dirs, names)
    if not any(run.finished for run in found):
        raise InputError(f"compare: expected finished runs, found none in {listing(((names or {}).get(d, str(d)) for d in run_dirs), 4)}")
    by_block = {key: runs for key, runs in blocks_of(found).items() if any(run.finished for run in runs)}
    _refuse_incomparable(by_block)
    if baseline is not None:
        _require_baseline(by_block, baseline)
    blocks = [make_block(by_block, task, data, baseline, root_seed, replicates) for task, data in by_block]
    blocks = [replace(block, remarks=(*_ranked_otherwise(run_dirs, block), *block.remarks)) for block in blocks]
    return Comparison(tuple(sorted(blocks, key=lambda b: b.task != "segmentation")))


def _ranked_otherwise(folders: Sequence[Path], block: Block) -> list[str]:
    """What the sweeps of a block chose, where they ranked their trials by another metric than the one that is compared here."""
    said = []
    for folder in folders:
        sweep = read_json_object(folder / "sweep.json") if (folder / "sweep.json").is_file() else {}
        metric, best = (sweep.get("objective") or {}).get("metric", block.metric), sweep.get("best")
        if sweep.get("task") == block.task and metric != block.metric and best:
            chose = f"chose {values_text(best['values'])} by {inside(metric)} ({best['objective']:.3f} on validation patients)"
            said.append(f"The sweep {sweep['name']} {chose}; on this page everything is chosen by {inside(block.metric)}.")
    return said


def _require_baseline(by_block: Blocks, baseline: str) -> None:
    groups = [group for runs in by_block.values() for group in groups_of([run for run in runs if run.finished])[0]]
    if baseline_of(groups, baseline) is None:
        known = dict.fromkeys(name for group in groups for name in (group.strategy, group.label))
        raise InputError(f"--baseline: expected a strategy or label of these runs ({listing(known, 8)}), found {baseline}")


def _refuse_incomparable(by_block: Blocks) -> None:
    """Runs of one task, each on data of its own: there is nothing to compare."""
    for task in {task for task, _ in by_block}:
        mine = {data: [r for r in runs if r.finished] for (of, data), runs in by_block.items() if of == task}
        if len(mine) > 1 and all(len(runs) == 1 for runs in mine.values()):
            (one, (first, *_)), (other, (second, *_)) = list(mine.items())[:2]
            raise InputError(
                f"compare: {first.name} and {second.name} were on different data (data_sha256 {one[:8] or 'unknown'} and "
                f"{other[:8] or 'unknown'}): a comparison needs the same patients"
            )


def _block_dict(block: Block) -> dict[str, Any]:
    return {
        "task": block.task,
        "metric": block.metric,
        "data_sha256": block.data_sha256,
        "varied": list(block.varied),
        "runs": [run.name for run in block.runs],
        "configurations": [_plain(score) for score in block.scores],
        "frozen": None if block.frozen is None else _plain(block.frozen),
        "pairs": [_plain(pair) for pair in block.pairs],
        "a_a": {**_plain(block.a_a), "sentence": block.a_a.sentence},
        "winners": [{"strategy": w.strategy, "label": w.score.label, "tried": w.tried, "overall": w.overall} for w in block.winners],
        "findings": block.findings(),
        "remarks": list(block.remarks),
        "marks": list(block.marks),
    }


def _plain(value: Any) -> Any:
    """JSON values only; the bootstrap replicates stay behind."""
    if is_dataclass(value) and not isinstance(value, type):
        return {key: _plain(v) for key, v in asdict(value).items() if not key.endswith("replicates")}
    if isinstance(value, Mapping):
        return {str(key): _plain(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(value)
    return value
