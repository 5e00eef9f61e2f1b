"""Prepared folders: CineMA's preprocessing, restartable at any moment, nothing done twice, nothing left behind by a refusal."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import nibabel
import numpy as np
import pyarrow as pa
import pytest

from raylora.config import Data
from raylora.core.errors import InputError, RunError
from raylora.data import acdc, cases, grid, mnms, mnms2, native, obtain, shards
from raylora.data.manifest import PrepareOptions, read_manifest, to_json
from raylora.data.pool import process_map
from raylora.data.prepare import prepare, prepare_study
from raylora.data.preprocess import prepare_case
from raylora.data.shards import PreparedSet, shard_path

SMALL = PrepareOptions(spacing_mm=(1.5, 1.5, 10.0), size=(16, 16, 6))


@pytest.fixture
def studies(tmp_path, write):
    for number in range(1, 5):
        write.acdc(tmp_path / "raw", number, group=("NOR", "DCM")[number % 2])
    return acdc.scan(tmp_path / "raw")


def counting(done):
    def mapper(function, items):
        for item in items:
            done.append(item.study.id)
            yield function(item)

    return mapper


def test_a_prepared_folder(tmp_path, studies):
    prepare(studies, tmp_path / "out", SMALL)
    found = PreparedSet.open(tmp_path / "out")
    assert found.ids == ("patient001", "patient002", "patient003", "patient004")
    row = read_manifest(found.folder).rows[1]
    assert (row.dataset, row.split, row.vendor, row.centre, row.group, row.crop) == (
        "acdc",
        "training",
        "Siemens",
        "acdc-1",
        "NOR",
        "centre",
    )
    assert row.sources[0].path == "database/training/patient002/patient002_frame01.nii.gz"
    study = found.study("patient002")
    ed = study.frames["ED"]
    assert ed.image.shape == ed.label.shape == (16, 16, 6) and study.slices == 4
    assert ed.image.dtype == np.float32 and (ed.image.min(), ed.image.max()) == (0.0, 1.0)
    assert not ed.image[..., 4:].any()
    case = cases.read(studies[1])
    assert np.array_equal(ed.native_label, case.frames["ED"].label)
    assert np.array_equal(ed.label[..., :4], case.frames["ED"].label[4:20, 6:22])  # the middle of 24 x 28
    assert study.native_spacing_mm == pytest.approx((1.5, 1.5, 10.0))


def test_arrays_are_mapped_not_copied(tmp_path, studies):
    prepare(studies, tmp_path / "out", replace(SMALL, size=(16, 16, None)))
    frame = PreparedSet.open(tmp_path / "out").study("patient001").frames["ES"]
    for array in (frame.image, frame.label, frame.native_label):
        assert not array.flags.owndata and not array.flags.writeable


def test_a_second_run_does_nothing_and_a_change_redoes_what_depends_on_it(tmp_path, studies, write):
    out, done = tmp_path / "out", []
    first = prepare(studies, out, SMALL, mapper=counting(done))
    assert len(done) == 4
    stamp = (out / "manifest.json").stat().st_mtime_ns
    silent = {"progress": lambda *_: pytest.fail("nothing was to be done")}
    assert prepare(studies, out, SMALL, mapper=counting(done), **silent) == first and len(done) == 4
    assert (out / "manifest.json").stat().st_mtime_ns == stamp

    padded = prepare(studies, out, replace(SMALL, size=(16, 16, 8)), mapper=counting(done))
    assert len(done) == 4 and padded.data_sha256 != first.data_sha256  # z is padded when a study is opened
    assert PreparedSet.open(out).study("patient001").frames["ED"].image.shape == (16, 16, 8)

    os.utime(studies[0].frames["ED"].image)  # touched, not changed
    prepare(studies, out, SMALL, mapper=counting(done))
    assert len(done) == 4

    image, _ = write.heart(shrink=0.3)
    write.save(studies[1].frames["ED"].image, image)
    write.acdc(tmp_path / "raw", 9)
    (studies[3].frames["ED"].image.parent / "Info.cfg").write_text("ED: 1\nES: 9\nGroup: HCM\n")
    changed = prepare(acdc.scan(tmp_path / "raw"), out, SMALL, mapper=counting(done))
    assert done[4:] == ["patient002", "patient009"]
    assert changed.row("patient004").group == "HCM"

    prepare(studies[:2], out, SMALL, mapper=counting(done))
    assert done[6:] == [] and not shard_path(out, "patient009").exists() and PreparedSet.open(out).ids == ("patient001", "patient002")

    prepare(studies[:2], out, replace(SMALL, crop="label"), mapper=counting(done))
    assert done[6:] == ["patient001", "patient002"]
    assert read_manifest(out).rows[0].crop == "oracle"


class Killed(BaseException):
    """What no handler catches: the process is gone."""


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("moment", [1, 2, 4, 5])
def test_interrupted_at_any_rename(tmp_path, studies, monkeypatch, moment, after):
    """Four shards and a manifest are renamed into place; the end comes right before or right after one of them."""
    out, real, calls = tmp_path / "out", os.replace, []

    def dies(source, target):
        calls.append(target)
        if len(calls) == moment and not after:
            raise Killed
        real(source, target)
        if len(calls) == moment:
            raise Killed

    monkeypatch.setattr(os, "replace", dies)
    with pytest.raises(Killed):
        prepare(studies, out, SMALL)
    monkeypatch.undo()
    complete = moment == 5 and after
    if complete:
        assert len(PreparedSet.open(out).ids) == 4
    else:
        with pytest.raises(InputError, match="its preparation was interrupted"):
            PreparedSet.open(out)
    done = []
    resumed = prepare(studies, out, SMALL, mapper=counting(done))
    assert len(done) == 4 - min(4, moment - (not after))
    assert not list(out.rglob("*.part"))
    assert resumed == prepare(studies, tmp_path / "reference", SMALL)


def test_an_interrupted_change_of_options_does_not_pass_for_complete(tmp_path, studies, monkeypatch):
    out = tmp_path / "out"
    prepare(studies, out, SMALL)

    def dies(function, items):
        yield function(next(iter(items)))
        raise Killed

    with pytest.raises(Killed):
        prepare(studies, out, replace(SMALL, size=(20, 20, 6)), mapper=dies)
    with pytest.raises(InputError, match="its preparation was interrupted"):
        PreparedSet.open(out)
    with pytest.raises(InputError, match="its preparation was interrupted"):  # and not that a download has no studies
        obtain.prepared(Data(dataset="acdc", root=str(out)))


@pytest.mark.slow
def test_killed_for_real(tmp_path, studies):
    code = f"""
