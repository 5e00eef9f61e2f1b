"""Run folders, as they lie on disk, as values. Nothing here computes a score."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from raylora.core.errors import InputError, one_line
from raylora.core.files import read_json_object
from raylora.core.values import NOT_YAML
from raylora.metrics.matrix import PRIMARY, cross_client, final
from raylora.metrics.rows import CaseRow, CaseTable, case_table

COLUMNS = pa.schema(
    [(name, {int: pa.int64(), float: pa.float64()}.get(kind, pa.string())) for name, kind in CaseRow.__annotations__.items()]
)
"""Of `cases.parquet`."""


@dataclass(frozen=True)
class Run:
    """One run folder."""

    folder: Path
    config: Mapping[str, Any]  # nested, as resolved
    summary: Mapping[str, Any]
    rounds: Sequence[Mapping[str, Any]]  # the objects of rounds.jsonl
    name: str = ""  # what it is called in tables and messages

    @property
    def task(self) -> str:
        return str(self.summary["task"])

    @property
    def strategy(self) -> str:
        return str(self.summary["strategy"])

    @property
    def seed(self) -> int:
        return int(self.summary["seed"])

    @property
    def clients(self) -> tuple[str, ...]:
        """The clients that trained."""
        return tuple(self.summary["clients"])

    @property
    def finished(self) -> bool:
        return self.summary.get("status") == "finished"

    @property
    def cases(self) -> list[CaseRow]:
        """The rows of cases.parquet, read anew each time (only the tables below are kept); none for a run that ended without."""
        path = self.folder / "cases.parquet"
        if not self.finished and not path.is_file():
            return []
        try:
            table = pq.read_table(path, columns=list(CaseRow._fields)).select(list(CaseRow._fields)).cast(COLUMNS)
            if any(column.null_count for column in table.columns):
                raise pa.ArrowInvalid("a row lacks a value")
            if self.finished and not len(table):
                raise pa.ArrowInvalid("it is empty")
        except FileNotFoundError:
            raise InputError(f"{path}: not there (expected the cases of a finished run)") from None
        except (pa.ArrowException, OSError, KeyError) as error:
            raise InputError(f"{path}: not the cases of a run: {one_line(error)}") from None
        return [CaseRow(*row) for row in zip(*(column.to_pylist() for column in table.columns), strict=True)]

    @cached_property
    def test(self) -> CaseTable:
        return case_table(self.cases, "test")

    @cached_property
    def validation(self) -> CaseTable:
        return case_table(self.cases, "validation")

    def final(self) -> Mapping[str, Mapping[str, Any]]:
        """`final` of the summary, or the same from the rows."""
        return self.summary.get("final") or final(self.cases, task=self.task, clients=self.clients)

    def cross_client(self, metric: str) -> Mapping[str, Any]:
        """`cross_client` of the summary if it is about this metric, or the same from the rows."""
        block = self.summary.get("cross_client")
        return block if block and block.get("metric") == metric else cross_client(self.cases, metric=metric, clients=self.clients)

    def records(self, kind: str) -> list[Mapping[str, Any]]:
        """The objects of rounds.jsonl of one kind ("round", "client"), in order of round."""
        return sorted((r for r in self.rounds if r.get("kind") == kind), key=lambda r: r["round"])

    def remarks(self) -> list[str]:
        """What a reader of any number of this run must know."""
        data = self.config.get("data") or {}
        sources = data.get("dataset")
        names = [s["dataset"] for s in sources] if isinstance(sources, list) else [sources]
        said = []
        if "phantom" in names:
            said.append("Synthetic hearts (phantoms): they prove the software, not a ranking of methods.")
        if data.get("crop") == "label":
            said.append("Oracle crop: images are centred with the help of the label, a test case's too.")
        seen = (self.summary.get("base") or {}).get("has_seen")
        if seen if seen is not None else data.get("allow_seen"):
            said.append("Some cases were seen when the base weights were made.")
        return said + [f"{note[0].upper()}{note[1:]}." for note in self.summary.get("notes") or ()]


def read_run(folder: Path, name: str = "") -> Run:
    """Read one run folder, called so (by default by its path). Raises InputError if it is none."""
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: expected a run folder, found {'a file' if folder.exists() else 'nothing there'}")
    if not (folder / "summary.json").exists():
        raise InputError(f"{folder}: expected a run folder with summary.json, which is not there (not a run, or not finished)")
    summary = read_json_object(folder / "summary.json")
    config = _read_yaml(folder / "config.yaml")
    _check_config(config, folder / "config.yaml")
    if summary.get("status") in ("pruned", "failed"):  # it may have ended before it knew more than its configuration
        strategy = (config.get("strategy") or {}).get("name")
        summary = {"task": config.get("task"), "strategy": strategy, "seed": config.get("seed"), "clients": [], **summary}
    _check_summary(summary, folder / "summary.json")
    rounds = _read_lines(folder / "rounds.jsonl")
    return Run(folder=folder, config=config, summary=summary, rounds=rounds, name=name or str(folder))


def find_runs(folders: Sequence[Path], names: Mapping[Path, str] | None = None) -> list[Run]:
    """The runs of some run folders and of sweep and stress folders (all their trials), in order. Raises InputError for any other folder.

    `names`: what runs are called that are not called by their folder.
    """
    runs = []
    for folder in map(Path, folders):
        if (folder / "sweep.json").is_file() or (folder / "stress.json").is_file():
            ended = sorted(p.parent for p in folder.glob("trials/*/summary.json"))
            trials = [trial for trial in ended if (trial / "config.yaml").is_file()]  # without one it never was an experiment
            if not trials:
                raise InputError(f"{folder}: expected a sweep with trials, found none that wrote a summary.json")
            runs += [read_run(trial) for trial in trials]
        else:
            runs.append(read_run(folder, (names or {}).get(folder, "")))
    return runs


NUMBER = int | float
NEEDED: Mapping[str, Any] = {"task": str, "strategy": str, "seed": int, "clients": list, "status": str}
KNOWN: Mapping[str, Any] = {"name": str, "data_sha256": str, "config_sha256": str, "rounds": int, "final": dict, "cross_client": dict,
    "by_dataset": dict, "protocol": dict, "base": dict, "adapter_sha256": dict, "patients": dict, "crop": list, "notes": list, "faults": dict, "actors": list,
    "numerics": dict, "versions": dict, "code": dict, "bytes_up": NUMBER, "bytes_down": NUMBER, "wall_seconds": NUMBER,
    "virtual_seconds": NUMBER, "epsilon": NUMBER}  # fmt: skip
"""The keys of a summary that reports read, and their kinds; all but the needed ones may be null or absent."""


def _check_summary(summary: Mapping[str, Any], path: Path) -> None:
    """Raise InputError unless a report can be made of it: summaries come from other machines, and people edit them."""
    for key, kind in {**NEEDED, **KNOWN}.items():
        value = summary.get(key)
        if value is None and key in NEEDED:
            raise InputError(f"{path}: expected the keys of a run's summary, {key!r} is not there")
        if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
            name = "a number" if kind is NUMBER else {str: "a text", int: "a whole number", list: "a list", dict: "an object"}[kind]
            raise InputError(f"{path}: {key}: expected {name}, found {str(value)[:40]!r}")
    if summary["task"] not in PRIMARY:
        raise InputError(f"{path}: task: expected {' or '.join(PRIMARY)}, found {summary['task']!r}")
    if not set(data := summary.get("data_sha256") or "") <= set("0123456789abcdef"):  # tables' files are named after it
        raise InputError(f"{path}: data_sha256: expected hexadecimal digits, found {data[:40]!r}")
    if not all(isinstance(client, str) for client in summary["clients"]):
        raise InputError(f"{path}: clients: expected their ids, found {str(summary['clients'])[:40]}")
    if summary["status"] == "finished" and not summary["clients"]:
        raise InputError(f"{path}: clients: expected at least one of a finished run")
    for metric, block in (summary.get("final") or {}).items():
        if not isinstance(block, dict) or not all(isinstance(block.get(key), NUMBER | None) for key in ("mean", "pooled", "frozen", "n")):
            raise InputError(f"{path}: final.{metric}: expected an object with mean, pooled, frozen and n, found {str(block)[:40]!r}")
        if not _numbers_of(block.get("per_client") or {}, dict):
            raise InputError(f"{path}: final.{metric}.per_client: expected a number a client, found {str(block['per_client'])[:40]!r}")
        if (ends := block.get("ci95")) is not None and not (_numbers_of(ends, list) and len(ends) == 2):
            raise InputError(f"{path}: final.{metric}.ci95: expected two numbers, found {str(ends)[:40]!r}")
    if not isinstance((summary.get("base") or {}).get("has_seen"), list | None):
        raise InputError(f"{path}: base.has_seen: expected a list of patients, found {str(summary['base']['has_seen'])[:40]!r}")
    if (matrix := summary.get("cross_client")) and not all(isinstance(matrix.get(key), list) for key in ("rows", "columns", "values")):
        raise InputError(f"{path}: cross_client: expected lists of rows, columns and values, found {str(matrix)[:40]!r}")
    for key in ("patients", "by_dataset", "faults"):
        for name, block in (summary.get(key) or {}).items():
            if not isinstance(block, dict) or (key == "by_dataset" and not all(isinstance(inner, dict) for inner in block.values())):
                raise InputError(f"{path}: {key}.{name}: expected an object, found {str(block)[:40]!r}")
            if key == "patients" and not _numbers_of(block, dict):
                raise InputError(f"{path}: patients.{name}: expected a number a part, found {str(block)[:40]!r}")
    if not all(isinstance(note, str) and note for note in summary.get("notes") or ()):
        raise InputError(f"{path}: notes: expected sentences, found {str(summary['notes'])[:40]!r}")
    if not all(isinstance(actor, dict) for actor in summary.get("actors") or ()):
        raise InputError(f"{path}: actors: expected a list of objects, found {str(summary['actors'])[:40]!r}")


def _numbers_of(found: Any, kind: type) -> bool:
    """Whether it is a list or an object of numbers, some of which may be missing."""
    return isinstance(found, kind) and all(isinstance(value, NUMBER | None) for value in (found.values() if kind is dict else found))


def _check_config(config: Mapping[str, Any], path: Path) -> None:
    """Raise InputError unless it says of what data the run was, as far as reports read it."""
    if not isinstance(strategy := config.get("strategy") or {}, dict):
        raise InputError(f"{path}: strategy: expected the section of a run's configuration, found {str(strategy)[:40]!r}")
    data = config.get("data") or {}
    sources = data.get("dataset") if isinstance(data, dict) else None
    if not isinstance(data, dict) or not (
        isinstance(sources, str | None) or (isinstance(sources, list) and all(isinstance(s, dict) and "dataset" in s for s in sources))
    ):
        raise InputError(f"{path}: data: expected the section of a run's configuration, found {str(config['data'])[:40]!r}")


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: not there (expected the run's resolved configuration)") from None
    except (OSError, *NOT_YAML) as error:
        raise InputError(f"{path}: cannot be read: {one_line(error)}") from None
    if not isinstance(value, dict):
        raise InputError(f"{path}: expected a mapping of sections, found {type(value).__name__}")
    return value


def _read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file; a last line that was cut off (the process died while writing) is left out."""
    if not path.is_file():
        return []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None
    records = []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            if number < len(lines):
                raise InputError(f"{path}: line {number} is not JSON") from None
            continue
        if not isinstance(record, dict) or not isinstance(record.get("round"), int):
            raise InputError(f"{path}: line {number}: expected an object with a whole number 'round'")
        records.append(record)
    return records
