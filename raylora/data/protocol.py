"""cmr-fed-v1: a comparison that others can join. The file holds the rules, this module carries out those about who has which patients.

The rules are over study ids and what the data sets' own tables say, so that anyone with the data gets the same clients and the same
test patients; one hash over the whole file goes into every table made under it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from types import MappingProxyType
from typing import Any

from raylora.core.errors import InputError
from raylora.data.client_rules import Patient
from raylora.data.manifest import sha256_of
from raylora.data.partition import PARTS, Split, assign_clients, eligible, split_client

FILES: Mapping[str, str] = MappingProxyType({"cmr-fed-v1": "cmr_fed_v1.json"})


@dataclass(frozen=True)
class Protocol:
    """A protocol's file."""

    rules: Mapping[str, Any]

    @property
    def name(self) -> str:
        return self.rules["name"]

    @property
    def sha256(self) -> str:
        """Over the whole file, whatever its layout as text."""
        return sha256_of(self.rules)

    @property
    def stamp(self) -> str:
        """What a table made under the protocol prints."""
        return f"{self.name} (sha256 {self.sha256[:16]})"

    def stamped(self) -> dict[str, str]:
        """For the summary of a run made under the protocol."""
        return {"name": self.name, "sha256": self.sha256}

    def primary(self, task: str) -> str:
        """The metric that ranks methods."""
        return self.rules["tasks"][task]["primary"]

    def divide(self, rows: Sequence[Patient], task: str, pairs: Iterable[tuple[str, str]] = ()) -> tuple[dict[str, Split], dict[str, str]]:
        """({client: its patients}, {study id: why it is left out}) of the data sets' studies.

        Raises InputError for a task or a data set that the protocol does not know.
        """
        if task not in self.rules["tasks"]:
            raise InputError(f"{self.name}: expected a task of {', '.join(self.rules['tasks'])}, found {task!r}")
        foreign = {row.dataset for row in rows} - set(self.rules["sets"])
        if foreign:
            raise InputError(f"{self.name}: expected studies of {', '.join(self.rules['sets'])}, found {', '.join(sorted(foreign))}")
        split = self.rules["split"]
        pairs = list(pairs)
        kept, left_out = eligible(rows, task)
        assigned = assign_clients(kept, by=self.rules["clients"]["by"], pairs=pairs)
        by_id = {row.id: row for row in kept}
        fractions = [split["fractions"][part] for part in PARTS]
        splits = {name: split_client([by_id[id] for id in ids], split["salt"], fractions, pairs) for name, ids in assigned.clients.items()}
        return splits, {**left_out, **assigned.left_out}


def load(name: str = "cmr-fed-v1") -> Protocol:
    """The protocol of that name. Raises InputError."""
    if name not in FILES:
        raise InputError(f"protocol: expected one of {', '.join(FILES)}, found {name!r}")
    return Protocol(json.loads(resources.files("raylora.data").joinpath(FILES[name]).read_text("utf-8")))
