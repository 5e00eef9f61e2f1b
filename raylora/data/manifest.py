"""The manifest of a prepared folder: what every study is, where it came from and what was done to it. JSON, written last."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import io
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from raylora.core.errors import InputError, one_line
from raylora.core.files import replacing
from raylora.data.cases import safe_id
from raylora.data.grid import Geometry

SCHEMA = "raylora-prepared-1"
NAME = "manifest.json"
ROW = '{"id": '
"""How the line of a row begins."""
KINDS: Mapping[str, tuple[type, ...]] = MappingProxyType({
    "str": (str,), "int": (int,), "bool": (bool,), "int | None": (int, type(None)),
})  # fmt: skip
"""A field's annotation -> what it may hold."""
REPEATED = ("dataset", "split", "vendor", "centre", "scanner", "group", "crop")
"""Fields with few values: one string serves all rows that have it."""
MOST = 1 << 53  # of a number: whole ones are exact below; NaN is not below
CROPS: Mapping[str, str] = MappingProxyType({
    "centre": "the image's centre",
    "motion": "what moves between ED and ES",
    "label": "the ED label's left ventricle (oracle crop; unlabelled studies: the image's centre)",
})  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class PrepareOptions:
    """What is done to every study."""

    spacing_mm: tuple[float, float, float] = (1.5, 1.5, 10.0)
    size: tuple[int, int, int | None] = (128, 128, 16)  # x, y: the crop; z: what arrays are padded to when they are opened; None: as it is
    crop: str = "centre"  # around: the image's centre; what moves between ED and ES (motion); the ED label's LV (label: CineMA's oracle)
    clip_percent: tuple[float, float] = (0.95, 99.5)  # of the crop; then scaled to 0-1

    def __post_init__(self) -> None:
        if self.crop not in CROPS:
            raise InputError(f"crop: expected one of {', '.join(CROPS)}, found {self.crop!r}")
        if len(self.spacing_mm) != 3 or len(self.size) != 3 or len(self.clip_percent) != 2:
            raise InputError(f"spacing_mm, size and clip_percent: expected 3, 3 and 2 numbers, found {self}")
        if not all(0.1 <= s < 1000 for s in self.spacing_mm):
            raise InputError(f"spacing_mm: expected 0.1 to 1000 mm, found {self.spacing_mm}")
        if not all(n is None or 0 < n <= 1024 for n in self.size):
            raise InputError(f"size: expected 1 to 1024 voxels, found {self.size}")
        if not 0 <= self.clip_percent[0] < self.clip_percent[1] <= 100:
            raise InputError(f"clip_percent: expected 0 <= low < high <= 100, found {self.clip_percent}")

    def shard_options(self) -> dict[str, object]:
        """What a stored array depends on: everything but the padding in z."""
        return dataclasses.asdict(self) | {"size": self.size[:2]}


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """A file that a study was read from."""

    path: str  # relative to the root it was scanned under
    bytes: int
    mtime_ns: int
    sha256: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One prepared study."""

    id: str
    dataset: str
    split: str  # the data set's own: training | validation | testing
    vendor: str
    centre: str
    scanner: str
    group: str
    labelled: bool
    ed: int | None  # zero-based time index, None where a frame is a file of its own
    es: int | None
    crop: str  # centre | motion | oracle
    cut_voxels: int  # labelled voxels (native, ED and ES) that the crop, or the rounding of slices, leaves out
    fingerprint: str  # of the ED image, to find the same study in another set (see duplicates)
    geometry: Geometry
    sources: tuple[Source, ...]
    key: str  # hash of the options and the file layout that the shard depends on
    shard_bytes: int
    shard_sha256: str

    @property
    def source_sha256(self) -> str:
        """One hash over the study's files."""
        return sha256_of(sorted(source.sha256 for source in self.sources))


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A prepared folder."""

    options: PrepareOptions
    rows: tuple[Row, ...]  # sorted by id
    skipped: tuple[tuple[str, str], ...] = ()  # (id, reason)

    @property
    def datasets(self) -> tuple[str, ...]:
        return tuple(sorted({row.dataset for row in self.rows}))

    @functools.cached_property
    def data_sha256(self) -> str:
        """What the arrays follow from: ids, file contents and options. The same on every machine."""
        return _data_sha256(self.options, b", ".join(map(_identity, self.rows)))

    def row(self, id: str) -> Row:
        for row in self.rows:
            if row.id == id:
                return row
        raise InputError(f"no study {id!r} among the {len(self.rows)} prepared ones")


def sha256_of(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _identity(r: Row) -> bytes:
    """What of a row is in the hash of a folder."""
    return json.dumps((r.dataset, r.id, r.split, r.vendor, r.centre, r.group, r.source_sha256)).encode()


def _data_sha256(options: PrepareOptions, identities: bytes | bytearray) -> str:
    """`sha256_of` [schema, options, identities], of which the last may be large."""
    head = json.dumps([SCHEMA, dataclasses.asdict(options)], sort_keys=True)[:-1] + ", ["
    found = hashlib.sha256(head.encode())
    for part in (identities, b"]]"):
        found.update(part)
    return found.hexdigest()


def done_to(options: PrepareOptions) -> list[str]:
    """What was done, in words that a methods section can take over."""
    (x, y, z), (low, high) = options.size, options.clip_percent
    return [
        f"resampled to {' x '.join(f'{s:g}' for s in options.spacing_mm)} mm, images linearly, labels to the nearest voxel",
        f"cropped to {x} x {y} around {CROPS[options.crop]}, padded with zeros where the image is smaller",
        f"each frame clipped to its crop's percentiles {low:g} and {high:g} and scaled to 0-1",
        "z as it is" if z is None else f"z padded with zeros at the end to {z} slices, or its middle taken",
        "voxel axes as in the files; labels: background 0, RV 1, MYO 2, LV 3",
    ]


def to_json(manifest: Manifest) -> str:
    """Its text: a row is a line."""
    head = {"schema": SCHEMA, "data_sha256": manifest.data_sha256, "done": done_to(manifest.options)}
    head |= {"options": dataclasses.asdict(manifest.options), "skipped": manifest.skipped}
    rows = (json.dumps(dataclasses.asdict(row), allow_nan=False) for row in manifest.rows)
    return json.dumps(head, indent=1, allow_nan=False)[:-2] + ',\n "rows": [\n' + ",\n".join(rows) + "\n]}\n"


def from_json(text: str, source: Path) -> Manifest:
    """Raises InputError for anything that is not a manifest of this version."""
    rows: list[Row] = []
    options, skipped, _ = _parse(io.StringIO(text), source, rows.append)
    return Manifest(options=options, rows=tuple(rows), skipped=skipped)


def each_row(folder: Path, see: Callable[[Row], None]) -> tuple[PrepareOptions, str]:
    """Call `see` with one row after the other; the folder's options and data_sha256. Raises InputError as `read_manifest` does, and after
    some rows have been seen.

    For who keeps little of a row: the memory of one is that of all.
    """
    with _reading(folder) as path, path.open(encoding="utf-8") as file:
        options, _, data_sha256 = _parse(file, path, see)
    return options, data_sha256


def _parse(lines: Iterable[str], source: Path, see: Callable[[Row], None]) -> tuple[PrepareOptions, tuple[tuple[str, str], ...], str]:
    """Options, skipped studies and data_sha256; rows go to `see` as soon as they have been read: thousands of them as JSON's own objects would
    take three times the memory."""
    around, identities = io.StringIO(), bytearray()

    def take(value: dict) -> None:
        row = row_from(value)
        identities.extend((b", " if identities else b"") + _identity(row))
        see(row)

    try:
        for line in lines:  # a row is a line, as `to_json` writes them
            if line.startswith(ROW):
                take(json.loads(line.rstrip().removesuffix(",")))
            else:
                around.write(line)
        found = json.loads(around.getvalue())
        if found["schema"] != SCHEMA:
            raise InputError(f"{source}: schema {found['schema']!r}, expected {SCHEMA!r}: prepare again")
        for value in found["rows"]:  # of a file that somebody has laid out otherwise
            take(value)
        options = PrepareOptions(**_tuples(found["options"]))
        data_sha256 = _data_sha256(options, identities)
        if data_sha256 != found["data_sha256"]:
            raise InputError(f"{source}: its contents do not match its data_sha256: prepare again")
        return options, tuple((id, reason) for id, reason in found["skipped"]), data_sha256
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        said = one_line(error)
        raise InputError(f"{source}: not a manifest: {type(error).__name__}: {said}") from None


def row_from(value: dict) -> Row:
    """A row out of JSON. Raises InputError for an id that cannot be a file name, TypeError or ValueError for what is no row."""
    geometry = Geometry(**_tuples(value["geometry"]))
    sources = tuple(Source(**source) for source in value["sources"])
    repeated = {name: sys.intern(value[name]) for name in REPEATED if type(value.get(name)) is str}
    row = Row(**{**value, **repeated, "geometry": geometry, "sources": sources})
    for item in (row, *sources):
        for field in dataclasses.fields(item):
            found = getattr(item, field.name)
            if field.type in KINDS and type(found) not in KINDS[str(field.type)]:
                raise TypeError(f"{field.name}: expected {field.type}, found {type(found).__name__}")
    _check_geometry(geometry)
    safe_id(row.id, NAME)
    return row


def _check_geometry(geometry: Geometry) -> None:
    """Raises ValueError: what arrays are allocated and rescaled by."""
    for field in dataclasses.fields(geometry):
        name, values = field.name, getattr(geometry, field.name)
        rows = values if name == "affine" else (values,)
        size, kinds = (4, (int, float)) if name == "affine" else (3, (int,) if name in ("native_shape", "start", "shape") else (int, float))
        if len(rows) != (4 if name == "affine" else 1) or not all(
            len(row) == size and all(type(number) in kinds and abs(number) < MOST for number in row) for row in rows
        ):
            raise ValueError(f"geometry.{name}: found {str(values)[:60]}")
    if min(geometry.native_shape + geometry.shape) < 1 or min(geometry.native_spacing_mm + geometry.spacing_mm) <= 0:
        raise ValueError("geometry: expected positive shapes and spacings")


def read_manifest(folder: Path) -> Manifest:
    """Raises InputError, also for a folder whose preparation did not end."""
    with _reading(folder) as path:
        found = path.stat()
        return _read(path, found.st_ino, found.st_mtime_ns, found.st_size)


@contextlib.contextmanager
def _reading(folder: Path) -> Iterator[Path]:
    """The folder's manifest. Raises InputError where it cannot be read."""
    path = folder / NAME
    try:
        yield path
    except FileNotFoundError:
        state = "its preparation was interrupted: prepare again, it goes on" if (folder / "studies").is_dir() else "not a prepared folder"
        raise InputError(f"{folder}: no {NAME}: {state}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None


@functools.lru_cache(maxsize=8)
def _read(path: Path, *version: int) -> Manifest:
    """One version of a file is parsed once: a run asks for it several times, and of a large set that is a second each time."""
    return from_json(path.read_text("utf-8"), path)


def write_atomically(path: Path, data: bytes | memoryview) -> None:
    """The file is there whole or not at all, whenever the power goes."""
    with replacing(path) as part, open(part, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _tuples(value):
    """JSON's lists as the tuples they were."""
    if isinstance(value, list):
        return tuple(_tuples(item) for item in value)
    return {name: _tuples(item) for name, item in value.items()} if isinstance(value, dict) else value
