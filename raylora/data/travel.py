"""Prepared studies on their way to a machine that does not have them: no shared file system is assumed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from raylora.core.errors import InputError
from raylora.data.manifest import from_json, read_manifest, to_json, write_atomically
from raylora.data.shards import PreparedSet, shard_path

FOLDER = "received"  # inside the cache folder


@dataclass(frozen=True, kw_only=True)
class Parcel:
    """Some studies of a prepared folder."""

    manifest: str  # of these studies alone
    shards: Mapping[str, Any]  # study id -> where its file's bytes are to be had

    @property
    def name(self) -> str:
        return hashlib.sha256(self.manifest.encode()).hexdigest()[:32]


def pack(folder: Path, ids: Sequence[str], send: Callable[[bytes], Any]) -> Parcel:
    """These studies of a prepared folder, each file handed to `send`. Studies of other folders among `ids` are passed over."""
    whole = read_manifest(folder)
    rows = tuple(row for row in whole.rows if row.id in set(ids))
    return Parcel(
        manifest=to_json(replace(whole, rows=rows)), shards={row.id: send(shard_path(folder, row.id).read_bytes()) for row in rows}
    )


def unpack(parcel: Parcel, cache: Path, fetch: Callable[[Any], bytes]) -> Path:
    """A prepared folder with the parcel's studies, below `cache`; what lies there whole already is not fetched again.

    Raises InputError for a file that is not what the manifest says.
    """
    folder = cache / FOLDER / parcel.name
    for row in from_json(parcel.manifest, folder).rows:
        path = shard_path(folder, row.id)
        if path.is_file() and path.stat().st_size == row.shard_bytes:
            continue
        data = fetch(parcel.shards[row.id])
        if hashlib.sha256(data).hexdigest() != row.shard_sha256:
            raise InputError(f"{path}: what was sent is not the prepared study {row.id}: prepare again")
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, data)
    write_atomically(folder / "manifest.json", parcel.manifest.encode())
    return folder


def here(folder: Path, data_sha256: str) -> PreparedSet | None:
    """The prepared folder, if this machine has it with the same studies in it."""
    try:
        found = PreparedSet(folder)
    except InputError:
        return None
    return found if found.data_sha256 == data_sha256 else None
