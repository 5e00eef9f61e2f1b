"""ACDC (Bernard et al., IEEE TMI 2018): ``database/{training,testing}/patientNNN/`` with ``Info.cfg`` and one file a frame."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

from raylora.core.errors import InputError
from raylora.data.cases import FrameFile, Study, distinct, inside, safe_id
from raylora.data.sidecar import read_settings, whole_number
from raylora.data.sources import Problem, folders, refuse

labels: Mapping[int, int] = MappingProxyType({0: 0, 1: 1, 2: 2, 3: 3})
"""The files' label values -> the internal convention: the same."""

GROUPS = ("DCM", "HCM", "MINF", "NOR", "RV")


def is_here(root: Path) -> bool:
    return any(_study_folders(root))


def scan(root: Path, problem: Problem = refuse) -> list[Study]:
    """The studies under ``root`` (the download, its ``database``, or one of the two split folders), sorted by id; no voxel is read.

    What is wrong with a study goes to ``problem(id, error)``, which by default raises it. Raises InputError if there is no study.
    """
    found = []
    for folder, split in _study_folders(root):
        try:
            found.append(_study(root, folder, split))
        except InputError as error:
            problem(folder.name, error)
    return distinct(found, root, problem)


def _study_folders(root: Path) -> Iterator[tuple[Path, str]]:
    for top in (root, root / "database"):
        for place, split in ((top / "training", "training"), (top / "testing", "testing")):
            yield from ((folder, split) for folder in folders(place) if _looks_right(folder))
    yield from ((folder, "testing" if root.name == "testing" else "training") for folder in folders(root) if _looks_right(folder))


def _looks_right(folder: Path) -> bool:
    return folder.name.startswith("patient") or (folder / "Info.cfg").exists()


def _study(root: Path, folder: Path, split: str) -> Study:
    id = safe_id(folder.name, folder)
    info = inside(root, folder / "Info.cfg")
    settings = read_settings(info)
    group = settings.get("Group", "")
    if group and group not in GROUPS:
        raise InputError(f"{info}: Group: expected one of {', '.join(GROUPS)}, found {group!r}")
    numbers = {}
    for name in ("ED", "ES"):
        if name not in settings:
            raise InputError(f"{info}: {name} is missing: a study needs both frames")
        numbers[name] = whole_number(settings[name], name, info)
    if numbers["ED"] == numbers["ES"]:
        raise InputError(f"{info}: ED and ES are the same frame ({numbers['ED']})")
    last = whole_number(settings.get("NbFrame", "9999"), "NbFrame", info)
    if not all(1 <= number <= last for number in numbers.values()):
        raise InputError(f"{info}: ED {numbers['ED']}, ES {numbers['ES']}: expected frame numbers from 1 to {last} (NbFrame)")
    stems = {name: folder / f"{id}_frame{number:02d}" for name, number in numbers.items()}
    masks = {name: stem.with_name(f"{stem.name}_gt.nii.gz") for name, stem in stems.items()}
    labelled = any(mask.exists() for mask in masks.values())  # an early release has no labels in its testing set
    frames = {}
    for name, stem in stems.items():
        image = inside(root, stem.with_name(f"{stem.name}.nii.gz"))
        frames[name] = FrameFile(image=image, label=inside(root, masks[name]) if labelled else None, index=None)
    return Study(
        id=id,
        dataset="acdc",
        split=split,
        vendor="Siemens",  # one hospital with two Siemens scanners; the files do not say which
        centre="acdc-1",
        scanner="",
        group=group,
        labelled=labelled,
        labels=dict(labels),
        frames=frames,
        root=root,
    )
