"""Phantom studies as files in the folder layouts of ACDC, M&Ms and M&Ms-2: names, sidecars, label values, splits, words for the groups.

| phantom | ACDC | M&Ms | M&Ms-2 | |
|---|---|---|---|---|
| NOR | NOR | NOR | NOR | |
| DCM | DCM | DCM | LV | dilated left ventricle |
| HCM | HCM | HCM | HCM | |
| MINF | MINF | IHD | LV | M&Ms-2 has no infarction: a dilated left ventricle of low ejection fraction |
| RV | RV | ARV | ARR | |

M&Ms: as in the original GE and Canon are absent from the labelled training part. There are no unlabelled studies and no long-axis views.
"""

from __future__ import annotations

import csv
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import nibabel as nib
import numpy as np

from raylora.core.errors import InputError
from raylora.core.seeds import generator

if TYPE_CHECKING:
    from raylora.data.phantom_study import PhantomStudy

Assigned = tuple[str, str, str]  # vendor, centre, group
LV_MYO_RV = np.array([0, 3, 2, 1], np.uint8)  # internal RV 1, MYO 2, LV 3 -> the M&Ms convention
GOLDEN = 0.6180339887498949


@dataclass(frozen=True, kw_only=True)
class Placed:
    """Where a patient stands in a layout, and once written what its sidecar row says."""

    code: str
    folder: str  # relative to the root
    split: str  # training | validation | testing
    vendor: str
    centre: str
    group: str  # the layout's own word
    frames: Mapping[str, int]  # index of ED and ES in the 4-D file
    row: Mapping[str, object] | None = None


@dataclass(frozen=True, kw_only=True)
class Layout:
    vendors: tuple[str, ...]
    place: Callable[[Sequence[Assigned], int], list[Placed]]
    write: Callable[[Path, Placed, PhantomStudy], Placed]
    index: Callable[[Path, Sequence[Placed]], None]


def _split(seed: int, number: int, training: float, validation: float) -> str:
    """Even shares in every prefix (golden-ratio sequence), so a patient's split does not depend on the cohort's size."""
    u = (generator(seed, "phantom-split").random() + number * GOLDEN) % 1
    return "training" if u < training else "validation" if u < training + validation else "testing"


def _save(path: Path, array: np.ndarray, affine: np.ndarray, spacing_mm: Sequence[float]) -> None:
    image = nib.Nifti1Image(array, affine, dtype=array.dtype)
    image.header.set_zooms((*spacing_mm, 1.0)[: array.ndim])
    image.header.set_xyzt_units("mm", "sec")
    image.set_sform(affine, 1)
    image.set_qform(affine, 1)
    image.to_filename(path)


def _whole(folder: Path, write: Callable[[Path], None]) -> None:
    """Writes a folder under a temporary name and renames it, so that a study is there whole or not at all."""
    part = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    part.mkdir(parents=True)
    try:
        write(part)
        part.rename(folder)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


