"""Cohorts on disk: names, sidecars and label values of the data sets they imitate."""

import contextlib
import csv
import errno
import os
import signal
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from benchmarks.processes import children, title
from raylora.core.errors import InputError, RunError
from raylora.data.phantom import study, write_cohort
from raylora.data.phantom_layouts import LAYOUTS, MNMS_CSV, _mnms_code
from raylora.data.phantom_study import assign


def _voxels(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj)


@pytest.fixture(scope="module")
def mnms(tmp_path_factory):
    root = tmp_path_factory.mktemp("mnms")
    seen = []
    placed = write_cohort(root, layout="mnms", patients=3, seed=4, workers=1, progress=lambda done, total: seen.append((done, total)))
    return root, placed, seen


def test_mnms_files_hold_the_study(mnms):
    root, placed, seen = mnms
    assert seen == [(1, 3), (2, 3), (3, 3)]
    for number, place in enumerate(placed):
        made = study(4, number)
        image, truth = (nib.load(root / place.folder / f"{place.code}_sa{end}.nii.gz") for end in ("", "_gt"))
        assert image.shape == truth.shape == (*made.images["ED"].shape, 2)
        np.testing.assert_allclose(image.header.get_zooms()[:3], made.spacing_mm, rtol=1e-6)
        for affine in (image.affine, image.header.get_qform()):
            np.testing.assert_allclose(affine, made.affine, atol=1e-3)
        for frame, t in place.frames.items():
            np.testing.assert_array_equal(np.asarray(image.dataobj)[..., t], made.images[frame])
            stored = np.asarray(truth.dataobj)[..., t]
            for value, internal in ((1, 3), (2, 2), (3, 1), (0, 0)):  # LV 1, MYO 2, RV 3
                np.testing.assert_array_equal(stored == value, made.labels[frame] == internal)


def test_mnms_table(mnms):
    root, placed, _ = mnms
    with open(root / "OpenDataset" / MNMS_CSV) as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["", "External code", "VendorName", "Vendor", "Centre", "ED", "ES", "Age", "Pathology", "Sex", "Height", "Weight"]
    assert [r[0] for r in rows[1:]] == ["0", "1", "2"]
    for row, place in zip(rows[1:], placed, strict=True):
        assert row[1] == place.code and {int(row[5]), int(row[6])} == {0, 1}
        assert row[3] == {"Siemens": "A", "Philips": "B", "GE": "C", "Canon": "D"}[row[2]]
        assert row[8] in {"NOR", "DCM", "HCM", "IHD", "ARV"}


def test_splits_follow_the_original():
    given = [assign(0, n) for n in range(200)]
    for name, layout in LAYOUTS.items():
        placed = layout.place([g for g in given if g[0] in layout.vendors], 0)
        assert len({p.code for p in placed}) == len(placed)
        if name == "mnms":
            assert {p.vendor for p in placed if p.split == "training"} == {"Siemens", "Philips"}
            assert {p.split for p in placed} == {"training", "validation", "testing"}
        if name == "mnms2":
            bounds = {"training": (1, 160), "validation": (161, 200), "testing": (201, 360)}
            assert all(bounds[p.split][0] <= int(p.code) <= bounds[p.split][1] for p in placed)


def test_a_place_does_not_depend_on_the_size_of_the_cohort():
    given = [assign(3, n) for n in range(60)]
    for layout in LAYOUTS.values():
        allowed = [g for g in given if g[0] in layout.vendors]
        assert layout.place(allowed[:9], 3) == layout.place(allowed, 3)[:9]


