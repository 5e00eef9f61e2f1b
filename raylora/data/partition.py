"""Who has which patients, and which of them are for training. Pure functions of ids and what the manifest says of them.

The unit is a patient: the two members of a duplicate pair (`duplicates.pairs`) are one unit. Nothing depends on the order of the rows.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from raylora.core.errors import InputError
from raylora.data.client_rules import RULES, Patient, Unit, order, stratum_of
from raylora.data.groups import disease_label

PARTS = ("train", "validation", "rating", "test")


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """Every study is in one client, or left out with a reason."""

    clients: Mapping[str, tuple[str, ...]]  # client id -> study ids, both sorted
    held_out: Mapping[str, tuple[str, ...]]  # clients that never train
    left_out: Mapping[str, str] = field(default_factory=dict)  # study id -> why


@dataclass(frozen=True, kw_only=True)
class Split:
    """A client's patients, disjoint; ids sorted. Rating cases serve Rate-My-LoRA's scores and nothing else."""

    train: tuple[str, ...]
    validation: tuple[str, ...]
    rating: tuple[str, ...]
    test: tuple[str, ...]
    left_out: Mapping[str, str] = field(default_factory=dict)  # study id -> why


def eligible(rows: Sequence[Patient], task: str) -> tuple[list[Patient], dict[str, str]]:
    """The rows that can be cases of ``task`` (segmentation | disease), and for the others why not."""
    kept, left_out = [], {}
    for row in rows:
        if not row.labelled:
            left_out[row.id] = "unlabelled: for masked auto-encoding only"
        elif task == "disease" and disease_label(row.dataset, row.group) is None:
            left_out[row.id] = f"group {row.group!r} of {row.dataset} says neither normal nor diseased"
        else:
            kept.append(row)
    return kept, left_out


def commonest(left_out: Mapping[str, str]) -> str:
    """The reason why most studies were left out."""
    return Counter(left_out.values()).most_common(1)[0][0]


def assign_clients(
    rows: Sequence[Patient],
    *,
    by: str,
    count: int | None = None,
    alpha: float = 0.5,
    sizes: float = math.inf,
    seed: int = 0,
    held_out: Sequence[str] = (),
    pairs: Iterable[tuple[str, str]] = (),
    minimum: int = 2,
) -> Assignment:
    """Divide studies among clients: by vendor, centre or pathology as the data say, or among ``count`` clients iid or dirichlet.

    dirichlet: each group's shares are drawn from Dir(alpha), again until every client has ``minimum`` patients; iid: so are the clients'
    shares of the patients from Dir(sizes), unless it is infinite. ``held_out`` names clients that never train.

    Raises InputError: unknown ``by``, no count, too few patients, nobody who has a client, an unknown client held out.
    """
    if by not in RULES:
        raise InputError(f"clients.by: expected one of {', '.join(RULES)}, found {by!r}")
    units = _units(rows, pairs)
    if by in ("iid", "dirichlet") and (count is None or not 1 <= count <= len(units)):
        raise InputError(f"clients.count: expected 1 to {len(units)} (patients) for clients.by: {by}, found {count}")
    if by != "iid" and not math.isinf(sizes):
        raise InputError(f"clients.sizes: expected clients.by: iid, found {by} (whose sizes are the data's)")
    names, left_out = RULES[by](units, count or 0, sizes if by == "iid" else alpha, seed, minimum)
    clients: dict[str, list[str]] = {}
    for unit, name in names:
        clients.setdefault(name, []).extend(row.id for row in unit)
    if not clients:
        raise InputError(f"clients.by: {by}: none of {len(rows)} studies has a client: {commonest(left_out)}")
    unknown = [name for name in held_out if name not in clients]
    if unknown:
        raise InputError(f"clients.held_out: no client {unknown[0]!r}, expected some of {', '.join(sorted(clients))}")
    ordered = {name: tuple(sorted(clients[name])) for name in sorted(clients)}
    return Assignment(
        clients={name: ids for name, ids in ordered.items() if name not in held_out},
        held_out={name: ids for name, ids in ordered.items() if name in held_out},
        left_out=left_out,
    )


def set_apart(
    rows: Sequence[Patient], datasets: Sequence[str], pairs: Iterable[tuple[str, str]] = ()
) -> tuple[list[Patient], dict[str, tuple[str, ...]], dict[str, str]]:
    """(the rows of the other data sets, {held-out client "<data set>-<vendor>": study ids} of ``datasets``, who is left out).

    A patient of ``datasets`` who is also in another data set would not be unseen and is left out. Raises InputError for a data set
    that is not there, or if nothing else is.
    """
    there = {row.dataset for row in rows}
    for name in datasets:
        if name not in there:
            raise InputError(f"clients.unseen: no studies of {name}, expected some of {', '.join(sorted(there))}")
    kept = [row for row in rows if row.dataset not in datasets]
    if not kept:
        raise InputError(f"clients.unseen: {', '.join(datasets)} are all data sets there are, expected one that trains")
    left_out: dict[str, str] = {}
    known = {row.id for row in kept}
    for first, second in pairs:
        if (first in known) != (second in known):
            left_out[second if first in known else first] = "unseen by its data set, but a duplicate of a study that may train"
    clients: dict[str, list[str]] = {}
    for row in rows:
        if row.dataset in datasets and row.id not in left_out:
            clients.setdefault(f"{row.dataset}-{row.vendor or 'unknown'}", []).append(row.id)
    return kept, {name: tuple(sorted(ids)) for name, ids in sorted(clients.items())}, left_out


def split_client(
    rows: Sequence[Patient], split_seed: int | str, fractions: Sequence[float] = (0.6, 0.1, 0.1, 0.2), pairs: Iterable[tuple[str, str]] = ()
) -> Split:
    """One client's patients, stratified by data set and group: in every stratum each part is within one of its exact share.

    ``fractions`` are those of `PARTS`, in any scale. Within a stratum patients come in the order of SHA-256 of seed and id.
    """
    return _split(_deal(_units(rows, pairs), split_seed, dict(zip(PARTS, fractions, strict=True))))


def split_official(
    rows: Sequence[Patient], split_seed: int | str, fractions: Sequence[float] = (0.6, 0.1, 0.1, 0.2), pairs: Iterable[tuple[str, str]] = ()
) -> Split:
    """The data sets' own split. Its validation set gives validation and rating cases; where it has none, its training set does.

    A duplicate pair that the data sets put on different sides: its member outside the test set is left out.
    """
    shares = dict(zip(PARTS, fractions, strict=True))
    parts: dict[str, list[Patient]] = {name: [] for name in PARTS}
    left_out: dict[str, str] = {}
    for _, stratum in groupby(_units(rows, pairs), key=lambda unit: unit[0].dataset):
        sides: dict[str, list[Unit]] = {"training": [], "validation": [], "testing": []}
        for unit in stratum:
            side = max((row.split for row in unit), key=lambda split: list(sides).index(split))
            sides[side].append(tuple(row for row in unit if row.split == side))
            left_out |= {row.id: f"its duplicate is in the {side} set" for row in unit if row.split != side}
        held = ("validation", "rating") if sides["validation"] else ()
        chosen = {
            "training": {name: shares[name] for name in ("train", "validation", "rating") if name not in held},
            "validation": {name: shares[name] for name in held},
            "testing": {"test": 1.0},
        }
        for side, units in sides.items():
            for name, dealt in _deal(units, split_seed, chosen[side]).items():
                parts[name] += dealt
    return _split(parts, left_out)


def check_clients(splits: Mapping[str, Split], labels: Mapping[str, int] | None = None, needs: Sequence[str] = ("train", "test")) -> None:
    """Refuse, by name, a client without cases in a part of ``needs``; with ``labels`` (id -> class) one that trains on a single class."""
    if not splits:
        raise InputError("clients.held_out, clients.unseen: expected at least one client that trains, found all of them held out")
    for client, split in splits.items():
        for part in needs:
            if not getattr(split, part):
                sizes = ", ".join(f"{name} {len(getattr(split, name))}" for name in PARTS)
                raise InputError(f"client {client}: no {part} cases (it has {sizes}; see data.fractions)")
        if labels is not None:
            classes = {labels[id] for id in split.train}
            if len(classes) < 2:
                found = f"all {len(split.train)} are of class {classes.pop()}"
                raise InputError(f"client {client}: expected training cases of both classes, {found}")


def _units(rows: Sequence[Patient], pairs: Iterable[tuple[str, str]]) -> list[Unit]:
    """Patients: rows joined by duplicate pairs. Sorted by data set, group and id of their first row."""
    by_id = {row.id: row for row in rows}
    if len(by_id) != len(rows):
        raise InputError("two studies with one id among those to be divided")
    joined: dict[str, set[str]] = {id: {id} for id in by_id}
    for first, second, *_ in pairs:
        if first in joined and second in joined and joined[first] is not joined[second]:
            joined[first] |= joined[second]
            for id in joined[second]:
                joined[id] = joined[first]
    members = {tuple(sorted(ids, key=lambda id: (by_id[id].dataset, id))) for ids in joined.values()}
    return sorted((tuple(by_id[id] for id in ids) for ids in members), key=lambda unit: (*stratum_of(unit), unit[0].id))


def _split(parts: Mapping[str, Sequence[Patient]], left_out: Mapping[str, str] | None = None) -> Split:
    return Split(**{name: tuple(sorted(row.id for row in parts[name])) for name in PARTS}, left_out=left_out or {})


def _deal(units: Sequence[Unit], seed: int | str, shares: Mapping[str, float]) -> dict[str, list[Patient]]:
    """Stratum after stratum: the floors of the exact shares, and what is left to the parts that are furthest behind over all strata."""
    dealt: dict[str, list[Patient]] = {name: [] for name in shares}
    total = sum(shares.values())
    behind = dict.fromkeys(shares, 0.0)
    for _, stratum in groupby(sorted(units, key=lambda unit: (*stratum_of(unit), unit[0].id)), key=stratum_of):
        queue = sorted(stratum, key=lambda unit: order(seed, unit[0].id))
        exact = {name: len(queue) * share / total for name, share in shares.items()}
        counts = {name: int(value + 1e-9) for name, value in exact.items()}
        open_parts = [name for name in shares if exact[name] - counts[name] > 1e-9]
        behind = {name: behind[name] + exact[name] - counts[name] for name in shares}
        for name in sorted(open_parts, key=lambda name: -behind[name])[: len(queue) - sum(counts.values())]:
            counts[name] += 1
            behind[name] -= 1.0
        for name, number in counts.items():
            dealt[name] += [row for unit in queue[:number] for row in unit]
            queue = queue[number:]
    return dealt