import os, signal
from pathlib import Path
from raylora.data import acdc
from raylora.data.manifest import PrepareOptions
from raylora.data.prepare import prepare
def tick(done, total):
    if done == 2: os.kill(os.getpid(), signal.SIGKILL)
prepare(acdc.scan(Path({str(tmp_path / "raw")!r})), Path({str(tmp_path / "out")!r}), PrepareOptions(size=(16, 16, 6)), progress=tick)
"""
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == -signal.SIGKILL
    with pytest.raises(InputError, match="its preparation was interrupted"):
        PreparedSet.open(tmp_path / "out")
    done = []
    prepare(studies, tmp_path / "out", SMALL, mapper=counting(done))
    assert len(done) == 2


@pytest.mark.slow
def test_a_script_that_its_own_workers_run_again_is_told_so(tmp_path, studies):
    script = tmp_path / "script.py"
    script.write_text(f"""
from pathlib import Path
from raylora.data import acdc
from raylora.data.manifest import PrepareOptions
from raylora.data.pool import process_map
from raylora.data.prepare import prepare
prepare(acdc.scan(Path({str(tmp_path / "raw")!r})), Path({str(tmp_path / "out")!r}), PrepareOptions(), mapper=process_map(1))
""")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "must call raylora under `if __name__ == '__main__':`" in done.stderr


def spoil_label(study, write):
    write.save(study.frames["ES"].label, np.full((24, 28, 4), 7, np.uint8))


def test_a_bad_study_ends_it_and_nothing_is_left(tmp_path, studies, write):
    spoil_label(studies[2], write)
    with pytest.raises(InputError, match=r"patient003_frame09_gt.nii.gz: ES label: expected the values \[0, 1, 2, 3\], found 7"):
        prepare(studies, tmp_path / "out", SMALL)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("tolerant", [False, True])
def test_a_full_disk_is_no_studys_fault_and_what_is_whole_is_kept(tmp_path, studies, monkeypatch, tolerant):
    written, write_shard = [], shards.write_shard

    def filling(path, row, frames):
        if len(written) == 2:
            path.with_name(f".{path.name}.1.part").write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        written.append(path.stem)
        return write_shard(path, row, frames)

    monkeypatch.setattr(shards, "write_shard", filling)
    skip = {"problem": lambda id, error: None} if tolerant else {}
    with pytest.raises(RunError, match=r"patient003.arrow: No space left on device: start again, what is done is kept"):
        prepare(studies, tmp_path / "out", SMALL, **skip)
    monkeypatch.undo()
    done = []
    prepare(studies, tmp_path / "out", SMALL, mapper=counting(done))
    assert done == ["patient003", "patient004"] and not list((tmp_path / "out").rglob("*.part"))


def test_bad_studies_are_skipped_and_recorded(tmp_path, studies, write):
    spoil_label(studies[2], write)
    studies[0].frames["ED"].image.write_bytes(b"")
    bad = []
    found = prepare(studies, tmp_path / "out", SMALL, problem=lambda *problem: bad.append(problem), skipped=[("patient099", "no Info.cfg")])
    assert [row.id for row in found.rows] == ["patient002", "patient004"]
    assert [id for id, _ in bad] == ["patient001", "patient003"]
    assert [id for id, _ in found.skipped] == ["patient001", "patient003", "patient099"]
    assert "found 7" in found.skipped[1][1]
    assert read_manifest(tmp_path / "out") == found


def test_headers_are_checked_before_the_first_study_is_prepared(tmp_path, studies):
    studies[3].frames["ED"].image.write_bytes(b"")
    done = []
    with pytest.raises(InputError, match="patient004"):
        prepare(studies, tmp_path / "out", SMALL, mapper=counting(done))
    assert not done


def test_folders_that_are_not_ours_are_left_alone(tmp_path, studies, write):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("x")
    with pytest.raises(InputError, match=r"expected a new, empty or prepared folder, found chapter1\.tex"):
        prepare(studies, tmp_path / "thesis", SMALL)
    prepare(studies, tmp_path / "out", SMALL)
    write.mnms2(tmp_path / "other")
    with pytest.raises(InputError, match="holds prepared studies of acdc"):
        prepare(mnms2.scan(tmp_path / "other"), tmp_path / "out", SMALL)
    assert len(PreparedSet.open(tmp_path / "out").ids) == 4
    with pytest.raises(InputError, match="two studies with the id patient001"):
        prepare([*studies, studies[0]], tmp_path / "out", SMALL)


def test_arrays_are_the_file_s_own_memory(tmp_path, studies):
    """A process that opens many clients' studies holds none of them."""
    prepare(studies, tmp_path / "out", SMALL)
    prepared, before = PreparedSet.open(tmp_path / "out"), pa.total_allocated_bytes()
    opened = [prepared.study(id) for id in prepared.ids]
    kept = sum(frame.image.nbytes for study in opened for frame in study.frames.values())
    assert pa.total_allocated_bytes() - before < 0.01 * kept


