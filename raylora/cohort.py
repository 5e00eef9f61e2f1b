"""Who has which patients in one experiment: as its configuration divides them, or as a protocol that others can join does."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from raylora.config import Clients, Config, Data
from raylora.core.errors import InputError
from raylora.data import duplicates, obtain, partition, protocol
from raylora.data.groups import disease_label
from raylora.data.manifest import Row
from raylora.data.partition import PARTS, Split
from raylora.data.protocol import Protocol
from raylora.models.seen import Seen


class Patient(NamedTuple):
    """What a run tells of a study; where its arrays lie and how they were made stays in the manifest."""

    dataset: str
    split: str  # the data set's own
    vendor: str
    centre: str
    group: str
    crop: str
    source_sha256: str

    @staticmethod
    def of(row: Row) -> Patient:
        return Patient(*(getattr(row, name) for name in Patient._fields))


@dataclass(frozen=True, kw_only=True)
class Cohort:
    """The patients of an experiment."""

    rows: Mapping[str, Patient]  # the cases of the task, by study id
    splits: Mapping[str, Split]  # client -> its patients; those of a held-out client are all test patients
    held_out: tuple[str, ...]  # clients that never train
    left_out: Mapping[str, str]  # study id -> why it is in no client
    cut: tuple[str, ...]  # the clients' studies that have more slices than `data.size`: the outer ones are never looked at
    pairs: tuple[tuple[str, str], ...]  # studies of two data sets that show the same patient
    twins: tuple[tuple[str, Patient], ...]  # the same, of which one is a case and the other (without a label, say) is none
    diseased: Mapping[str, int] | None  # study id -> 0 or 1, for disease
    protocol: Protocol | None

    @property
    def datasets(self) -> dict[str, str]:
        """Study id -> data set."""
        return {id: row.dataset for id, row in self.rows.items()}

    @property
    def crops(self) -> list[str]:
        """How the crops of the cases were found: centre, motion or oracle."""
        return sorted({row.crop for row in self.rows.values()})

    @property
    def several(self) -> bool:
        """Whether the patients come from more than one data set."""
        return len(set(self.datasets.values())) > 1

    def seen_by(self, seen: Seen) -> list[str]:
        """The validation, rating and test cases that base weights have seen, themselves or as their duplicate in another data set."""
        known = {id for id, row in self.rows.items() if seen.covers(row.dataset, row.split, row.source_sha256)}
        known |= {id for id, other in self.twins if seen.covers(other.dataset, other.split, other.source_sha256)}
        known |= {id for pair in self.pairs if known & set(pair) for id in pair}
        return [id for id in self.scored if id in known]

    @property
    def scored(self) -> list[str]:
        """Every case that is not trained on."""
        return [id for split in self.splits.values() for id in (*split.validation, *split.rating, *split.test)]

    def notes(self) -> list[str]:
        """What a user should know of the patients before anything is trained."""
        found = [f"{_studies(count)} left out: {why}" for why, count in sorted(Counter(self.left_out.values()).items())]
        if self.cut:
            more = "has" if len(self.cut) == 1 else "have"
            missed = ", and what they show of a heart counts as missed" if self.diseased is None else ""
            found.append(f"{_studies(len(self.cut))} {more} more slices than data.size: the outer ones are left out{missed}")
        training = [client for client in self.splits if client not in self.held_out]
        if blind := [client for client in training if not self.splits[client].validation]:
            means = "means over the other clients" if len(blind) < len(training) else "not there"
            found.append(f"no validation patient: {', '.join(blind)}; scores of validation are {means} (data.fractions)")
        return found

    def patients(self) -> list[dict[str, object]]:
        """One object a patient for the run's record: who it is, at which client, for what."""
        found: list[dict[str, object]] = []
        for client, split in self.splits.items():
            for part in PARTS:
                for id in getattr(split, part):
                    row = self.rows[id]
                    about = {"dataset": row.dataset, "vendor": row.vendor, "centre": row.centre, "group": row.group, "crop": row.crop}
                    found.append({"id": id, "client": client, "part": part, **about, "sha256": row.source_sha256})
        return sorted(found, key=lambda item: str(item["id"]))


