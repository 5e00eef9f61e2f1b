"""M&Ms (Campello et al., IEEE TMI 2021): a CSV table and ``<split>/<code>/<code>_sa{,_gt}.nii.gz``, both (x, y, z, t)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

from raylora.core.errors import InputError
from raylora.data.cases import FrameFile, Study, distinct, inside, safe_id, vendor_named
from raylora.data.sidecar import blank, read_table, whole_number
from raylora.data.sources import Problem, folders, refuse

labels: Mapping[int, int] = MappingProxyType({0: 0, 1: 3, 2: 2, 3: 1})
"""The files' label values (LV 1, MYO 2, RV 3) -> the internal convention."""

KEY = "External code"
COLUMNS = ("VendorName", "Centre", "ED", "ES", "Pathology")
PLACES = (  # folder, split, labelled
    ("Training/Labeled", "training", True),
    ("Training/Unlabeled", "training", False),  # its label files are there, and empty
    ("Validation", "validation", True),
    ("Testing", "testing", True),
)


def is_here(root: Path) -> bool:
    return any(_tables(root))


def scan(root: Path, problem: Problem = refuse) -> list[Study]:
    """The studies under ``root`` (the download, or ``OpenDataset`` in it), sorted by id; no voxel is read.

    Rows of the table without a folder are left out (the open release, and partial copies). What is wrong with a study goes to
    ``problem(id, error)``, which by default raises it. Raises InputError: no study, no table, more than one, or a broken one.
    """
    tables = list(_tables(root))
    if len(tables) != 1:
        raise InputError(f"{root}: expected one CSV table with a column {KEY!r}, found {len(tables)}")
    table = inside(root, tables[0])
    rows = {}
    for row in read_table(table, KEY, COLUMNS):
        try:
            rows[safe_id(row[KEY], table)] = row
        except InputError as error:
            problem(row[KEY], error)
    found = []
    for place, split, labelled in PLACES:
        for folder in folders(table.parent / place):
            try:
                if folder.name not in rows:
                    raise InputError(f"{folder}: no row for {folder.name} in {table.name}")
                found.append(_study(root, folder, split, labelled, rows[folder.name], table))
            except InputError as error:
                problem(folder.name, error)
    return distinct(found, root, problem)


def _tables(root: Path) -> Iterator[Path]:
    for top in (root, root / "OpenDataset"):
        for path in sorted(top.glob("*.csv")):
            if path.name.startswith(".") or not path.is_file():  # "._name" is what macOS writes beside a file
                continue
            with path.open("rb") as file:
                names = file.readline(4096)
            if KEY.encode() in names or "dataset_information_diagnosis" in path.name.lower():
                yield path


def _study(root: Path, folder: Path, split: str, labelled: bool, row: Mapping[str, str], table: Path) -> Study:
    id = folder.name
    source = f"{table}: {id}"
    numbers = {}
    for name in ("ED", "ES"):
        if blank(row[name]):
            raise InputError(f"{source}: {name} is blank: a study needs both frames")
        numbers[name] = whole_number(row[name], f"{id}: {name}", table)
    if numbers["ED"] == numbers["ES"]:
        raise InputError(f"{source}: ED and ES are the same frame ({numbers['ED']})")
    image = inside(root, folder / f"{id}_sa.nii.gz")
    label = inside(root, folder / f"{id}_sa_gt.nii.gz") if labelled else None
    centre = "" if blank(row["Centre"]) else safe_id(f"mnms-{row['Centre'].removesuffix('.0')}", source)
    return Study(
        id=id,
        dataset="mnms",
        split=split,
        vendor=vendor_named(row["VendorName"], source),
        centre=centre,
        scanner="",
        group="" if blank(row["Pathology"]) else row["Pathology"],
        labelled=labelled,
        labels=dict(labels),
        frames={name: FrameFile(image=image, label=label, index=number) for name, number in numbers.items()},
        root=root,
    )
