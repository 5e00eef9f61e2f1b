"""How patients become clients: one rule for each value of ``clients.by``."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import Protocol

import numpy as np

from raylora.core.errors import InputError
from raylora.core.seeds import generator
from raylora.data.groups import common_group

REDRAWS = 200  # of Dirichlet shares, until no client is too small


class Patient(Protocol):
    """What is asked of a row (`manifest.Row` has it)."""

    id: str
    dataset: str
    split: str
    vendor: str
    centre: str
    group: str
    labelled: bool


Unit = tuple[Patient, ...]
"""One patient: a row, or the rows of a duplicate pair."""

Named = tuple[list[tuple[Unit, str]], dict[str, str]]
"""(unit, client id) for those that have a place, and {study id: why not}."""


def stratum_of(unit: Unit) -> tuple[str, str]:
    return (unit[0].dataset, unit[0].group)


def order(seed: int | str, id: str) -> str:
    """The place of a study among others: SHA-256 of seed and id, so that more studies do not move the old ones about."""
    return hashlib.sha256(f"{seed}/{id}".encode()).hexdigest()


def _by_attribute(what: str, name_of: Callable[[Patient, bool], str]) -> Callable[..., Named]:
    def rule(units: Sequence[Unit], count: int, concentration: float, seed: int, minimum: int) -> Named:
        several = len({row.dataset for unit in units for row in unit}) > 1
        named, left_out = [], {}
        for unit in units:
            names = [name for row in unit if (name := name_of(row, several))]
            if names:
                named.append((unit, re.sub(r"[^A-Za-z0-9_-]+", "-", names[0])))
            else:
                left_out |= {row.id: f"no {what} is known" for row in unit}
        return named, left_out

    return rule


def _pathology(row: Patient, several: bool) -> str:
    """The data set's own word; over several data sets the common one, or one that names the set."""
    if not row.group or not several:
        return row.group
    return common_group(row.dataset, row.group) or f"{row.dataset}-{row.group}"


def _iid(units: Sequence[Unit], count: int, concentration: float, seed: int, minimum: int) -> Named:
    """Dealt out like cards, group after group: sizes differ by one at most. With a finite concentration the clients' shares of the
    patients are drawn from Dir(concentration), and each card goes to the client that is furthest behind its share."""
    dealt = sorted(units, key=lambda unit: (*stratum_of(unit), order(seed, unit[0].id)))
    if math.isinf(concentration):
        return [(unit, _numbered(i % count, count)) for i, unit in enumerate(dealt)], {}
    rng = generator(seed, "client sizes")
    for _ in range(REDRAWS):
        shares = rng.dirichlet(np.full(count, concentration))
        sizes, named = np.zeros(count), []
        for i, unit in enumerate(dealt, 1):
            client = int(np.argmax(shares * i - sizes))
            sizes[client] += 1
            named.append((unit, _numbered(client, count)))
        if sizes.min() >= minimum:
            return named, {}
    raise InputError(
        f"clients.sizes: with {concentration:g}, {count} clients and {len(units)} patients some client has fewer than {minimum}"
    )


def _dirichlet(units: Sequence[Unit], count: int, alpha: float, seed: int, minimum: int) -> Named:
    left_out = {row.id: "no group is known" for unit in units if not unit[0].group for row in unit}
    known = sorted((unit for unit in units if unit[0].group), key=lambda unit: (_pathology(unit[0], True), order(seed, unit[0].id)))
    if not known:
        return [], left_out
    strata = [list(stratum) for _, stratum in groupby(known, key=lambda unit: _pathology(unit[0], True))]
    rng = generator(seed, "dirichlet clients")
    for _ in range(REDRAWS):
        named = []
        for stratum in strata:
            edges = np.round(np.cumsum(rng.dirichlet(np.full(count, alpha))) * len(stratum)).astype(int)
            named += [(unit, _numbered(int(np.searchsorted(edges, i, side="right")), count)) for i, unit in enumerate(stratum)]
        sizes = [sum(name == _numbered(k, count) for _, name in named) for k in range(count)]
        if min(sizes) >= minimum:
            return named, left_out
    raise InputError(f"clients.alpha: with {alpha:g}, {count} clients and {len(known)} patients some client has fewer than {minimum}")


def _numbered(index: int, count: int) -> str:
    return f"client-{index + 1:0{len(str(count))}d}"


RULES: Mapping[str, Callable[..., Named]] = {
    "vendor": _by_attribute("vendor", lambda row, several: row.vendor),
    "centre": _by_attribute("centre", lambda row, several: row.centre),
    "pathology": _by_attribute("group", _pathology),
    "iid": _iid,
    "dirichlet": _dirichlet,
}
