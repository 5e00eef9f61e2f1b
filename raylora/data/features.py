"""Computed features on disk: one Arrow file for each image, memory-mapped, in a folder of bounded size whose oldest files make room.

Every file carries the SHA-256 of its numbers, their types and shapes, and what they were computed by and from; one that is torn, altered
or of another origin counts as missing. Files appear whole by renaming, so any number of processes may write the same one at once.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

META = b"raylora"
SUFFIX = ".arrow"
FOLDER = "features"  # inside the cache folder
DEFAULT_BYTES = 20_000_000_000  # training.cache_gb
SCANS = 32  # the folder is measured again after each such part of its bound has been written
TORN_AFTER_S = 3600.0  # a partial file as old as this was left by a process that died

_numbers = itertools.count()


@dataclass(frozen=True, kw_only=True)
class CacheReport:
    """What lies in a folder of features."""

    folder: Path
    entries: int
    bytes: int
    bound_bytes: int


def cache_report(folder: Path | str, bound_bytes: int = DEFAULT_BYTES) -> CacheReport:
    """Entries and bytes below a folder of features; nothing where it does not exist."""
    sizes = [stat.st_size for _, stat in _files(Path(folder))]
    return CacheReport(folder=Path(folder), entries=len(sizes), bytes=sum(sizes), bound_bytes=bound_bytes)


class FeatureFolder:
    """Entries by (key of the computation, hash of the image)."""

    def __init__(self, folder: Path | str, bound_bytes: int = DEFAULT_BYTES) -> None:
        self.folder, self.bound_bytes = Path(folder), bound_bytes
        self._unmeasured: int | None = None  # bytes written since the folder was last measured

    def path(self, key: str, image: str) -> Path:
        return self.folder / key[:32] / f"{image[:40]}{SUFFIX}"

    def read(self, key: str, image: str) -> tuple[np.ndarray, ...] | None:
        """The arrays of an entry, mapped from its file and read-only; None if there is no whole one. An entry that is read becomes young."""
        path = self.path(key, image)
        try:
            with pa.memory_map(str(path)) as mapped, pa.ipc.open_file(mapped) as file:
                about = json.loads(file.schema.metadata[META])
                batch = file.get_batch(0)
            arrays = tuple(
                np.frombuffer(batch.column(i).buffers()[1], dtype).reshape(shape) for i, (dtype, shape) in enumerate(about["tensors"])
            )
            if about["key"] != key or about["image"] != image or about["sha256"] != _hash(arrays):
                return None
            with contextlib.suppress(OSError):  # a folder that others keep: it is read all the same
                os.utime(path)
        except (OSError, pa.ArrowInvalid, ValueError, KeyError, TypeError, IndexError):
            return None
        return arrays

    def write(self, key: str, image: str, arrays: Sequence[np.ndarray]) -> None:
        """Keep an entry, and remove the oldest ones if the folder has outgrown its bound. Raises OSError if it cannot be written."""
        arrays = [np.ascontiguousarray(array) for array in arrays]
        about = {"key": key, "image": image, "sha256": _hash(arrays), "tensors": [[a.dtype.str, list(a.shape)] for a in arrays]}
        columns = [pa.FixedSizeBinaryArray.from_buffers(pa.binary(a.nbytes), 1, [None, pa.py_buffer(a.reshape(-1))]) for a in arrays]
        schema = pa.schema([(f"tensor{i}", column.type) for i, column in enumerate(columns)], metadata={META: json.dumps(about)})
        path = self.path(key, image)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.{os.getpid()}.{next(_numbers)}.part")
        try:
            with pa.OSFile(str(part), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
                writer.write_batch(pa.record_batch(columns, schema=schema))
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
        written = sum(a.nbytes for a in arrays)
        self._unmeasured = None if self._unmeasured is None else self._unmeasured + written
        if self._unmeasured is None or self._unmeasured > self.bound_bytes / SCANS:
            self.make_room()
            self._unmeasured = 0

    def make_room(self) -> None:
        """Remove the oldest entries until a part of the bound is free again, and what processes that died have left."""
        found = sorted(_files(self.folder), key=lambda item: item[1].st_mtime)
        total = sum(stat.st_size for _, stat in found)
        most = self.bound_bytes - self.bound_bytes // SCANS
        if total > most:
            for path, stat in found:
                if total <= most:
                    break
                with contextlib.suppress(OSError):  # another process was first
                    path.unlink()
                total -= stat.st_size
        for path, stat in _files(self.folder, ".part"):
            if time.time() - stat.st_mtime > TORN_AFTER_S:
                with contextlib.suppress(OSError):  # somebody else's
                    path.unlink()


def _files(folder: Path, suffix: str = SUFFIX) -> Iterator[tuple[Path, os.stat_result]]:
    for path in folder.glob(f"*/*{suffix}" if suffix == SUFFIX else f"*/.*{suffix}"):
        with contextlib.suppress(OSError):  # gone since it was listed
            yield path, path.stat()


def _hash(arrays: Sequence[np.ndarray]) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(array.reshape(-1).view(np.uint8))
    return digest.hexdigest()
