"""`check` says what is in a folder and everything that is wrong with it."""

import errno
from pathlib import Path

import nibabel
import numpy as np
import pytest

from raylora.core.errors import InputError
from raylora.data import acdc, duplicates, mnms, mnms2
from raylora.data.check import check
from raylora.data.layouts import found_in, scan
from raylora.data.manifest import PrepareOptions
from raylora.data.prepare import prepare


def test_three_sets_side_by_side(tmp_path, write):
    write.acdc(tmp_path / "a", 1, group="RV")
    write.mnms(tmp_path / "b", ("A0S9V9", "A1D0Q7"), vendor="Philips")
    write.mnms2(tmp_path / "c", 7, vendor="")
    assert found_in(tmp_path) == [("acdc", tmp_path / "a"), ("mnms", tmp_path / "b"), ("mnms2", tmp_path / "c")]
    assert found_in(tmp_path / "b") == [("mnms", tmp_path / "b")]
    report = check(tmp_path)
    assert (report.sets, len(report.studies), report.problems) == (("acdc", "mnms", "mnms2"), 4, ())
    assert report.counts("dataset", "vendor") == {("acdc", "Siemens"): 1, ("mnms", "Philips"): 2, ("mnms2", "?"): 1}
    text = "\n".join(report.lines())
    assert "4 readable studies of acdc, mnms, mnms2" in text and "size x, y, z: 24 to 24; 28 to 28; 4 to 4" in text
    assert "note: 1 without a vendor: 007" in text
    assert "show the same patient" in text  # the writer draws one heart only
    assert report.to_dict()["counts"]["group"] == {"acdc RV": 1, "mnms NOR": 2, "mnms2 HCM": 1}


def test_labels_in_another_layout_s_order_are_noticed(tmp_path, write):
    """LV and RV of ACDC's values in a folder of M&Ms' layout, and the other way round."""
    for number in (1, 2):
        folder = write.acdc(tmp_path / "a", number)
        for path in folder.glob("*_gt.nii.gz") if number == 2 else ():
            image = nibabel.load(path)
            nibabel.save(nibabel.Nifti1Image(np.choose(np.asarray(image.dataobj), (0, 3, 2, 1)).astype(np.uint8), image.affine), path)
    folder = write.mnms(tmp_path / "b")
    image = nibabel.load(path := folder / f"{folder.name}_sa_gt.nii.gz")
    nibabel.save(nibabel.Nifti1Image(np.choose(np.asarray(image.dataobj), (0, 3, 2, 1)).astype(np.uint8), image.affine), path)
    acdc_s, mnms_s = "(in acdc they are labelled 1 RV, 3 LV)", "(in mnms they are labelled 1 LV, 3 RV)"
    for name, count, order in (("a", "in 1 of 2 studies", acdc_s), ("b", "in 1 of 1 studies", mnms_s)):
        (note,) = [note for note in check(tmp_path / name).notes if "swapped" in note]
        assert note.startswith(count) and note.endswith(order)


def test_every_problem_is_one_line_with_its_file(tmp_path, write):
    first, second, third = (write.acdc(tmp_path, number) for number in (1, 2, 3))
    write.acdc(tmp_path, 4)
    (first / "Info.cfg").write_text("ED: 1\n")
    (second / "patient002_frame01.nii.gz").write_bytes(b"")
    write.save(third / "patient003_frame09_gt.nii.gz", np.full((24, 28, 4), 9, np.uint8))
    seen = []
    report = check(tmp_path, progress=lambda done, total: seen.append((done, total)))
    assert [study.id for study in report.studies] == ["patient004"]
    for problem, words in zip(report.problems, ("Info.cfg: ES is missing", "patient002_frame01.nii.gz", "found 9"), strict=True):
        assert words in problem and str(tmp_path) in problem and "\n" not in problem
    assert seen[-1] == (3, 3)
    assert sum(line.startswith("problem: ") for line in report.lines()) == 3


def test_geometry_that_disagrees_and_missing_structures_are_noted(tmp_path, write):
    folder = write.acdc(tmp_path)
    _, label = write.heart()
    write.save(folder / "patient001_frame01_gt.nii.gz", np.where(label == 1, 0, label).astype(np.uint8), spacing_mm=(1.5, 1.5, 8.0))
    notes = check(tmp_path).notes
    assert any("another spacing than patient001_frame01.nii.gz" in note for note in notes)
    assert any("ED has no RV" in note for note in notes)


