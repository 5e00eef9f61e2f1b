"""What must stand in every table made of a run: the protocol it was made under, and what sets its numbers apart from others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from raylora.report.table import Table


def marks_of(summary: Mapping[str, Any]) -> list[str]:
    """The marks of one run, from its summary."""
    said = []
    protocol = summary.get("protocol")
    if protocol:
        rating = ", rating cases trained on" if protocol.get("rating_to_training") else ""
        said.append(f"Protocol {protocol['name']} (sha256 {protocol['sha256'][:16]}{rating})")
    seen = (summary.get("base") or {}).get("has_seen") or ()
    if seen:
        said.append(f"{len(seen)} scored patients were seen by the base weights")
    if "oracle" in (summary.get("crop") or ()):
        said.append("oracle crop, centred by the label")
    return said


def common_marks(summaries: Sequence[Mapping[str, Any]]) -> list[str]:
    """The marks of several runs; those that not all of them have say so."""
    each = [marks_of(summary) for summary in summaries]
    every = list(dict.fromkeys(mark for marks in each for mark in marks))
    return [mark if all(mark in marks for marks in each) else f"{mark} (not all runs)" for mark in every]


def stamped(table: Table, marks: Sequence[str]) -> Table:
    """The table with the marks on it, in all of its forms."""
    return replace(table, marks="; ".join(marks))