def test_what_is_kept_of_many_studies_is_a_part_of_their_manifest(tmp_path, studies):
    prepare(studies, tmp_path / "one", SMALL)
    one = read_manifest(tmp_path / "one")
    many = replace(one, rows=tuple(replace(one.rows[0], id=f"p{i:04d}") for i in range(2000)))
    (tmp_path / "manifest.json").write_text(to_json(many))
    kept = {}
    for read in (PreparedSet, read_manifest):
        tracemalloc.start()
        found = read(tmp_path)
        kept[read], peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert found.data_sha256 == many.data_sha256
        if read is PreparedSet:
            assert found.ids == tuple(row.id for row in many.rows) and peak < 2.5 * kept[read]
    assert kept[PreparedSet] < kept[read_manifest] / 4


def test_a_manifest_may_be_laid_out_otherwise(tmp_path, studies):
    """Row by row, as it is written, or by whoever has read and written it with a tool."""
    prepare(studies, tmp_path / "out", SMALL)
    path, before = tmp_path / "out" / "manifest.json", read_manifest(tmp_path / "out")
    for indent in (None, 0, 1, 4):
        path.write_text(json.dumps(json.loads(path.read_text()), indent=indent))
        assert read_manifest(tmp_path / "out") == before and PreparedSet.open(tmp_path / "out").ids == tuple(r.id for r in before.rows)


