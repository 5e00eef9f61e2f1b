"""A sweep as it stands: `sweep.json`, made from the ledger and the trials' summaries."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from types import MappingProxyType
from typing import Any

from raylora.config import Config
from raylora.core.errors import InputError
from raylora.core.files import read_json_object, write_json
from raylora.metrics.matrix import PRIMARY
from raylora.sweep.ledger import Ledger, plain
from raylora.sweep.space import Sweep, Trial


def state(
    sweep: Sweep,
    ledger: Ledger,
    folder: Path,
    *,
    over: bool,
    total: int | None,
    known: Mapping[int, Mapping[str, Any]] = MappingProxyType({}),
) -> dict[str, Any]:
    """What `sweep.json` holds: every trial, how many configurations were tried, the best one with its validation and its test score.

    `known`: rows of trials that had ended when it was last asked for; their files are not read again.
    A configuration's objective is the mean over its seeds; only one that has finished with each of them can be the best.
    """
    ends, chosen, reports = ledger.of("end"), ledger.of("trial"), ledger.of("report")
    rows = []
    for number, line in sorted(chosen.items()):
        if number in known:
            rows.append(dict(known[number]))
            continue
        trial = Trial(number, line["values"], line["seed"])
        last = reports.get(number, {})
        end = ends.get(number)
        summary = summary_of(folder / "trials" / trial.folder) if end else {}
        rows.append(
            {
                "number": number,
                "folder": f"trials/{trial.folder}",
                "values": plain(trial.values),
                "seed": trial.seed,
                "status": end["status"] if end else "unfinished",
                "rounds": last.get("round", summary.get("rounds", 0) if end and end["status"] == "finished" else 0),
                "objective": last.get("objective"),
                "config_sha256": line["config_sha256"],
                "adapter_sha256": summary.get("adapter_sha256"),
                "test": _test(summary),
                "error": summary.get("error"),
            }
        )
    counts = {status: sum(row["status"] == status for row in rows) for status in ("finished", "pruned", "failed", "unfinished")}
    done = over and not counts["unfinished"] and len(rows) >= (total or 0)
    return {
        "schema": 1,
        "name": sweep.name,
        "task": sweep.base["task"],
        "status": "finished" if done else "stopped" if over else "running",
        "objective": sweep.objective.model_dump(),
        "search": sweep.search.model_dump(),
        "scheduler": sweep.scheduler.model_dump(),
        "space": plain(sweep.model_dump(exclude_none=True)["space"]),
        "seeds": sweep.repeats,
        "sha256": sweep.sha256(),
        "trials_planned": total,
        "counts": counts,
        "configurations_tried": len({_key(row) for row in rows}),
        "best": best(rows, sweep.objective.sign, sweep.repeats),
        "trials": rows,
    }


def best(rows: Sequence[Mapping[str, Any]], sign: float, seeds: Sequence[int]) -> dict[str, Any] | None:
    """The configuration with the best mean objective over its seeds, chosen on validation patients alone; None before one is complete.

    A search may draw a configuration more than once: with one seed that is the same trial again, and it counts once.
    """
    groups: dict[str, dict[int, Mapping[str, Any]]] = {}
    for row in rows:
        if row["status"] == "finished" and row["objective"] is not None:
            groups.setdefault(_key(row), {}).setdefault(row["seed"], row)
    complete = [list(group.values()) for group in groups.values() if set(group) == set(seeds)]
    if not complete:
        return None
    winner = max(complete, key=lambda group: (sign * fmean(row["objective"] for row in group), -group[0]["number"]))
    tests = [row["test"] for row in winner]
    return {
        "values": winner[0]["values"],
        "trials": [row["number"] for row in winner],
        "objective": fmean(row["objective"] for row in winner),
        "test": fmean(tests) if all(test is not None for test in tests) else None,
    }


def _key(row: Mapping[str, Any]) -> str:
    return json.dumps(row["values"], sort_keys=True)


def _test(summary: dict[str, Any]) -> float | None:
    block = summary.get("final", {}).get(PRIMARY.get(str(summary.get("task")), ""))
    return None if block is None else block["mean"]


def summary_of(folder: Path) -> dict[str, Any]:
    """A trial's `summary.json`, empty while there is none."""
    try:
        return read_json_object(folder / "summary.json")
    except InputError:
        return {}


def write_failure(folder: Path, config: Config | None, error: str) -> None:
    """The `summary.json` of a trial that failed. `config`: None for one whose values make none."""
    folder.mkdir(parents=True, exist_ok=True)
    about: dict[str, Any] = {"schema": 1, "status": "failed", "error": error}
    if config is not None:
        about |= {"name": config.name, "task": config.task, "strategy": config.strategy.name, "seed": config.seed}
        about["config_sha256"] = config.sha256()
    write_json(folder / "summary.json", about)
