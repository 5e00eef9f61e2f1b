"""The three layouts are read, their quirks are taken, and what is wrong is refused in one line that names the file."""

import nibabel
import numpy as np
import pytest

from raylora.core.errors import InputError
from raylora.data import acdc, cases, layouts, mnms, mnms2, phantom

CSV = "OpenDataset/211230_M&Ms_Dataset_information_diagnosis_opendataset.csv"


def test_acdc_reads_from_the_download_and_from_the_folders_inside(tmp_path, write):
    write.acdc(tmp_path, 1, group="DCM")
    write.acdc(tmp_path, 101, split="testing")
    for root, ids in (
        ("", {"patient001", "patient101"}),
        ("database", {"patient001", "patient101"}),
        ("database/training", {"patient001"}),
    ):
        assert {study.id for study in acdc.scan(tmp_path / root)} == ids
    first, last = acdc.scan(tmp_path)
    assert (first.split, last.split, first.group, first.vendor) == ("training", "testing", "DCM", "Siemens")


def test_acdc_frames_and_optional_fields(tmp_path, write):
    folder = write.acdc(tmp_path)
    (folder / "Info.cfg").write_bytes(b"\xef\xbb\xbfED: 1\r\nES: 9\r\nGroup: NOR\r\n")
    case = cases.read(acdc.scan(tmp_path)[0])
    _, label = write.heart()
    assert np.array_equal(case.frames["ED"].label, label)
    assert case.frames["ES"].label.sum() < label.sum()
    assert case.frames["ED"].image.dtype == np.float32
    assert np.allclose(case.spacing_mm, (1.5, 1.5, 10.0))
    assert np.allclose(case.affine[:3, 0], (-1.2, 0.9, 0.0))  # oblique, as written


def test_mnms_labels_are_mapped_and_frames_are_taken_from_the_cine(tmp_path, write):
    write.mnms(tmp_path, vendor="Philips", centre=2, es=2)
    table = tmp_path / CSV
    table.with_name(f"._{table.name}").write_bytes(b"\x00\x05\x16\x07")  # what macOS leaves beside a file
    for root in (tmp_path, tmp_path / "OpenDataset"):
        (study,) = mnms.scan(root)
    case = cases.read(study)
    assert (study.vendor, study.centre, study.split, study.labelled) == ("Philips", "mnms-2", "training", True)
    assert np.array_equal(case.frames["ED"].label, write.heart()[1])
    assert np.array_equal(case.frames["ES"].image, write.heart(shrink=1.0)[0])


def test_mnms_unlabelled_studies_lose_their_empty_labels(tmp_path, write):
    write.mnms(tmp_path, place="Training/Unlabeled", vendor="GE")
    (study,) = mnms.scan(tmp_path)
    assert not study.labelled
    assert cases.read(study).frames["ED"].label is None


def test_mnms2_split_follows_the_number_and_blanks_stay_blank(tmp_path, write):
    for number, vendor in ((1, "SIEMENS"), (161, "Philips Medical Systems"), (360, "")):
        write.mnms2(tmp_path, number, vendor=vendor, group="" if number == 360 else "LV")
    studies = mnms2.scan(tmp_path)
    assert [(s.id, s.split, s.vendor, s.group) for s in studies] == [
        ("001", "training", "Siemens", "LV"), ("161", "validation", "Philips", "LV"), ("360", "testing", "", "")]  # fmt: skip
    assert np.array_equal(cases.read(studies[0]).frames["ED"].label, write.heart()[1])


def test_a_table_with_a_byte_order_mark_and_windows_line_ends(tmp_path, write):
    write.mnms(tmp_path)
    table = tmp_path / CSV
    table.write_bytes(b"\xef\xbb\xbf" + table.read_bytes().replace(b"\n", b"\r\n"))
    assert mnms.scan(tmp_path)[0].group == "NOR"


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


