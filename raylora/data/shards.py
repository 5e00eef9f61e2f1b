"""Prepared studies on disk: one Arrow file a study, opened memory-mapped, handed out as numpy arrays without a copy."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from raylora.core.errors import InputError
from raylora.data.grid import Geometry
from raylora.data.manifest import Row, each_row, row_from, write_atomically
from raylora.data.preprocess import PreparedFrame

META = b"raylora"
STUDIES = "studies"


@dataclass(frozen=True, kw_only=True)
class PreparedStudy:
    """One study on the prepared grid, with the way back (`native.to_native(label, study.geometry)`)."""

    id: str
    geometry: Geometry
    slices: int  # of Z, those that hold data: the first ones
    frames: Mapping[str, PreparedFrame]  # arrays are read-only

    @property
    def native_spacing_mm(self) -> tuple[float, float, float]:
        return self.geometry.native_spacing_mm


def shard_path(folder: Path, id: str) -> Path:
    return folder / STUDIES / f"{id}.arrow"


def write_shard(path: Path, row: Row, frames: Mapping[str, PreparedFrame]) -> Row:
    """Write a study's frames; the row, completed with the file's size and hash. The file appears whole or not at all."""
    columns: dict[str, pa.Array] = {"frame": pa.array(list(frames))}
    for name in ("image", "label", "native_label"):
        arrays = [getattr(frame, name) for frame in frames.values()]
        if arrays[0] is not None:
            columns[name] = pa.FixedShapeTensorArray.from_numpy_ndarray(np.stack(arrays))
    table = pa.table(columns)
    table = table.replace_schema_metadata({META: json.dumps(dataclasses.asdict(row))})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    data = sink.getvalue()
    write_atomically(path, data)
    return replace(row, shard_bytes=data.size, shard_sha256=hashlib.sha256(data).hexdigest())


def read_row(path: Path) -> Row | None:
    """The row that a shard was written with, completed with the file's size and hash; None if it is not a whole shard."""
    try:
        data = path.read_bytes()
        with pa.ipc.open_file(pa.BufferReader(data)) as file:
            row = row_from(json.loads(file.schema.metadata[META]))
    except (OSError, pa.ArrowInvalid, ValueError, KeyError, TypeError):
        return None
    return replace(row, shard_bytes=len(data), shard_sha256=hashlib.sha256(data).hexdigest())


def require_shards(folder: Path, sizes: Mapping[str, int]) -> None:
    """Raise InputError for a shard that is missing or of another size than this, in bytes. None is opened."""
    for id, size in sizes.items():
        path = shard_path(folder, id)
        if not path.is_file() or path.stat().st_size != size:
            raise InputError(f"{path}: expected {size} bytes, found {path.stat().st_size if path.is_file() else 'no file'}: prepare again")


class Known(NamedTuple):
    """What has to be known of a study to open its shard."""

    geometry: Geometry  # as stored
    bytes: int
    sha256: str  # of the shard


class PreparedSet:
    """A prepared folder's studies; shards are opened when asked for.

    Of the manifest it keeps what that takes, no more: every process that trains has the studies of all clients.
    """

    def __init__(self, folder: Path | str) -> None:
        """Reads the manifest. Raises InputError: none, an unfinished or a foreign one."""
        self.folder = Path(folder)
        self._known: dict[str, Known] = {}
        self._checked: set[str] = set()
        same: dict[Geometry, Geometry] = {}

        def see(row: Row) -> None:
            self._known[row.id] = Known(same.setdefault(row.geometry, row.geometry), row.shard_bytes, row.shard_sha256)

        options, self.data_sha256 = each_row(self.folder, see)
        self.depth = options.size[2]

    @staticmethod
    def open(folder: Path | str) -> PreparedSet:
        """The set, once its files have been looked at."""
        found = PreparedSet(folder)
        found.require_files()
        return found

    def require_files(self) -> None:
        """Raises InputError for a shard that is missing or of another size."""
        require_shards(self.folder, {id: known.bytes for id, known in self._known.items()})

    @property
    def ids(self) -> tuple[str, ...]:
        return tuple(self._known)

    def study(self, id: str) -> PreparedStudy:
        """The study's arrays, mapped from the file. Raises InputError: unknown id, or a shard that is not the one in the manifest.

        A shard's hash is checked the first time it is opened by this object.
        """
        if id not in self._known:
            raise InputError(f"{self.folder}: no study {id!r} among the {len(self._known)} prepared ones")
        known, path = self._known[id], shard_path(self.folder, id)
        try:
            mapped = pa.memory_map(str(path))
            if id not in self._checked:
                if hashlib.sha256(mapped.read_buffer()).hexdigest() != known.sha256:
                    raise InputError(f"{path}: damaged (its hash is not the manifest's): prepare again")
                mapped.seek(0)
            table = pa.ipc.open_file(mapped).read_all()
            if id not in self._checked:
                table.validate(full=True)
                self._checked.add(id)
            return _study(id, known.geometry, table, self.depth)
        except (OSError, pa.ArrowInvalid, KeyError, ValueError) as error:
            raise InputError(f"{path}: cannot be read: {error}") from None


def _study(id: str, geometry: Geometry, table: pa.Table, depth: int | None) -> PreparedStudy:
    arrays = {name: _mapped(table[name]) for name in table.column_names if name != "frame"}
    stored = geometry.shape[2]
    depth = depth or stored
    first = max(0, (stored - depth) // 2)  # more slices than asked for: the middle ones
    frames = {}
    for i, name in enumerate(table["frame"].to_pylist()):
        frames[name] = PreparedFrame(
            image=_deep(arrays["image"][i], first, depth),
            label=_deep(arrays["label"][i], first, depth) if "label" in arrays else None,
            native_label=arrays["native_label"][i] if "native_label" in arrays else None,
        )
    start = (*geometry.start[:2], geometry.start[2] + first)
    shown = replace(geometry, start=start, shape=(*geometry.shape[:2], depth))
    return PreparedStudy(id=id, geometry=shown, slices=min(stored, depth), frames=frames)


def _mapped(column: pa.ChunkedArray) -> np.ndarray:
    """A column as it lies in the file: `combine_chunks` would copy even a single chunk."""
    if column.num_chunks != 1:
        raise ValueError(f"expected one chunk a column, found {column.num_chunks}")
    return np.asarray(column.chunk(0).to_numpy_ndarray())


def _deep(array: np.ndarray, first: int, depth: int) -> np.ndarray:
    """``depth`` slices: the middle ones, or all and zeros behind them (the only case that copies)."""
    out = array[:, :, first : first + depth]
    if out.shape[2] < depth:
        out = np.pad(out, ((0, 0), (0, 0), (0, depth - out.shape[2])))
    out.flags.writeable = False
    return out
