"""What a sweep remembers: lines of JSON, only ever appended, from which everything is made again after any interruption."""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from raylora.core.errors import InputError, RunError

Line = Mapping[str, Any]
"""One of
  {"kind": "sweep", "sha256"}                                          the first line
  {"kind": "trial", "number", "values", "seed", "config_sha256"}       it was chosen
  {"kind": "report", "number", "round", "objective"}                   after so many rounds; "last": true after all of them
  {"kind": "pruned", "number", "round"}                                it is to end after that round
  {"kind": "end", "number", "status", "objective"}                     finished | pruned | failed
  {"kind": "mlflow", "parent", "trials"}                               run ids, of trials those that are new
and, of a stress campaign,
  {"kind": "end", "number", "status", "why"}                           refused
  {"kind": "tracked", "number"}                                        it is in MLflow
"""


def plain(value: Any) -> Any:
    """A value of a configuration as JSON takes it: infinity is the word that configurations read back."""
    if isinstance(value, float) and math.isinf(value):
        return "inf" if value > 0 else "-inf"
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


class Ledger:
    """The ledger of one sweep folder, held by one process at a time."""

    def __init__(self, folder: Path, sha256: str) -> None:
        """Open or begin it. A last line that was torn by a kill is dropped. Raises InputError for the ledger of another sweep, or one in use."""
        self.path = folder / "ledger.jsonl"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = open(self.path, "a+b")
        except OSError as error:
            raise InputError(f"--output {folder}: cannot be written: {error.strerror}") from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise InputError(f"--output {folder}: another process is at work on this sweep") from None
        except OSError:  # a disk without locks
            pass
        self.lines: list[Line] = []
        self._last: dict[str, dict[int, Line]] = defaultdict(dict)  # kind -> trial -> its last line
        self._reports: dict[int, list[tuple[int, float]]] = defaultdict(list)
        for line in self._read():
            self._take(line)
        if not self.lines:
            self.append({"kind": "sweep", "sha256": sha256})
        elif self.lines[0].get("sha256") != sha256:
            self._file.close()
            raise InputError(
                f"--output {folder}: holds another sweep (its base, space, seeds, objective, search or scheduler differ); name another folder"
            )

    def _read(self) -> list[Line]:
        self._file.seek(0)
        lines: list[Line] = []
        good = 0
        for number, raw in enumerate(self._file, 1):
            try:
                line = json.loads(raw) if raw.endswith(b"\n") else None
            except ValueError:
                line = None
            if not isinstance(line, dict) or "kind" not in line:
                rest = self._file.read()
                if rest:
                    self._file.close()
                    raise InputError(f"{self.path}: line {number} is not a line of a ledger; move the folder away and start anew")
                self._file.truncate(good)
                break
            lines.append(line)
            good += len(raw)
        return lines

    def append(self, line: Line) -> None:
        """Write a line; it is on the disk when this returns. Raises RunError."""
        try:
            self._file.write(json.dumps(plain(line), allow_nan=False).encode() + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise RunError(f"{self.path}: cannot be written: {error.strerror}; the same command goes on from here") from None
        self._take(line)

    def _take(self, line: Line) -> None:
        self.lines.append(line)
        if "number" in line:
            self._last[line["kind"]][line["number"]] = line
        if line["kind"] == "report":
            self._reports[line["number"]].append((line["round"], line["objective"]))

    def close(self) -> None:
        with contextlib.suppress(OSError):  # what could not be written was said by `append`
            self._file.close()

    # ---- what the lines say

    def of(self, kind: str) -> Mapping[int, Line]:
        """The last line of a kind for each trial, as it stands."""
        return MappingProxyType(self._last[kind])

    def ended(self, number: int) -> bool:
        """Whether a trial is over. One that was refused is not: a larger machine, or data that are there by now, may allow it."""
        return self._last["end"].get(number, {"status": "refused"})["status"] != "refused"

    def reports(self, number: int) -> Sequence[tuple[int, float]]:
        """(rounds done, objective) of one trial, in order."""
        return tuple(self._reports[number])


def pruned_after(path: Path, number: int) -> int | None:
    """After which round a trial is to end early, by the ledger file that another process holds; None: nobody has decided so."""
    found = None
    for raw in path.read_bytes().splitlines():
        with contextlib.suppress(ValueError):  # the last line may be half written
            line = json.loads(raw)
            if line.get("kind") == "pruned" and line.get("number") == number:
                found = int(line["round"])
    return found
