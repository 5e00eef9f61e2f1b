"""A study on disk, and the case that is read from it.

`Study` is what the layout readers (acdc, mnms, mnms2) find without reading a voxel; `read` turns it into a `Case`: arrays in the
file's own voxel axes (x, y, z), labels in one convention for every data set.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np

from raylora.core.errors import InputError
from raylora.data import nifti
from raylora.data.sources import Problem, refuse

BACKGROUND, RV, MYO, LV = 0, 1, 2, 3
STRUCTURES: Mapping[str, int] = MappingProxyType({"RV": RV, "MYO": MYO, "LV": LV})
FRAMES = ("ED", "ES")
SPLITS = ("training", "validation", "testing")
VENDORS = ("Siemens", "Philips", "GE", "Canon")
SAME_DIRECTION = 0.9  # least cosine between the axes of two files of one study
SAFE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


@dataclass(frozen=True, kw_only=True)
class FrameFile:
    """Where one frame lies."""

    image: Path
    label: Path | None
    index: int | None  # zero-based time index in a 4-D file; None: a 3-D file


@dataclass(frozen=True, kw_only=True)
class Study:
    """One patient's study as its data set describes it. Nothing of it has been read but the sidecar."""

    id: str
    dataset: str  # acdc | mnms | mnms2
    split: str  # the data set's own: training | validation | testing
    vendor: str  # one of VENDORS, or "" where the data set does not say
    centre: str  # unique over all data sets, or ""
    scanner: str
    group: str  # the data set's own word, or ""
    labelled: bool
    labels: Mapping[int, int]  # the files' label values -> the convention above
    frames: Mapping[str, FrameFile]  # "ED" and "ES"
    root: Path  # the folder that was scanned: no file of the study lies outside

    @property
    def files(self) -> tuple[Path, ...]:
        """Every file the study is read from, once each."""
        found = [path for frame in self.frames.values() for path in (frame.image, frame.label) if path is not None]
        return tuple(dict.fromkeys(found))


@dataclass(frozen=True, kw_only=True)
class Frame:
    image: np.ndarray  # (x, y, z) float32, the file's intensities
    label: np.ndarray | None  # (x, y, z) uint8: background 0, RV 1, MYO 2, LV 3


@dataclass(frozen=True, kw_only=True)
class Case:
    """A study's voxels."""

    study: Study
    affine: np.ndarray  # (4, 4) voxel -> mm, of the ED image
    spacing_mm: tuple[float, float, float]
    frames: Mapping[str, Frame]


def read(study: Study) -> Case:
    """The study's frames and geometry.

    Raises InputError, naming the file: unreadable (see `nifti`), a label set outside the data set's, image and label of different
    shape, ED and ES on different grids, or a frame number beyond the file.
    """
    headers = inspect(study)
    wanted: dict[Path, set[int]] = {}
    for frame in study.frames.values():
        for path in (frame.image, frame.label):
            if path is not None:
                wanted.setdefault(path, set()).add(frame.index or 0)
    voxels = {path: nifti.read_frames(headers[path], indices) for path, indices in wanted.items()}
    frames = {}
    for name, frame in study.frames.items():
        index = frame.index or 0
        label = None if frame.label is None else relabel(voxels[frame.label][index], study.labels, f"{frame.label}: {name}")
        if label is not None and not label.any():
            where = "" if frame.index is None else f" (frame {index}, zero-based)"
            raise InputError(f"{frame.label}: {name}: no structure is labelled{where}: is that the frame that was drawn?")
        frames[name] = Frame(image=voxels[frame.image][index].astype(np.float32, copy=False), label=label)
    if np.array_equal(frames["ED"].image, frames["ES"].image):
        raise InputError(f"{study.frames['ES'].image}: ED and ES are the same image")
    header = headers[study.frames["ED"].image]
    return Case(study=study, affine=header.affine, spacing_mm=header.spacing_mm, frames=frames)


