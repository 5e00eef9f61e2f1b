"""What is in a folder, and what is wrong with it: every study read once, every problem one line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from raylora.core.errors import InputError
from raylora.data import cases, duplicates, manifest
from raylora.data.cases import Study
from raylora.data.groups import without_counterpart
from raylora.data.layouts import LAYOUTS, found_in, scan
from raylora.data.shards import PreparedSet

TAKEN = ("id", "dataset", "split", "vendor", "centre", "group", "labelled")
TOLERANCE = 0.01  # between the spacing and the affine of a file, or two files of a study


@dataclass(frozen=True, kw_only=True)
class Facts:
    """One readable study."""

    id: str
    dataset: str
    split: str
    vendor: str
    centre: str
    group: str
    labelled: bool
    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    fingerprint: str = ""
    notes: tuple[str, ...] = ()
    swapped: bool = False  # whether the myocardium encloses the right ventricle


@dataclass(frozen=True, kw_only=True)
class Report:
    """What `check` found. ``problems`` make it fail, ``notes`` do not."""

    root: Path
    sets: tuple[str, ...]
    studies: tuple[Facts, ...]
    problems: tuple[str, ...]
    notes: tuple[str, ...]

    def counts(self, *names: str) -> Counter[tuple[str, ...]]:
        """Studies by any of dataset, split, vendor, centre, group; nothing known: "?"."""
        return Counter(tuple(getattr(study, name) or "?" for name in names) for study in self.studies)

    def lines(self) -> list[str]:
        """The report as text."""
        found = [f"{self.root}: {len(self.studies)} readable studies of {', '.join(self.sets)}"]
        for names in (("dataset", "split"), ("dataset", "vendor"), ("dataset", "centre"), ("dataset", "group")):
            found += [f"  {' '.join(values):<28} {count:>5}" for values, count in sorted(self.counts(*names).items())]
        if self.studies:
            found.append(f"  size x, y, z: {_span([study.shape for study in self.studies])}")
            found.append(f"  spacing x, y, z: {_span([study.spacing_mm for study in self.studies])} mm")
            found.append(f"  unlabelled: {sum(not study.labelled for study in self.studies)}")
        found += [f"note: {note}" for note in self.notes]
        return found + [f"problem: {problem}" for problem in self.problems]

    def to_dict(self) -> dict[str, object]:
        """For ``--json``."""
        names = ("split", "vendor", "centre", "group")
        counted = {name: {" ".join(k): n for k, n in sorted(self.counts("dataset", name).items())} for name in names}
        return {
            "root": str(self.root),
            "sets": list(self.sets),
            "studies": len(self.studies),
            "counts": counted,
            "notes": list(self.notes),
            "problems": list(self.problems),
        }


def check(
    root: Path | str,
    *,
    mapper: Callable[[Callable, Iterable], Iterable] = map,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Report:
    """Look through a download, several of them side by side, or a prepared folder. Raises InputError if ``root`` holds no data set."""
    root = Path(root)
    if (root / manifest.NAME).is_file():
        return _check_prepared(root, progress)
    problems: list[str] = []
    studies: list[Study] = []
    sets = found_in(root)
    for dataset, place in sets:
        try:
            studies += scan(dataset, place, lambda id, error: problems.append(str(error)))
        except InputError as error:
            problems.append(str(error))
    facts = []
    for done, (_, found) in enumerate(mapper(study_facts, studies), 1):
        if isinstance(found, Facts):
            facts.append(found)
        else:
            problems.append(found)
        progress(done, len(studies))
    facts.sort(key=lambda study: (study.dataset, study.id))
    ids = Counter(study.id for study in facts)
    problems += [f"{root}: {count} studies with the id {id}" for id, count in sorted(ids.items()) if count > 1]
    notes = [note for study in facts for note in study.notes] + _notes(facts)
    names = tuple(sorted({name for name, _ in sets}))
    return Report(root=root, sets=names, studies=tuple(facts), problems=tuple(sorted(problems)), notes=tuple(notes))


def study_facts(study: Study) -> tuple[str, Facts | str]:
    """Read a study: (id, what it is) or (id, what is wrong). Mappers call it in other processes."""
    try:
        headers = cases.inspect(study)
        case = cases.read(study)
    except InputError as error:
        return study.id, str(error)
    first = headers[study.frames["ED"].image]
    notes = []
    for path, header in headers.items():
        columns = np.linalg.norm(header.affine[:3, :3], axis=0)
        if not np.allclose(columns, header.spacing_mm, rtol=TOLERANCE):
            notes.append(f"{path}: its affine says {_times(columns)} mm, its spacing {_times(header.spacing_mm)} mm: the spacing is used")
        if not np.allclose(header.spacing_mm, first.spacing_mm, rtol=TOLERANCE):
            notes.append(f"{path}: another spacing than {first.path.name}, whose is used")
    for name, frame in case.frames.items():
        missing = [s for s, value in cases.STRUCTURES.items() if frame.label is not None and not (frame.label == value).any()]
        if missing:
            notes.append(f"{study.frames[name].label}: {name} has no {', '.join(missing)}")
    taken = {name: getattr(study, name) for name in TAKEN}
    mark = duplicates.fingerprint(case.frames["ED"].image)
    swapped = _swapped(case.frames["ED"].label)
    return study.id, Facts(**taken, shape=first.shape, spacing_mm=first.spacing_mm, fingerprint=mark, notes=tuple(notes), swapped=swapped)


def _swapped(label: np.ndarray | None) -> bool:
    """Whether more of the RV than of the LV lies inside the rings of myocardium of a label map (x, y, z)."""
    if label is None:
        return False
    from scipy.ndimage import binary_fill_holes

    ring = label == cases.STRUCTURES["MYO"]
    inside = np.stack([binary_fill_holes(plane) for plane in np.moveaxis(ring, -1, 0)], axis=-1) & ~ring
    lv, rv = (int((label[inside] == cases.STRUCTURES[name]).sum()) for name in ("LV", "RV"))
    return rv > lv


def _notes(facts: list[Facts]) -> list[str]:
    """What concerns several studies."""
    notes = without_counterpart({(study.dataset, study.group) for study in facts})
    for dataset, swapped in sorted(Counter(study.dataset for study in facts if study.swapped).items()):
        structures = {value: name for name, value in cases.STRUCTURES.items()}
        order = ", ".join(f"{label} {structures[value]}" for label, value in LAYOUTS[dataset].labels.items() if label in (1, 3))
        there = sum(study.dataset == dataset for study in facts)
        notes.append(
            f"in {swapped} of {there} studies the myocardium encloses the RV: are LV and RV swapped? (in {dataset} they are labelled {order})"
        )
    for what in ("vendor", "group"):
        unknown = [study.id for study in facts if not getattr(study, what)]
        if unknown:
            notes.append(f"{len(unknown)} without a {what}: {', '.join(unknown[:5])}{' ...' if len(unknown) > 5 else ''}")
    pairs = duplicates.pairs(facts)
    return notes + [f"{first} and {second} show the same patient (correlation {r:.3f}): they stay together" for first, second, r in pairs]


def _check_prepared(root: Path, progress: Callable[[int, int], None]) -> Report:
    facts, problems = [], []
    found = manifest.read_manifest(root)
    studies = PreparedSet(root)
    for done, row in enumerate(found.rows, 1):
        try:
            studies.study(row.id)
            taken = {name: getattr(row, name) for name in (*TAKEN, "fingerprint")}
            facts.append(Facts(**taken, shape=row.geometry.native_shape, spacing_mm=row.geometry.native_spacing_mm))
        except InputError as error:
            problems.append(str(error))
        progress(done, len(found.rows))
    notes = manifest.done_to(found.options) + [f"skipped {id}: {reason}" for id, reason in found.skipped] + _notes(facts)
    cut = [row.id for row in found.rows if row.cut_voxels]
    if cut:
        notes.append(f"the grid leaves out labelled voxels of {len(cut)} studies: {', '.join(cut[:5])}{' ...' if len(cut) > 5 else ''}")
    return Report(root=root, sets=found.datasets, studies=tuple(facts), problems=tuple(problems), notes=tuple(notes))


def _span(values: list) -> str:
    return "; ".join(f"{low:.4g} to {high:.4g}" for low, high in zip(np.min(values, axis=0), np.max(values, axis=0), strict=True))


def _times(values: Iterable[float]) -> str:
    return " x ".join(f"{value:.4g}" for value in values)