def _studies(count: int) -> str:
    return "1 study" if count == 1 else f"{count} studies"


def gather(config: Config, folders: Sequence[Path]) -> Cohort:
    """Divide the prepared studies of the folders. Raises InputError if none is a case, and for a client without the cases it needs."""
    every = obtain.studies(folders)
    rows, left_out = partition.eligible(every, config.task)
    if not rows:
        raise InputError(f"data: none of {len(every)} studies is a case for {config.task}: {partition.commonest(left_out)}")
    cases, about = {row.id for row in rows}, {row.id: row for row in every}
    alike = [(first, second) for first, second, _ in duplicates.pairs(every)] if len(folders) > 1 else []
    pairs = tuple(pair for pair in alike if cases.issuperset(pair))
    twins = tuple((a, Patient.of(about[b])) for pair in alike for a, b in (pair, pair[::-1]) if a in cases and b not in cases)
    rules = None if config.data.protocol is None else protocol.load(config.data.protocol)
    held_out: Mapping[str, Split] = {}
    if rules is None:
        splits, held_out, more = _configured(config, rows, pairs)
    else:
        _refuse_other_rules(config.data, config.clients)
        splits, more = rules.divide(rows, config.task, pairs)
    labels = {row.id: disease_label(row.dataset, row.group) for row in rows}
    diseased = {id: label for id, label in labels.items() if label is not None} if config.task == "disease" else None
    partition.check_clients(splits, diseased)
    everyone = {**splits, **held_out}
    used = {id for split in everyone.values() for part in PARTS for id in getattr(split, part)}
    return Cohort(
        rows={row.id: Patient.of(row) for row in rows},
        splits=everyone,
        held_out=tuple(held_out),
        left_out={**left_out, **more, **{id: why for split in splits.values() for id, why in split.left_out.items()}},
        cut=tuple(row.id for row in rows if row.id in used and row.geometry.shape[2] > config.data.size[2]),
        pairs=pairs,
        twins=twins,
        diseased=diseased,
        protocol=rules,
    )


def _configured(
    config: Config, rows: Sequence[Row], pairs: Sequence[tuple[str, str]]
) -> tuple[dict[str, Split], dict[str, Split], Mapping[str, str]]:
    """(the clients that train, those that are held out, who is left out) by `clients` and `data.split`."""
    if config.clients.by != "dirichlet":
        config.clients.require_defaults("clients", ("alpha",), f"it is for clients.by: dirichlet, not for {config.clients.by}")
    seen, unseen, left_out = partition.set_apart(rows, config.clients.unseen, pairs)
    assigned = partition.assign_clients(
        seen,
        by=config.clients.by,
        count=config.clients.count,
        alpha=config.clients.alpha,
        sizes=config.clients.sizes,
        seed=config.data.split_seed,
        held_out=config.clients.held_out,
        pairs=pairs,
    )
    by_id = {row.id: row for row in rows}
    divide = partition.split_official if config.data.split == "official" else partition.split_client
    splits = {
        client: divide([by_id[i] for i in ids], config.data.split_seed, config.data.fractions, pairs)
        for client, ids in sorted(assigned.clients.items())
    }
    strangers = sorted({**assigned.held_out, **unseen}.items())
    held_out = {client: Split(train=(), validation=(), rating=(), test=tuple(ids)) for client, ids in strangers}
    return splits, held_out, {**assigned.left_out, **left_out}


def _refuse_other_rules(data: Data, clients: Clients) -> None:
    """A protocol fixes clients and split: what would change them is refused rather than ignored. Raises InputError."""
    names = {"clients": ("by", "count", "alpha", "sizes", "held_out", "unseen"), "data": ("split", "split_seed", "fractions")}
    for section, given in (("clients", clients), ("data", data)):
        given.require_defaults(section, names[section], f"data.protocol {data.protocol} fixes it")
