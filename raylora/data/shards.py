"""Prepared studies on disk: one Arrow file a study, opened memory-mapped, handed out as numpy arrays without a copy."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa

from raylora.core.errors import InputError
from raylora.data.grid import Geometry
from raylora.data.manifest import Manifest, Row, read_manifest, row_from, write_atomically
from raylora.data.preprocess import PreparedFrame

META = b"raylora"
STUDIES = "studies"


@dataclass(frozen=True, kw_only=True)
class PreparedStudy:
    """One study on the prepared grid, with the way back (`native.to_native(label, study.geometry)`)."""

    row: Row
    geometry: Geometry
    slices: int  # of Z, those that hold data: the first ones
    frames: Mapping[str, PreparedFrame]  # arrays are read-only

    @property
    def id(self) -> str:
        return self.row.id

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


@dataclass(frozen=True)
class PreparedSet:
    """A prepared folder."""

    folder: Path
    manifest: Manifest

    @staticmethod
    def open(folder: Path | str) -> PreparedSet:
        """Reads the manifest; shards are opened when asked for.

        Raises InputError: no manifest, an unfinished or a foreign one, or a shard that is missing or of another size.
        """
        folder = Path(folder)
        found = PreparedSet(folder, read_manifest(folder))
        for row in found.manifest.rows:
            path = shard_path(folder, row.id)
            if not path.is_file() or path.stat().st_size != row.shard_bytes:
                raise InputError(f"{path}: expected {row.shard_bytes} bytes, found {path.stat().st_size if path.is_file() else 'no file'}")
        return found

    @property
    def ids(self) -> tuple[str, ...]:
        return tuple(row.id for row in self.manifest.rows)

    def study(self, id: str) -> PreparedStudy:
        """The study's arrays, mapped from the file. Raises InputError: unknown id, or a shard that is not the one in the manifest.

        A shard's hash is checked the first time it is opened by this object.
        """
        if id not in self._rows:
            raise InputError(f"{self.folder}: no study {id!r} among the {len(self._rows)} prepared ones")
        row, path = self._rows[id], shard_path(self.folder, id)
        try:
            mapped = pa.memory_map(str(path))
            if id not in self._checked:
                if hashlib.sha256(mapped.read_buffer()).hexdigest() != row.shard_sha256:
                    raise InputError(f"{path}: damaged (its hash is not the manifest's): prepare again")
                mapped.seek(0)
            table = pa.ipc.open_file(mapped).read_all()
            if id not in self._checked:
                table.validate(full=True)
                self._checked.add(id)
            return _study(row, table, self.manifest.options.size[2])
        except (OSError, pa.ArrowInvalid, KeyError, ValueError) as error:
            raise InputError(f"{path}: cannot be read: {error}") from None

    @cached_property
    def _rows(self) -> dict[str, Row]:
        return {row.id: row for row in self.manifest.rows}

    @cached_property
    def _checked(self) -> set[str]:
        return set()


def _study(row: Row, table: pa.Table, depth: int | None) -> PreparedStudy:
    arrays = {name: _mapped(table[name]) for name in table.column_names if name != "frame"}
    stored = row.geometry.shape[2]
    depth = depth or stored
    first = max(0, (stored - depth) // 2)  # more slices than asked for: the middle ones
    frames = {}
    for i, name in enumerate(table["frame"].to_pylist()):
        frames[name] = PreparedFrame(
            image=_deep(arrays["image"][i], first, depth),
            label=_deep(arrays["label"][i], first, depth) if "label" in arrays else None,
            native_label=arrays["native_label"][i] if "native_label" in arrays else None,
        )
    start = (*row.geometry.start[:2], row.geometry.start[2] + first)
    geometry = replace(row.geometry, start=start, shape=(*row.geometry.shape[:2], depth))
    return PreparedStudy(row=row, geometry=geometry, slices=min(stored, depth), frames=frames)


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