def test_damaged_folders_are_refused(tmp_path, studies):
    out = tmp_path / "out"
    prepare(studies, out, SMALL)
    path = shard_path(out, "patient002")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"patient002.arrow: damaged"):
        PreparedSet.open(out).study("patient002")
    path.write_bytes(data[:-1])
    with pytest.raises(InputError, match=r"patient002.arrow: expected \d+ bytes, found \d+"):
        PreparedSet.open(out)
    path.unlink()
    with pytest.raises(InputError, match=r"patient002.arrow: expected \d+ bytes, found no file"):
        PreparedSet.open(out)
    with pytest.raises(InputError, match="no study 'patient099'"):
        read_manifest(out).row("patient099")
    text = json.loads((out / "manifest.json").read_text())
    text["rows"][0]["group"] = "HCM"
    (out / "manifest.json").write_text(json.dumps(text))
    with pytest.raises(InputError, match="do not match its data_sha256"):
        PreparedSet.open(out)
    (out / "manifest.json").write_text("{}")
    with pytest.raises(InputError, match="not a manifest"):
        PreparedSet.open(out)
    with pytest.raises(InputError, match="not a prepared folder"):
        PreparedSet.open(tmp_path / "raw")
    shutil.rmtree(out)
    prepare(studies, out, SMALL)


def test_lost_and_cut_shards_are_made_again_and_litter_is_removed(tmp_path, studies):
    out, done = tmp_path / "out", []
    prepare(studies, out, SMALL)
    shard_path(out, "patient001").unlink()
    shard_path(out, "patient002").write_bytes(shard_path(out, "patient002").read_bytes()[:-1])
    (out / "studies" / ".patient001.arrow.99.part").write_bytes(b"half")
    prepare(studies, out, SMALL, mapper=counting(done))
    assert done == ["patient001", "patient002"]
    assert not list(out.rglob("*.part")) and len(PreparedSet.open(out).ids) == 4


def test_after_a_bad_study_no_other_is_begun(tmp_path, studies, write):
    spoil_label(studies[1], write)
    done = []
    with pytest.raises(InputError, match="patient002"):
        prepare(studies, tmp_path / "out", SMALL, mapper=counting(done))
    assert done == ["patient001", "patient002"]


def test_a_damaged_shard_is_made_again_when_the_manifest_is_gone(tmp_path, studies):
    out = tmp_path / "out"
    prepare(studies, out, SMALL)
    (out / "manifest.json").unlink()
    shard_path(out, "patient002").write_bytes(b"ARROW1")
    done = []
    prepare(studies, out, SMALL, mapper=counting(done))
    assert done == ["patient002"]


def test_two_at_once_do_the_work_once(tmp_path, studies):
    done = []
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: prepare(studies, tmp_path / "out", SMALL, mapper=counting(done)), range(2))
    assert first == second and len(done) == 4


@pytest.mark.slow
def test_processes_give_the_same(tmp_path, studies):
    done = prepare(studies, tmp_path / "two", SMALL, mapper=process_map(2))
    assert done == prepare(studies, tmp_path / "one", SMALL)


def test_an_image_smaller_than_the_crop_is_padded_on_both_sides(tmp_path, studies):
    prepared = prepare_case(cases.read(studies[0]), replace(SMALL, size=(32, 30, None)))
    assert prepared.geometry.start == (-4, -1, 0)
    image = prepared.frames["ED"].image
    assert not image[:4].any() and not image[28:].any() and not image[:, :1].any() and image[4:28, 1:29].any()
    assert image[4:28, 1:29].min() == 0.0 and image.max() == 1.0
    back = native.to_native(prepared.frames["ED"].label, prepared.geometry)
    assert np.array_equal(back, prepared.frames["ED"].native_label)


def test_a_crop_is_shifted_at_the_border():
    whole = (40, 40, 5)
    assert grid.start_around((3, 20), whole, (16, 16)) == (0, 12, 0)
    assert grid.start_around((38, 35), whole, (16, 16)) == (24, 24, 0)
    assert grid.start_around(grid.image_centre(whole), whole, (16, 17)) == (12, 12, 0)


