"""The record of a run: `rounds.jsonl` as it happens, `cases.parquet` at the end, JSON that holds no NaN."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raylora.core.errors import InputError
from raylora.core.files import replacing, without_nan, write_text

PATIENTS = "patients.json"  # in the run's folder: who was in which part, the hashes of data and base weights, and the values and code it began with
CASES = pa.schema(
    [
        ("round", pa.int32()),
        ("split", pa.string()),
        ("model_of", pa.string()),
        ("data_of", pa.string()),
        ("patient", pa.string()),
        ("frame", pa.string()),
        ("structure", pa.string()),
        ("metric", pa.string()),
        ("value", pa.float64()),
    ]
)

PART = re.compile(r"\d{6}(-\d{6})?")  # the name of such a file
BRING = "bring the run's files back, or start a new run"
MERGED = 64  # rounds whose case rows share a file, once they are over: a long run leaves few files


class Record:
    """Appends to a run folder. One writer: the driver."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "rounds.jsonl"
        self.parts = folder / "checkpoints" / "cases"
        self.parts.mkdir(parents=True, exist_ok=True)
        ranges = [_rounds(part) for part in self._parts() if "-" in part.stem]
        for single in self._singles():  # left over where a merge was interrupted
            if any(first <= int(single.stem) <= last for first, last in ranges):
                single.unlink()
        self.rows = self.path.read_bytes().count(b"\n") if self.path.exists() else 0

    def append(self, objects: Iterable[Mapping[str, Any]]) -> None:
        """One line an object, flushed to the disk."""
        lines = [json.dumps(without_nan(item), allow_nan=False) + "\n" for item in objects]
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(lines)
            file.flush()
            os.fsync(file.fileno())
        self.rows += len(lines)

    def rewind(self, rows: int, round: int) -> None:
        """Forget what came after a checkpoint: lines beyond `rows`, case rows of rounds from `round` on."""
        lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True) if self.path.exists() else []
        if len(lines) < rows or any(not line.endswith("\n") for line in lines[:rows]):
            raise InputError(f"{self.path}: has {len(lines)} lines, {rows} were there after round {round}: {BRING}")
        if lines:
            write_text(self.path, "".join(lines[:rows]))
        self.rows = rows
        for part in self._parts():
            first, last = _rounds(part)
            if first < round <= last:
                _write(self.parts / f"{first:06d}-{round - 1:06d}.parquet", [row for row in _read(part) if row[0] < round])
            if last >= round:
                part.unlink()

    def require_cases(self, rounds: Iterable[int]) -> None:
        """Raise InputError if the rows of one of these rounds are not there."""
        held = [_rounds(part) for part in self._parts()]
        for round in rounds:
            if not any(first <= round <= last for first, last in held):
                raise InputError(f"{self.parts}: the scores of round {round + 1} are not there: {BRING}")

    def keep_cases(self, round: int, rows: Sequence[tuple[Any, ...]]) -> None:
        """Validation rows of a round, kept aside until `write_cases`."""
        if len(singles := self._singles()) >= MERGED:
            _write(self.parts / f"{singles[0].stem}-{singles[-1].stem}.parquet", [row for part in singles for row in _read(part)])
            for part in singles:
                part.unlink()
        _write(self.parts / f"{round:06d}.parquet", rows)

    def _parts(self) -> list[Path]:
        return sorted(part for part in self.parts.glob("*.parquet") if PART.fullmatch(part.stem) and part.is_file())

    def _singles(self) -> list[Path]:
        """The files of one round."""
        return [part for part in self._parts() if "-" not in part.stem]

    def write_cases(self, rows: Sequence[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
        """`cases.parquet` of everything kept aside and these last rows; returns all of them."""
        every: list[tuple[Any, ...]] = []
        for part in self._parts():
            every += _read(part)
        every += rows
        _write(self.folder / "cases.parquet", every)
        return every


def lines_before(folder: Path, round: int) -> list[dict[str, Any]]:
    """The record's lines of the rounds before one, for those that go on there. Raises OSError or ValueError if it cannot be read."""
    lines = (json.loads(line) for line in (folder / "rounds.jsonl").read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line["round"] < round]


def _rounds(part: Path) -> tuple[int, int]:
    """The first and the last round of a file."""
    first, _, last = part.stem.partition("-")
    return int(first), int(last or first)


def _read(path: Path) -> list[tuple[Any, ...]]:
    return list(zip(*(column.to_pylist() for column in pq.read_table(path).columns), strict=True))


def _write(path: Path, rows: Sequence[tuple[Any, ...]]) -> None:
    columns = list(zip(*rows, strict=True)) if rows else [()] * len(CASES)
    table = pa.table([pa.array(column, field.type) for column, field in zip(columns, CASES, strict=True)], schema=CASES)
    with replacing(path) as partial, partial.open("wb") as file:
        pq.write_table(table, file)
        file.flush()
        os.fsync(file.fileno())
