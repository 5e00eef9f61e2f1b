"""M&Ms-2 (Martin-Isla et al., IEEE JBHI 2023): ``dataset_information.csv`` and ``dataset/NNN/NNN_SA_{ED,ES}{,_gt}.nii.gz``.

The short axis only; the long axis lies beside it and is not read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

from raylora.core.errors import InputError
from raylora.data.cases import FRAMES, FrameFile, Study, distinct, inside, safe_id, vendor_named
from raylora.data.sidecar import blank, read_table
from raylora.data.sources import Problem, folders, refuse

labels: Mapping[int, int] = MappingProxyType({0: 0, 1: 3, 2: 2, 3: 1})
"""The files' label values (LV 1, MYO 2, RV 3) -> the internal convention."""

TABLE = "dataset_information.csv"
KEY = "SUBJECT_CODE"
COLUMNS = ("DISEASE", "VENDOR", "SCANNER", "FIELD")
LAST_OF_SPLIT = (("training", 160), ("validation", 200), ("testing", 360))


def is_here(root: Path) -> bool:
    return any(_tables(root))


def scan(root: Path, problem: Problem = refuse) -> list[Study]:
    """The studies under ``root`` (the download, or ``MnM2`` in it), sorted by id; no voxel is read.

    The split follows from the number. A blank disease or vendor stays blank. What is wrong with a study goes to
    ``problem(id, error)``, which by default raises it. Raises InputError: no study, or no or a broken table.
    """
    tables = list(_tables(root))
    if len(tables) != 1:
        raise InputError(f"{root}: expected one {TABLE}, found {len(tables)}")
    table = inside(root, tables[0])
    rows: dict[str, Mapping[str, str]] = {}
    for row in read_table(table, KEY, COLUMNS):
        try:
            code = safe_id(row[KEY].removesuffix(".0").zfill(3), table)  # the table says 1 or, from a spreadsheet, 1.0; the folder 001
            if code in rows:
                raise InputError(f"{table}: {KEY} {code} stands there twice")
            rows[code] = row
        except InputError as error:
            problem(row[KEY], error)
    found = []
    for folder in folders(table.parent / "dataset"):
        try:
            if folder.name not in rows:
                raise InputError(f"{folder}: no row for {folder.name} in {table.name}")
            found.append(_study(root, folder, rows[folder.name], table))
        except InputError as error:
            problem(folder.name, error)
    return distinct(found, root, problem)


def _tables(root: Path) -> Iterator[Path]:
    yield from (path for path in (root / TABLE, root / "MnM2" / TABLE) if path.is_file())


def _study(root: Path, folder: Path, row: Mapping[str, str], table: Path) -> Study:
    id = folder.name
    if not id.isdigit() or not 1 <= int(id) <= LAST_OF_SPLIT[-1][1]:
        raise InputError(f"{folder}: expected a number from 001 to {LAST_OF_SPLIT[-1][1]}")
    split = next(name for name, last in LAST_OF_SPLIT if int(id) <= last)
    masks = {name: folder / f"{id}_SA_{name}_gt.nii.gz" for name in FRAMES}
    labelled = any(mask.exists() for mask in masks.values())
    frames = {}
    for name in FRAMES:
        image = inside(root, folder / f"{id}_SA_{name}.nii.gz")
        frames[name] = FrameFile(image=image, label=inside(root, masks[name]) if labelled else None, index=None)
    return Study(
        id=id,
        dataset="mnms2",
        split=split,
        vendor=vendor_named(row["VENDOR"], f"{table}: {id}"),
        centre="",  # three hospitals; the table does not say which
        scanner=row["SCANNER"],
        group="" if blank(row["DISEASE"]) else row["DISEASE"],
        labelled=labelled,
        labels=dict(labels),
        frames=frames,
        root=root,
    )
