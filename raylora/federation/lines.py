"""A round as the lines of `rounds.jsonl`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from raylora.federation.rounds import Progress, RoundReport

Line = Mapping[str, Any]


def round_lines(
    report: RoundReport, validation: Mapping[str, Mapping[str, float]], progress: Progress, seconds: float, *, clock_runs: bool
) -> list[Line]:
    """One object a client, then one for the round. `virtual_seconds` of a client is from being asked to having answered, of the round the
    time on the clock at its end; what did not happen (nobody dropped out, ...) has no key."""
    lines: list[Line] = []
    for c in report.clients:
        about: dict[str, Any] = {"kind": "client", "round": report.round, "client": c.client, "seconds": c.seconds}
        about |= {"bytes_up": c.bytes_up, "bytes_down": c.bytes_down, **c.metrics, "validation": validation.get(c.client, {})}
        about |= {"virtual_seconds": c.virtual_s} if clock_runs else {}
        about |= {"staleness": c.staleness} if c.staleness else {}
        lines.append(about)
    names = sorted({name for scores in validation.values() for name in scores})
    means = {name: float(np.mean([scores[name] for scores in validation.values() if name in scores])) for name in names}
    total: dict[str, Any] = {"kind": "round", "round": report.round, "seconds": seconds}
    total |= {"bytes_up": sum(c.bytes_up for c in report.clients), "bytes_down": report.bytes_down, "validation": means}
    weights = progress.server.values.get("weights")
    total |= {"weights": dict(weights)} if isinstance(weights, Mapping) else {}
    total |= {"virtual_seconds": progress.virtual_s} if clock_runs else {}
    total |= {name: list(found) for name, found in (("dropped", report.dropped), ("unused", report.unused)) if found}
    return [*lines, total]