def _write_rows(path: Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    part = path.with_name(f".{path.name}.part")
    with open(part, "w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *rows])
    part.rename(path)


# ACDC


def _place_acdc(assigned: Sequence[Assigned], seed: int) -> list[Placed]:
    placed = []
    for number, (vendor, centre, group) in enumerate(assigned):
        split, code = _split(seed, number, 2 / 3, 0.0), f"patient{number + 1:03d}"
        systole = 7 + int(generator(seed, "phantom-frames", number).integers(0, 8))
        placed.append(
            Placed(
                code=code,
                folder=f"database/{split}/{code}",
                split=split,
                vendor=vendor,
                centre=centre,
                group=group,
                frames={"ED": 0, "ES": systole},
            )
        )
    return placed


def _write_acdc(root: Path, place: Placed, made: PhantomStudy) -> Placed:
    def write(folder: Path) -> None:
        for frame, index in place.frames.items():
            stem = folder / f"{place.code}_frame{index + 1:02d}"
            _save(Path(f"{stem}.nii.gz"), made.images[frame], made.affine, made.spacing_mm)
            _save(Path(f"{stem}_gt.nii.gz"), made.labels[frame], made.affine, made.spacing_mm)
        person = made.patient
        lines = {
            "ED": place.frames["ED"] + 1,
            "ES": place.frames["ES"] + 1,
            "Group": place.group,
            "Height": f"{person.height_cm:.1f}",
            "NbFrame": 30,
            "Weight": f"{person.weight_kg:.1f}",
        }
        (folder / "Info.cfg").write_text("".join(f"{key}: {value}\n" for key, value in lines.items()))

    _whole(root / place.folder, write)
    return place


# M&Ms

MNMS_GROUPS = MappingProxyType({"NOR": "NOR", "DCM": "DCM", "HCM": "HCM", "MINF": "IHD", "RV": "ARV"})
MNMS_LETTERS = MappingProxyType({"Siemens": "A", "Philips": "B", "GE": "C", "Canon": "D"})
MNMS_HEADER = ("", "External code", "VendorName", "Vendor", "Centre", "ED", "ES", "Age", "Pathology", "Sex", "Height", "Weight")
MNMS_FOLDERS = MappingProxyType({"training": "Training/Labeled", "validation": "Validation", "testing": "Testing"})
MNMS_CSV = "211230_M&Ms_Dataset_information_diagnosis_opendataset.csv"


def _mnms_code(seed: int, number: int) -> str:
    """Letter, digit, letter, digit, letter, digit; the number is in it twice removed, so codes are unique up to 17.5 million patients."""
    space = 260**3
    value = (number * 7_368_787 + int(generator(seed, "phantom-codes").integers(space))) % space  # a step coprime to the space
    pairs = (value // 260**2, value // 260 % 260, value % 260)
    return "".join(f"{chr(65 + pair // 10)}{pair % 10}" for pair in pairs)


def _place_mnms(assigned: Sequence[Assigned], seed: int) -> list[Placed]:
    placed = []
    for number, (vendor, centre, group) in enumerate(assigned):
        split = _split(seed, number, 0.6, 0.1) if vendor in ("Siemens", "Philips") else _split(seed, number, 0.0, 0.2)
        code = _mnms_code(seed, number)
        late = generator(seed, "phantom-frames", number).random() < 0.25  # triggered late: the end-systolic frame comes first
        placed.append(
            Placed(
                code=code,
                folder=f"OpenDataset/{MNMS_FOLDERS[split]}/{code}",
                split=split,
                vendor=vendor,
                centre=centre,
                group=MNMS_GROUPS[group],
                frames={"ED": 1, "ES": 0} if late else {"ED": 0, "ES": 1},
            )
        )
    return placed


def _write_mnms(root: Path, place: Placed, made: PhantomStudy) -> Placed:
    order = sorted(place.frames, key=place.frames.__getitem__)

    def write(folder: Path) -> None:
        _save(folder / f"{place.code}_sa.nii.gz", np.stack([made.images[f] for f in order], -1), made.affine, made.spacing_mm)
        _save(folder / f"{place.code}_sa_gt.nii.gz", np.stack([LV_MYO_RV[made.labels[f]] for f in order], -1), made.affine, made.spacing_mm)

    _whole(root / place.folder, write)
    person = made.patient
    row = {"Age": person.age_years, "Sex": person.sex, "Height": f"{person.height_cm:.0f}", "Weight": f"{person.weight_kg:.0f}"}
    return replace(place, row=row)


def _index_mnms(root: Path, placed: Sequence[Placed]) -> None:
    rows = []
    for i, p in enumerate(placed):
        scan = (p.vendor, MNMS_LETTERS[p.vendor], p.centre, p.frames["ED"], p.frames["ES"])
        rows.append((i, p.code, *scan, p.row["Age"], p.group, p.row["Sex"], p.row["Height"], p.row["Weight"]))
    _write_rows(root / "OpenDataset" / MNMS_CSV, MNMS_HEADER, rows)


# M&Ms-2

MNMS2_GROUPS = MappingProxyType({"NOR": "NOR", "DCM": "LV", "HCM": "HCM", "MINF": "LV", "RV": "ARR"})
MNMS2_VENDORS = MappingProxyType(
    {"Siemens": ("SIEMENS", "Avanto"), "Philips": ("Philips Medical Systems", "Achieva"), "GE": ("GE MEDICAL SYSTEMS", "Signa Explorer")}
)
MNMS2_HEADER = ("SUBJECT_CODE", "DISEASE", "VENDOR", "SCANNER", "FIELD")
MNMS2_CODES = MappingProxyType({"training": (1, 160), "validation": (161, 200), "testing": (201, 360)})  # the split is in the number


def _place_mnms2(assigned: Sequence[Assigned], seed: int) -> list[Placed]:
    free = {split: first for split, (first, _) in MNMS2_CODES.items()}
    placed = []
    for number, (vendor, centre, group) in enumerate(assigned):
        split = _split(seed, number, 160 / 360, 40 / 360)
        if free[split] > MNMS2_CODES[split][1]:
            raise InputError(f"patients: layout mnms2 numbers 360 studies and 160, 40, 160 by split, found {len(assigned)} patients")
        code = f"{free[split]:03d}"
        free[split] += 1
        placed.append(
            Placed(
                code=code,
                folder=f"MnM2/dataset/{code}",
                split=split,
                vendor=vendor,
                centre=centre,
                group=MNMS2_GROUPS[group],
                frames={"ED": 0, "ES": 1},
            )
        )
    return placed


def _write_mnms2(root: Path, place: Placed, made: PhantomStudy) -> Placed:
    def write(folder: Path) -> None:
        for frame in place.frames:
            _save(folder / f"{place.code}_SA_{frame}.nii.gz", made.images[frame], made.affine, made.spacing_mm)
            _save(folder / f"{place.code}_SA_{frame}_gt.nii.gz", LV_MYO_RV[made.labels[frame]], made.affine, made.spacing_mm)

    _whole(root / place.folder, write)
    return place


def _index_mnms2(root: Path, placed: Sequence[Placed]) -> None:
    rows = [(int(p.code), p.group, *MNMS2_VENDORS[p.vendor], "1.5") for p in sorted(placed, key=lambda p: p.code)]
    _write_rows(root / "MnM2" / "dataset_information.csv", MNMS2_HEADER, rows)


LAYOUTS: Mapping[str, Layout] = MappingProxyType(
    {
        "acdc": Layout(vendors=("Siemens",), place=_place_acdc, write=_write_acdc, index=lambda root, placed: None),
        "mnms": Layout(vendors=("Siemens", "Philips", "GE", "Canon"), place=_place_mnms, write=_write_mnms, index=_index_mnms),
        "mnms2": Layout(vendors=("Siemens", "Philips", "GE"), place=_place_mnms2, write=_write_mnms2, index=_index_mnms2),
    }
)
