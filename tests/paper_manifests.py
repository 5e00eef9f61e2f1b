"""Manifests of the three public data sets as they would be prepared, without a single image: sizes, vendors, groups near the published."""

from __future__ import annotations

import base64
from itertools import cycle, islice
from pathlib import Path

import numpy as np

from raylora.core.seeds import generator
from raylora.data.duplicates import LEVELS, SIDE
from raylora.data.grid import Geometry
from raylora.data.manifest import NAME, Manifest, PrepareOptions, Row, to_json, write_atomically

ACDC_GROUPS = ("DCM", "HCM", "MINF", "NOR", "RV")
MNMS_GROUPS = ("DCM", "HCM", "NOR", "DCM", "HCM", "NOR", "ARV", "Other", "HHD")
MNMS2_GROUPS = {"NOR": 75, "LV": 60, "HCM": 60, "ARR": 35, "FALL": 35, "CIA": 35, "RV": 30, "TRI": 30}
MNMS_PLACES = (  # split, vendor, centre, studies, labelled
    ("training", "Siemens", "1", 75, True), ("training", "Philips", "2", 50, True), ("training", "Philips", "3", 25, True),
    ("training", "GE", "4", 25, False), ("validation", "Siemens", "1", 4, True), ("validation", "Philips", "2", 10, True),
    ("validation", "GE", "4", 10, True), ("validation", "Canon", "5", 10, True), ("testing", "Siemens", "1", 16, True),
    ("testing", "Philips", "2", 19, True), ("testing", "Philips", "3", 21, True), ("testing", "GE", "4", 40, True),
    ("testing", "Canon", "5", 40, True),
)  # fmt: skip


def write_manifests(folder: Path, options: PrepareOptions) -> Path:
    """`folder`/{acdc,mnms,mnms2}/manifest.json: 150, 345 and 360 studies; two of M&Ms are in M&Ms-2 again."""
    acdc = [
        _row(f"patient{n:03d}", "acdc", "training" if n <= 100 else "testing", "Siemens", "1", ACDC_GROUPS[n % 5], options)
        for n in range(1, 151)
    ]
    mnms, number = [], 0
    for split, vendor, centre, count, labelled in MNMS_PLACES:
        for group in islice(cycle(MNMS_GROUPS), count):
            mnms.append(_row(f"A{number:03d}B{centre}", "mnms", split, vendor, centre, group, options, labelled))
            number += 1
    groups = [group for group, count in MNMS2_GROUPS.items() for _ in range(count)]
    order = generator(0, "mnms2 order").permutation(len(groups))
    mnms2 = []
    for n, place in enumerate(order, 1):
        split = "training" if n <= 160 else "validation" if n <= 200 else "testing"
        twin = mnms[n].fingerprint if n < 3 else ""
        mnms2.append(_row(f"{n:03d}", "mnms2", split, ("Siemens", "Philips", "GE")[n % 3], "", groups[place], options, twin=twin))
    for name, rows in (("acdc", acdc), ("mnms", mnms), ("mnms2", mnms2)):
        (folder / name).mkdir(parents=True)
        text = to_json(Manifest(options=options, rows=tuple(sorted(rows, key=lambda row: row.id))))
        write_atomically(folder / name / NAME, text.encode())
    return folder


def _row(
    id: str, dataset: str, split: str, vendor: str, centre: str, group: str, options: PrepareOptions, labelled: bool = True, twin: str = ""
) -> Row:
    noise = generator(0, f"fingerprint {dataset} {id}").integers(0, 256, SIDE * SIDE * LEVELS, dtype=np.uint8)
    geometry = Geometry(
        native_shape=(256, 216, 10),
        native_spacing_mm=(1.5, 1.5, 10.0),
        affine=tuple(tuple(float(v) for v in line) for line in np.diag([1.5, 1.5, 10.0, 1.0])),
        spacing_mm=options.spacing_mm,
        start=(0, 0, 0),
        shape=(options.size[0], options.size[1], 10),
    )
    return Row(
        id=id, dataset=dataset, split=split, vendor=vendor, centre=centre, scanner="", group=group, labelled=labelled, ed=0, es=1,
        crop=options.crop, cut_voxels=0, fingerprint=twin or base64.b64encode(noise.tobytes()).decode(), geometry=geometry, sources=(),
        key="", shard_bytes=0, shard_sha256="",
    )  # fmt: skip