def test_a_prepared_folder_is_checked_too(tmp_path, write):
    write.acdc(tmp_path / "raw", 1)
    write.acdc(tmp_path / "raw", 2)
    options = PrepareOptions(spacing_mm=(1.5, 1.5, 10.0), size=(8, 8, 4))
    prepare(acdc.scan(tmp_path / "raw"), tmp_path / "out", options, skipped=[("patient003", "was bad")])
    report = check(tmp_path / "out")
    assert len(report.studies) == 2 and not report.problems
    assert any(note.startswith("the grid leaves out labelled voxels of 2 studies") for note in report.notes)
    assert "skipped patient003: was bad" in report.notes
    path = tmp_path / "out" / "studies" / "patient002.arrow"
    path.write_bytes(path.read_bytes()[:-8] + b"\0" * 8)
    report = check(tmp_path / "out")
    assert len(report.problems) == 1 and "patient002.arrow: damaged" in report.problems[0]


def test_a_broken_table_does_not_hide_the_other_sets(tmp_path, write):
    write.acdc(tmp_path / "a")
    write.mnms2(tmp_path / "b")
    (tmp_path / "b" / "MnM2" / "dataset_information.csv").write_text("SUBJECT_CODE,DISEASE\n1,NOR\n")
    report = check(tmp_path)
    assert [study.id for study in report.studies] == ["patient001"]
    assert len(report.problems) == 1 and "dataset_information.csv: missing column VENDOR, SCANNER, FIELD" in report.problems[0]


def test_nothing_there(tmp_path):
    with pytest.raises(InputError, match="none of acdc, mnms, mnms2 found in it"):
        check(tmp_path)
    with pytest.raises(InputError, match="expected a folder, found nothing"):
        check(tmp_path / "missing")
    with pytest.raises(InputError, match="dataset: expected one of acdc, mnms, mnms2, found 'ukbb'"):
        scan("ukbb", tmp_path)
    with pytest.raises(InputError, match="expected a folder with acdc in it, found nothing"):
        scan("acdc", tmp_path / "missing")


def test_what_cannot_be_read_is_said_and_hides_nothing_else(tmp_path, write, monkeypatch):
    write.acdc(tmp_path / "a", 1)
    folder = write.acdc(tmp_path / "a", 2)
    (folder / "Info.cfg").unlink()
    (folder / "Info.cfg").mkdir()
    (tmp_path / "closed").mkdir()
    listed = Path.iterdir

    def iterdir(self):
        if self.name == "closed":
            raise PermissionError(errno.EACCES, "Permission denied", str(self))
        return listed(self)

    monkeypatch.setattr(Path, "iterdir", iterdir)  # root, who may run the tests, is let in everywhere
    report = check(tmp_path)
    assert [study.id for study in report.studies] == ["patient001"]
    (problem,) = report.problems
    assert problem.endswith("Info.cfg: expected a text file, found a folder")
    with pytest.raises(InputError, match="closed: cannot be read: Permission denied"):
        check(tmp_path / "closed")
    with pytest.raises(InputError, match="/proc: none of acdc, mnms, mnms2 found in it"):
        check("/proc")


class Shown:
    def __init__(self, id, dataset, image):
        self.id, self.dataset, self.fingerprint = id, dataset, duplicates.fingerprint(image)


def blobs(seed):
    """A smooth random image."""
    rng = np.random.default_rng(seed)
    coarse = rng.random((8, 8, 3))
    return np.kron(coarse, np.ones((12, 12, 4))).astype(np.float32)


def test_the_same_patient_in_two_sets_is_found_in_any_orientation():
    image, rng = blobs(0), np.random.default_rng(9)
    disguises = {
        "scaled": image * 371 + 5,
        "noisy": image + 0.02 * rng.standard_normal(image.shape),
        "turned": np.rot90(image),
        "flipped": image[::-1, :, ::-1],
        "cropped": image[1:-1, 1:-1],
        "finer": np.kron(image, np.ones((2, 2, 1))),
    }
    for name, disguise in disguises.items():
        rows = [Shown("a", "mnms", image), Shown("b", "mnms2", disguise), Shown("c", "mnms2", blobs(1)), Shown("d", "mnms", disguise)]
        assert {pair[:2] for pair in duplicates.pairs(rows)} == {("a", "b"), ("d", "b")}, name


def test_real_patients_are_not_taken_for_each_other(shared):
    """Every real study against all others, as if each were a data set of its own; and ED against ES as a real near-duplicate."""
    from raylora.data import cases

    studies = [*acdc.scan(shared / "real/acdc")[::3], *mnms.scan(shared / "real/mnms"), *mnms2.scan(shared / "real/mnms2")]
    read = [cases.read(study) for study in studies]
    different = [Shown(case.study.id, case.study.id, case.frames["ED"].image) for case in read]
    assert duplicates.pairs(different) == []
    rows = [Shown(f"{case.study.id}-{name}", name, case.frames[name].image) for case in read for name in ("ED", "ES")]
    found = {pair[:2] for pair in duplicates.pairs(rows)}
    same = {(f"{case.study.id}-ED", f"{case.study.id}-ES") for case in read}
    assert found <= same and len(found) >= 0.9 * len(same)