ACDC_FAULTS = {
    "missing ES": (lambda f: edit(f / "Info.cfg", "ES: 9\n", ""), "Info.cfg: ES is missing"),
    "ED = ES": (lambda f: edit(f / "Info.cfg", "ES: 9", "ES: 1"), "Info.cfg: ED and ES are the same frame"),
    "beyond NbFrame": (lambda f: edit(f / "Info.cfg", "NbFrame: 30", "NbFrame: 8"), "frame numbers from 1 to 8"),
    "no number": (lambda f: edit(f / "Info.cfg", "ED: 1", "ED: x"), "ED: expected a whole number, found 'x'"),
    "twice": (lambda f: edit(f / "Info.cfg", "ES: 9", "ES: 9\nES: 8"), "ES stands there twice"),
    "unknown group": (lambda f: edit(f / "Info.cfg", "NOR", "XYZ"), "Group: expected one of .* found 'XYZ'"),
    "missing image": (lambda f: (f / "patient001_frame09.nii.gz").unlink(), "frame09.nii.gz: missing"),
    "missing label": (lambda f: (f / "patient001_frame09_gt.nii.gz").unlink(), "frame09_gt.nii.gz: missing"),
    "path characters": (lambda f: f.rename(f.with_name("patient00 1;x")), "the id 'patient00 1;x' cannot be used"),
}


@pytest.mark.parametrize("name", ACDC_FAULTS)
def test_acdc_faults(tmp_path, write, name):
    spoil, message = ACDC_FAULTS[name]
    spoil(write.acdc(tmp_path))
    with pytest.raises(InputError, match=message) as caught:
        acdc.scan(tmp_path)
    assert "\n" not in str(caught.value)


MNMS_FAULTS = {
    "missing column": ("Pathology,", "Disease,", "missing column Pathology"),
    "duplicated code": ("0,A0S9V9", "0,A0S9V9,Siemens,A,1,0,2,50,NOR,F,170,70\n1,A0S9V9", "A0S9V9 stands there twice"),
    "ED = ES": (",A,1,0,2,", ",A,1,2,2,", "A0S9V9: ED and ES are the same frame"),
    "blank ES": (",A,1,0,2,", ",A,1,0,,", "A0S9V9: ES is blank"),
    "negative": (",A,1,0,2,", ",A,1,-1,2,", "ED: expected a whole number, found '-1'"),
    "unknown vendor": ("Siemens", "Acme", "vendor 'Acme', expected one of"),
    "path characters": ("A0S9V9", "../../A0", "the id '../../A0' cannot be used"),
    "folder without a row": ("A0S9V9", "B0S9V9", "no row for A0S9V9"),
    "ragged row": (",170,70", ",170", "line 2: expected 12 cells, found 11"),
    "centre": (",A,1,0,", ",A,../x,0,", "the id 'mnms-../x' cannot be used"),
}