def inspect(study: Study) -> dict[Path, nifti.Header]:
    """The headers of the study's files, checked against each other: fast, no voxel is read. Raises InputError."""
    headers: dict[Path, nifti.Header] = {}
    for frame in study.frames.values():
        for path, ratio in ((frame.image, nifti.MAX_GZIP_RATIO), (frame.label, float("inf"))):  # a label's size is bounded by its image's
            if path is not None and path not in headers:
                headers[path] = nifti.read_header(path, max_ratio=ratio)
    first = headers[study.frames["ED"].image]
    grid = first.shape
    for name, frame in study.frames.items():
        for path in (frame.image, frame.label):
            if path is None:
                continue
            header = headers[path]
            if header.shape != grid:
                raise InputError(f"{path}: shape {header.shape}, expected {grid} as {study.frames['ED'].image.name} has")
            if _turned(header, first):
                raise InputError(f"{path}: its axes point elsewhere than those of {study.frames['ED'].image.name}: one of them was turned")
            if frame.index is None and header.frames != 1:
                raise InputError(f"{path}: expected one frame (3-D), found {header.frames}")
            if path is frame.label and header.frames != headers[frame.image].frames:
                raise InputError(f"{path}: {header.frames} frames, expected {headers[frame.image].frames} as {frame.image.name} has")
            if frame.index is not None and not 0 <= frame.index < header.frames:
                raise InputError(f"{path}: {name} is frame {frame.index} (zero-based), the file has {header.frames}")
    for header in headers.values():
        nifti.check_complete(header)
    return headers


def _turned(header: nifti.Header, first: nifti.Header) -> bool:
    """Whether the array runs through space in another direction along some axis: voxels of one number would be different places. Another
    origin or spacing exchanges no voxels (`check` notes it), and a file that does not know where it is says nothing."""
    if not (header.placed and first.placed):
        return False
    mine, others = (a[:3, :3] / np.linalg.norm(a[:3, :3], axis=0) for a in (header.affine, first.affine))
    return bool(np.any((mine * others).sum(0) < SAME_DIRECTION))


def relabel(label: np.ndarray, labels: Mapping[int, int], name: str) -> np.ndarray:
    """The label map in the internal convention, uint8. Raises InputError for a value that ``labels`` does not know."""
    values = np.unique(label)
    unknown = [float(v) for v in values if v != round(float(v)) or int(v) not in labels]
    if unknown:
        raise InputError(f"{name} label: expected the values {sorted(labels)}, found {', '.join(f'{v:g}' for v in unknown[:5])}")
    table = np.zeros(max(labels) + 1, np.uint8)
    for value, meaning in labels.items():
        table[value] = meaning
    return table[label.astype(np.intp)]


def safe_id(text: str, source: Path | str) -> str:
    """``text`` if it can be a file name everywhere. Raises InputError: ids come from foreign files and become paths."""
    if not SAFE_ID.fullmatch(text):
        expected = "1 to 64 letters, digits, - or _, the first a letter or digit"
        raise InputError(f"{source}: the id {text[:80]!r} cannot be used: expected {expected}")
    return text


def inside(root: Path, path: Path) -> Path:
    """``path`` if it exists and stays under ``root`` once its links are followed. Raises InputError."""
    try:
        if not path.exists():
            raise InputError(f"{path}: missing")
        if not path.resolve().is_relative_to(root.resolve()):
            raise InputError(f"{path}: a link that leaves {root}")
    except (OSError, RuntimeError) as error:  # unreadable; a link to itself
        raise InputError(f"{path}: cannot be read: {error}") from None
    return path


def vendor_named(text: str, source: Path | str) -> str:
    """The vendor a free text means (``"Philips Medical Systems"`` -> ``"Philips"``); blank stays blank. Raises InputError."""
    words = text.strip().lower()
    for vendor in VENDORS:
        if words.startswith(vendor.lower()):
            return vendor
    if words in ("", "nan", "unknown"):
        return ""
    raise InputError(f"{source}: vendor {text!r}, expected one of {', '.join(VENDORS)} or nothing")


def distinct(studies: Iterable[Study], root: Path | str, problem: Problem = refuse) -> list[Study]:
    """The studies sorted by id. Two with one id are a problem (ids name files, and patients in a split); none raises InputError."""
    found: dict[str, Study] = {}
    for study in studies:
        if study.id in found:
            places = " and ".join(str(s.frames["ED"].image.parent) for s in (found[study.id], study))
            problem(study.id, InputError(f"{root}: two studies with the id {study.id}: {places}"))
        found.setdefault(study.id, study)
    if not found:
        raise InputError(f"{root}: no study found")
    return [found[name] for name in sorted(found)]