def test_a_crop_that_cuts_the_heart_says_so(tmp_path, studies):
    case = cases.read(studies[0])
    prepared = prepare_case(case, replace(SMALL, size=(8, 8, None)))
    kept = sum(np.count_nonzero(frame.label[8:16, 10:18]) for frame in case.frames.values())
    assert prepared.cut_voxels == sum(np.count_nonzero(frame.label) for frame in case.frames.values()) - kept > 0


def test_an_oracle_crop_without_an_lv_on_the_grid_is_refused_by_name(tmp_path, studies):
    label = str(studies[0].frames["ED"].label)
    with pytest.raises(InputError, match=r"leaves no LV to centre the crop at \(crop: label\)$") as caught:
        prepare_case(cases.read(studies[0]), replace(SMALL, crop="label", spacing_mm=(100.0, 100.0, 10.0), size=(4, 4, None)))
    assert str(caught.value).startswith(label)


def test_a_slice_that_rounding_leaves_out_is_counted(tmp_path, write):
    """Of five slices 5 mm apart two of 10 mm are made: 2.5, rounded to even."""
    image, label = write.heart(shape=(24, 28, 5))
    folder = write.acdc(tmp_path)
    for name in ("01", "09"):
        write.save(folder / f"patient001_frame{name}.nii.gz", image + np.int16(name == "09"), (1.5, 1.5, 5.0))
        write.save(folder / f"patient001_frame{name}_gt.nii.gz", label, (1.5, 1.5, 5.0))
    prepared = prepare_case(cases.read(acdc.scan(tmp_path)[0]), replace(SMALL, spacing_mm=(1.5, 1.5, 10.0), size=(24, 28, None)))
    assert prepared.geometry.shape == (24, 28, 2) and prepared.cut_voxels == 2 * np.count_nonzero(label[..., 4])


def test_the_motion_crop_finds_what_moves(write):
    ed, es = np.zeros((64, 80, 3), np.float32), np.zeros((64, 80, 3), np.float32)
    es[40:46, 20:26] = 1.0
    x, y = grid.motion_centre(ed, es, (2.0, 2.0, 10.0))
    assert abs(x - 42.5) < 1.5 and abs(y - 22.5) < 1.5
    assert grid.motion_centre(ed, ed, (2.0, 2.0, 10.0)) == (31.5, 39.5)


def test_more_slices_than_asked_for_keep_the_middle_ones(tmp_path, studies):
    prepare(studies[:1], tmp_path / "out", replace(SMALL, size=(24, 28, 2)))
    study = PreparedSet.open(tmp_path / "out").study("patient001")
    assert study.frames["ED"].label.shape == (24, 28, 2) and study.geometry.start == (0, 0, 1) and study.slices == 2
    back = native.to_native(study.frames["ED"].label, study.geometry)
    assert np.array_equal(back[..., 1:3], study.frames["ED"].native_label[..., 1:3]) and not back[..., [0, 3]].any()


def test_options_that_make_no_sense_are_refused():
    for options in (
        {"crop": "heart"},
        {"size": (0, 16, 6)},
        {"spacing_mm": (1.0, -1.0, 10.0)},
        {"spacing_mm": (1.0, 1.0, 0.0001)},
        {"clip_percent": (99.0, 1.0)},
    ):
        with pytest.raises(InputError):
            PrepareOptions(**options)


def test_a_grid_too_fine_for_the_study_is_refused_before_it_is_made(studies):
    case = cases.read(studies[0])  # 4 slices of 10 mm
    with pytest.raises(InputError, match=r"patient001_frame01.nii.gz: spacing_mm .* would make \(1024, 1024, 80\) voxels of it") as caught:
        prepare_case(case, PrepareOptions(spacing_mm=(1.5, 1.5, 0.5), size=(1024, 1024, 6)))
    assert "\n" not in str(caught.value)


def test_an_image_without_contrast_is_refused(tmp_path, studies, write):
    write.save(studies[0].frames["ES"].image, np.full((24, 28, 4), 5, np.int16))
    _, reason = prepare_study(type("Job", (), {"study": studies[0], "out": tmp_path, "options": SMALL}))
    assert "frame09.nii.gz: ES: no contrast" in reason