@pytest.mark.parametrize("name", MNMS_FAULTS)
def test_mnms_faults(tmp_path, write, name):
    old, new, message = MNMS_FAULTS[name]
    write.mnms(tmp_path)
    edit(tmp_path / CSV, old, new)
    with pytest.raises(InputError, match=message) as caught:
        mnms.scan(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_frame_beyond_the_cine_is_refused(tmp_path, write):
    write.mnms(tmp_path, es=3)
    with pytest.raises(InputError, match=r"A0S9V9_sa.nii.gz: ES is frame 3 \(zero-based\), the file has 3"):
        cases.read(mnms.scan(tmp_path)[0])


def test_a_label_with_other_frames_than_its_image_is_refused(tmp_path, write):
    folder = write.mnms(tmp_path)
    write.save(folder / "A0S9V9_sa_gt.nii.gz", np.zeros((24, 28, 4, 9), np.uint8))
    with pytest.raises(InputError, match=r"A0S9V9_sa_gt.nii.gz: 9 frames, expected 3 as A0S9V9_sa.nii.gz has"):
        cases.read(mnms.scan(tmp_path)[0])


def test_two_studies_with_one_id_are_refused(tmp_path, write):
    write.mnms(tmp_path)
    folder = tmp_path / "OpenDataset"
    (folder / "Testing").mkdir()
    (folder / "Testing" / "A0S9V9").symlink_to(folder / "Training" / "Labeled" / "A0S9V9")
    with pytest.raises(InputError, match="two studies with the id A0S9V9"):
        mnms.scan(tmp_path)


@pytest.mark.parametrize("layout", [acdc, mnms, mnms2])
def test_a_folder_without_a_study_is_refused(tmp_path, layout):
    with pytest.raises(InputError, match=str(tmp_path)):
        layout.scan(tmp_path)


def test_a_link_that_leaves_the_folder_is_refused(tmp_path, write):
    folder = write.acdc(tmp_path / "data")
    image = folder / "patient001_frame01.nii.gz"
    image.rename(tmp_path / "elsewhere.nii.gz")
    image.symlink_to(tmp_path / "elsewhere.nii.gz")
    with pytest.raises(InputError, match=r"patient001_frame01.nii.gz: a link that leaves"):
        acdc.scan(tmp_path / "data")


def test_problems_can_be_collected_instead(tmp_path, write):
    write.acdc(tmp_path, 1)
    (write.acdc(tmp_path, 2) / "Info.cfg").unlink()
    problems = []
    assert [s.id for s in acdc.scan(tmp_path, lambda *problem: problems.append(problem))] == ["patient001"]
    assert [id for id, _ in problems] == ["patient002"]


def test_shapes_and_label_values_are_checked(tmp_path, write):
    folder = write.acdc(tmp_path)
    study = acdc.scan(tmp_path)[0]
    mask = folder / "patient001_frame01_gt.nii.gz"
    for array, message in (
        (np.full((24, 28, 4), 4, np.uint8), r"frame01_gt.nii.gz: ED label: expected the values \[0, 1, 2, 3\], found 4"),
        (np.full((24, 28, 4), 0.5), "found 0.5"),
        (np.full((24, 28, 4), -1, np.int16), "found -1"),
        (np.zeros((24, 28, 5), np.uint8), r"frame01_gt.nii.gz: shape \(24, 28, 5\), expected \(24, 28, 4\)"),
        (np.zeros((24, 28, 4, 2), np.uint8), r"expected one frame \(3-D\), found 2"),
    ):
        write.save(mask, array)
        with pytest.raises(InputError, match=message):
            cases.read(study)


def test_a_label_on_other_axes_than_its_image_is_refused(tmp_path, write):
    """Saved again by a tool that turns axes: the same places, other voxels. Another origin, or none that is known, changes nothing."""
    folder = write.acdc(tmp_path)
    study = acdc.scan(tmp_path)[0]
    mask = folder / "patient001_frame01_gt.nii.gz"
    stored = nibabel.load(mask)
    voxels = np.asarray(stored.dataobj)
    moved = stored.affine.copy()
    moved[:3, 3] += 40
    for affine in (moved, np.eye(4), np.diag([-1.0, -1.0, 1.0, 1.0]), None):  # None: no code either
        nibabel.save(nibabel.Nifti1Image(voxels, affine), mask)
        cases.read(study)
    for turns in ([-1.0, 1.0, 1.0, 1.0], [1.0, 1.0, -1.0, 1.0]):
        nibabel.save(nibabel.Nifti1Image(voxels, stored.affine @ np.diag(turns)), mask)
        with pytest.raises(InputError, match=r"frame01_gt.nii.gz: its axes point elsewhere than those of patient001_frame01.nii.gz"):
            cases.inspect(study)


def test_a_frame_that_nobody_drew_is_no_truth(tmp_path, write):
    """A table that counts from one where it should from zero points at frames without a label."""
    write.mnms(tmp_path, ed=0, es=1)
    with pytest.raises(InputError, match=r"sa_gt.nii.gz: ES: no structure is labelled \(frame 1, zero-based\)"):
        cases.read(mnms.scan(tmp_path)[0])


def assert_ring(study):
    """In the middle slice the LV cavity touches no background and no RV: the label conventions are mapped."""
    for name, frame in cases.read(study).frames.items():
        plane = frame.label[:, :, int(np.median(np.nonzero(frame.label == cases.LV)[2]))]
        cavity = np.argwhere(plane == cases.LV)
        around = {int(plane[x + dx, y + dy]) for x, y in cavity for dx, dy in ((1, 0), (-1, 0), (0, 1), (0, -1))}
        assert around == {cases.LV, cases.MYO}, (study.id, name)


@pytest.mark.slow
@pytest.mark.parametrize(("layout", "root", "count"), [(acdc, "acdc", 40), (mnms, "mnms", 3), (mnms2, "mnms2", 1)])
def test_real_cavities_lie_in_a_ring(shared, layout, root, count):
    studies = layout.scan(shared / "real" / root)
    assert len(studies) == count
    for study in studies:
        assert_ring(study)


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["acdc", "mnms", "mnms2"])
def test_phantom_cavities_lie_in_a_ring(tmp_path, layout):
    phantom.write_cohort(tmp_path / layout, layout=layout, patients=2, workers=1)
    studies = layouts.scan(layout, tmp_path / layout)
    assert len(studies) == 2
    for study in studies:
        assert_ring(study)
