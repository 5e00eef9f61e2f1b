"""The marks that raylora is held to beside the other systems, and whether the stored results reach them.

A mark that was beaten by far is raised, so that what was won is not lost unseen. Those that are not reached stay, with what binds in docs/speed.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.peers.names import NAMES
from raylora.report.table import Table, decimal, words

WORDS = {
    "seconds_per_round": "rounds a second",
    "seconds_in_all": "all rounds and the start",
    "seconds_to_first_round": "first round",
    "peak_pss_mb": "peak PSS",
}
SPEED = ("seconds_per_round", "seconds_in_all")


@dataclass(frozen=True)
class Mark:
    """raylora's figure over another's: of speeds at least `bound`, of times to the first round and of memory at most."""

    workload: str
    clients: int
    key: str
    other: str
    bound: float
    ours: str = "raylora"

    def measured(self, several: Sequence[dict[str, Any]]) -> float | None:
        """None where one of the two was not measured."""
        systems = {(found["workload"], found["clients"]): found["systems"] for found in several}
        ours = systems.get((self.workload, self.clients), {}).get(self.ours, {}).get(self.key)
        its = systems.get((self.workload, self.clients), {}).get(self.other, {}).get(self.key)
        if ours is None or its is None:
            return None
        return float(its / ours if self.key in SPEED else ours / its)

    def reached(self, value: float) -> bool:
        """To the two digits that are shown."""
        return round(value, 2) >= self.bound if self.key in SPEED else round(value, 2) <= self.bound


ALONE = "raylora_unstacked"
MARKS = (
    Mark("W1", 64, "seconds_per_round", "bare", 1.35),
    Mark("W1", 64, "seconds_per_round", "flower", 1.8),
    Mark("W1", 64, "seconds_per_round", "bare", 0.9, ours=ALONE),
    Mark("W1", 8, "seconds_per_round", "bare", 0.9, ours=ALONE),
    Mark("W1", 256, "seconds_per_round", "flower", 2.25),
    Mark("W1", 256, "seconds_per_round", "bare", 0.9, ours=ALONE),
    Mark("W1s", 64, "seconds_per_round", "bare", 1.8),
    Mark("W1s", 64, "seconds_per_round", "flower", 2.5),
    Mark("W1s", 64, "seconds_per_round", "bare", 0.9, ours=ALONE),
    Mark("W2", 8, "seconds_per_round", "bare", 0.95),
    Mark("W3", 8, "seconds_per_round", "bare", 4.0),
    Mark("W3", 8, "seconds_per_round", "flower", 4.5),
    Mark("W3", 8, "seconds_in_all", "bare", 2.5),
    Mark("W1", 8, "seconds_to_first_round", "flower", 0.6),
    Mark("W1", 64, "seconds_to_first_round", "flower", 0.6),
    Mark("W1", 256, "seconds_to_first_round", "flower", 0.6),
    Mark("W1s", 64, "seconds_to_first_round", "flower", 0.6),
    Mark("W2", 8, "seconds_to_first_round", "flower", 0.6),
    Mark("W3", 8, "seconds_to_first_round", "flower", 0.6),
    Mark("W1", 64, "peak_pss_mb", "flower", 0.9),
    Mark("W1", 64, "peak_pss_mb", "flower", 0.75, ours=ALONE),
)


def table(several: Sequence[dict[str, Any]]) -> Table:
    """Every mark that has its figures."""
    rows = []
    for mark in MARKS:
        value = mark.measured(several)
        if value is None:
            continue
        bound = f"{'at least' if mark.key in SPEED else 'at most'} {mark.bound:.2f}"
        what = WORDS[mark.key] + (", one client at a time" if mark.ours == ALONE else "")
        rows.append((f"{mark.workload}, {mark.clients}", what, NAMES[mark.other], bound, value, "yes" if mark.reached(value) else "no"))
    columns = (words("Workload, clients"), words("raylora's"), words("To"), words("Mark"), decimal("Measured", 2), words("Reached"))
    return Table("Marks", columns, tuple(rows))