@pytest.mark.slow
def test_two_hundred_studies_are_looked_through_in_a_moment(tmp_path, write):
    """The second run of `make`-like preparation reads no voxel: sizes and times of the files are enough."""
    for number in range(1, 101):
        write.acdc(tmp_path / "raw", number, shape=(20, 20, 2))
    options = replace(SMALL, size=(12, 12, 2))
    prepare(acdc.scan(tmp_path / "raw"), tmp_path / "out", options)
    seconds = []
    while len(seconds) < 5 and min(seconds, default=2.0) >= 1.5:  # 100 studies here; 200 may take 3 s
        start = time.perf_counter()
        prepare(acdc.scan(tmp_path / "raw"), tmp_path / "out", options)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 1.5


def test_acdc_patient001_is_preprocessed_as_by_cinema(shared):
    """The same grid, the same crop, and the intensities up to the clipping that the redistributed file has been through."""
    study = acdc.scan(shared / "real/acdc")[0]
    prepared = prepare_case(cases.read(study), PrepareOptions(spacing_mm=(1.0, 1.0, 10.0), size=(192, 192, None), crop="label"))
    for name in ("ED", "ES"):
        reference = nibabel.load(shared / f"real/cinema_preprocessed/acdc_patient001_sax_{name.lower()}.nii.gz")
        image = prepared.frames[name].image
        assert image.shape == reference.shape and np.allclose(prepared.geometry.prepared_affine(), reference.affine, atol=0.01)
        assert np.corrcoef(image.ravel(), reference.get_fdata().ravel())[0, 1] > 0.999


@pytest.mark.slow
@pytest.mark.parametrize("spacing_mm", [(1.5, 1.5, 10.0), (1.0, 1.0, 10.0)])
def test_real_volumes_there_and_back(shared, spacing_mm):
    """Within 3 % where slices are 10 mm thick and the crop has cut nothing; oblique axes stay oblique."""
    found = [*acdc.scan(shared / "real/acdc")[::5], *mnms.scan(shared / "real/mnms"), *mnms2.scan(shared / "real/mnms2")]
    options = PrepareOptions(spacing_mm=spacing_mm, size=(round(240 / spacing_mm[0]), round(240 / spacing_mm[1]), 16), crop="motion")
    checked = 0
    for study in found:
        case = cases.read(study)
        prepared = prepare_case(case, options)
        affine = prepared.geometry.prepared_affine()
        assert np.allclose(affine[:3, :3] / spacing_mm, case.affine[:3, :3] / case.spacing_mm, atol=1e-3)
        if case.spacing_mm[2] < 9.5 or prepared.cut_voxels:
            continue
        for frame in prepared.frames.values():
            back = native.to_native(frame.label, prepared.geometry)
            for value in cases.STRUCTURES.values():
                true = np.count_nonzero(frame.native_label == value)
                assert abs(np.count_nonzero(back == value) - true) <= 0.03 * true, study.id
                checked += 1
    assert checked >= 50


def test_a_manifest_is_a_line_a_row_and_rows_are_small(prepared_folder):
    """Every process of a run reads it: thousands of studies are not to take their memory."""
    text = (prepared_folder / "manifest.json").read_text()
    rows = read_manifest(prepared_folder).rows
    assert len([line for line in text.splitlines() if '"shard_sha256"' in line]) == len(rows) > 1
    assert not any(hasattr(item, "__dict__") for row in rows for item in (row, row.geometry, *row.sources))
    assert len({id(row.dataset) for row in rows}) == 1 and len({id(row.vendor) for row in rows}) == len({row.vendor for row in rows})


def test_the_wrong_data_set_is_named_by_what_it_looks_like(tmp_path, write):
    write.acdc(tmp_path / "a")
    write.mnms(tmp_path / "m")
    for name, asked, there in (("a", "mnms", "acdc"), ("m", "acdc", "mnms")):
        with pytest.raises(InputError, match=rf"; it looks like {there} \(data\.dataset={there}\)$"):
            obtain.prepared(Data(dataset=asked, root=str(tmp_path / name), cache=str(tmp_path / "cache")))
    with pytest.raises(InputError, match=r"found nothing \(data\.root=/path/to/acdc\)$"):
        obtain.prepared(Data(dataset="acdc"))