def test_acdc_info_and_frames(tmp_path):
    (place,) = write_cohort(tmp_path, layout="acdc", patients=1, seed=1, workers=1)
    folder = tmp_path / place.folder
    lines = dict(line.split(": ") for line in (folder / "Info.cfg").read_text().splitlines())
    assert list(lines) == ["ED", "ES", "Group", "Height", "NbFrame", "Weight"]
    assert lines["ED"] == "1" and lines["Group"] == place.group and int(lines["ES"]) <= int(lines["NbFrame"])
    made = study(1, 0, vendors=("Siemens",))
    for frame in ("ED", "ES"):
        stem = f"{place.code}_frame{int(lines[frame]):02d}"
        np.testing.assert_array_equal(_voxels(folder / f"{stem}.nii.gz"), made.images[frame])
        np.testing.assert_array_equal(_voxels(folder / f"{stem}_gt.nii.gz"), made.labels[frame])  # RV 1, MYO 2, LV 3
    assert made.vendor == "Siemens"


def test_mnms2_table_and_files(tmp_path):
    placed = write_cohort(tmp_path, layout="mnms2", patients=1, seed=1, workers=1)
    with open(tmp_path / "MnM2" / "dataset_information.csv") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["SUBJECT_CODE", "DISEASE", "VENDOR", "SCANNER", "FIELD"]
    assert sorted(int(r[0]) for r in rows[1:]) == sorted(int(p.code) for p in placed)
    made = study(1, 0, vendors=LAYOUTS["mnms2"].vendors)
    stored = _voxels(tmp_path / placed[0].folder / f"{placed[0].code}_SA_ES_gt.nii.gz")
    np.testing.assert_array_equal(stored == 1, made.labels["ES"] == 3)


@pytest.mark.slow
def test_workers_change_no_byte(tmp_path):
    for workers in (1, 2):
        write_cohort(tmp_path / str(workers), patients=2, seed=9, workers=workers)
    one, two = (sorted(p.relative_to(tmp_path / w) for p in (tmp_path / w).rglob("*") if p.is_file()) for w in ("1", "2"))
    assert one == two and len(one) == 5
    for name in one:
        if name.suffix == ".gz":
            np.testing.assert_array_equal(_voxels(tmp_path / "1" / name), _voxels(tmp_path / "2" / name))
        else:
            assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()


def test_codes_are_unique():
    assert len({_mnms_code(0, n) for n in range(5000)}) == 5000


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"layout": "dicom"}, "layout"),
        ({"patients": 0}, "patients"),
        ({"layout": "acdc", "vendors": ("GE",)}, "GE"),
        ({"vendors": ("Acme",)}, "Acme"),
    ],
)
def test_refusals_leave_nothing_behind(tmp_path, wrong, message):
    with pytest.raises(InputError, match=message):
        write_cohort(tmp_path / "new", **wrong)
    assert not (tmp_path / "new").exists()


def test_a_folder_with_files_is_refused_and_kept(tmp_path):
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(InputError, match="empty"):
        write_cohort(tmp_path, patients=1)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_a_failure_leaves_nothing_behind(tmp_path):
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    def full(done: int, total: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "empty").mkdir()
    for out in ("new/deep", "empty"):
        with pytest.raises(KeyboardInterrupt):
            write_cohort(tmp_path / out, patients=1, workers=1, progress=stop)
        with pytest.raises(RunError, match=f"{out}: No space left on device"):
            write_cohort(tmp_path / out, patients=1, workers=1, progress=full)
    assert list(tmp_path.rglob("*")) == [tmp_path / "empty"]


@pytest.mark.parametrize("dial", ["shift", "severity"])
def test_looks_without_end_are_refused(tmp_path, dial):
    with pytest.raises(InputError, match="shift and severity: expected numbers from 0 to 10, found "):
        write_cohort(tmp_path / "cohort", patients=1, **{dial: 10.5})
    assert not (tmp_path / "cohort").exists()


@pytest.mark.slow
def test_a_worker_that_is_killed_is_an_error_and_leaves_nothing_behind(tmp_path):
    def kill(done, total):
        for pid in children(os.getpid()):
            if "spawn_main" in title(pid):
                with contextlib.suppress(ProcessLookupError):  # killed before
                    os.kill(pid, signal.SIGKILL)

    with pytest.raises(RunError, match=r"^a worker process died .* while phantoms were made: start again$"):
        write_cohort(tmp_path / "cohort", patients=12, workers=2, progress=kill)
    assert not (tmp_path / "cohort").exists()
