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

from raylora.core.errors import InputError
from raylora.metrics.matrix import cross_client, final
from raylora.metrics.rows import CaseRow, CaseTable, case_table


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
        """The rows of cases.parquet, read anew each time (only the tables below are kept); none without the file."""
        path = self.folder / "cases.parquet"
        if not path.is_file():
            return []
        try:
            table = pq.read_table(path, columns=list(CaseRow._fields))
        except (pa.ArrowInvalid, OSError) as error:
            raise InputError(f"{path}: cannot be read: {' '.join(str(error).split())[:200]}") from None
        return [CaseRow(*row) for row in zip(*(table[name].to_pylist() for name in CaseRow._fields), strict=True)]

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
        if data.get("allow_seen"):
            said.append("Some cases were seen when the base weights were made.")
        return said


def read_run(folder: Path, name: str = "") -> Run:
    """Read one run folder, called so (by default by its path). Raises InputError if it is none."""
    folder = Path(folder)
    summary = _read_json(folder / "summary.json", folder)
    config = _read_yaml(folder / "config.yaml")
    if summary.get("status") in ("pruned", "failed"):  # it may have ended before it knew more than its configuration
        strategy = (config.get("strategy") or {}).get("name")
        summary = {"task": config.get("task"), "strategy": strategy, "seed": config.get("seed"), "clients": [], **summary}
    missing = [key for key in ("task", "strategy", "seed", "clients", "status") if summary.get(key) is None]
    if missing:
        raise InputError(f"{folder / 'summary.json'}: expected the keys of a run's summary, {missing[0]!r} is not there")
    rounds = _read_lines(folder / "rounds.jsonl")
    return Run(folder=folder, config=config, summary=summary, rounds=rounds, name=name or str(folder))


def find_runs(folders: Sequence[Path], names: Mapping[Path, str] | None = None) -> list[Run]:
    """The runs of some run folders and of sweep and stress folders (all their trials), in order. Raises InputError for any other folder.

    `names`: what runs are called that are not called by their folder.
    """
    runs = []
    for folder in map(Path, folders):
        if (folder / "sweep.json").is_file() or (folder / "stress.json").is_file():
            trials = sorted(p.parent for p in folder.glob("trials/*/summary.json"))
            if not trials:
                raise InputError(f"{folder}: expected a sweep with trials, found none that wrote a summary.json")
            runs += [read_run(trial) for trial in trials]
        else:
            runs.append(read_run(folder, (names or {}).get(folder, "")))
    return runs


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested sections as dotted keys; lists stay values."""
    keys: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping) and value:
            keys |= flat(value, f"{prefix}{name}.")
        else:
            keys[f"{prefix}{name}"] = value
    return keys


def _read_json(path: Path, folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise InputError(f"{folder}: expected a run folder, found {'a file' if folder.exists() else 'nothing there'}")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{folder}: expected a run folder with summary.json, which is not there (not a run, or not finished)") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None
    if not isinstance(value, dict):
        raise InputError(f"{path}: expected one JSON object, found {type(value).__name__}")
    return value


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: not there (expected the run's resolved configuration)") from None
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"{path}: cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(value, dict):
        raise InputError(f"{path}: expected a mapping of sections, found {type(value).__name__}")
    return value


def _read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file; a last line that was cut off (the process died while writing) is left out."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    records = []
    for number, line in enumerate(lines, 1):
        try:
            records.append(json.loads(line))
        except ValueError:
            if number < len(lines):
                raise InputError(f"{path}: line {number} is not JSON") from None
    return records
