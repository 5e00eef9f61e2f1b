"""Features on disk: what is written is read, whatever is damaged or foreign is missing, and the folder keeps its bound."""

import multiprocessing
import os

import numpy as np
import pytest

from raylora.data.features import SCANS, FeatureFolder, cache_report

KEY, OTHER, IMAGE = "k" * 64, "o" * 64, "i" * 64
ARRAYS = (
    np.arange(30, dtype=np.float32).reshape(5, 6) / 7,
    np.array([1, 65535], np.uint16),
    np.float64(np.pi) * np.ones((2, 1, 3)),
)


def same(found, expected=ARRAYS):
    return len(found) == len(expected) and all(
        a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes() for a, b in zip(found, expected, strict=True)
    )


@pytest.fixture
def kept(tmp_path):
    folder = FeatureFolder(tmp_path / "features")
    folder.write(KEY, IMAGE, ARRAYS)
    return folder


def test_what_is_written_is_read_mapped_and_cannot_be_changed(kept):
    found = kept.read(KEY, IMAGE)
    assert same(found) and not any(array.flags.writeable for array in found)
    with open("/proc/self/maps", encoding="utf-8") as maps:
        assert str(kept.path(KEY, IMAGE)) in maps.read(), "the file itself is mapped"
    fortran = np.asfortranarray(ARRAYS[0])
    kept.write(KEY, "f" * 64, [fortran])
    assert same(kept.read(KEY, "f" * 64), [ARRAYS[0]])


def test_another_computation_or_image_is_another_entry(kept):
    assert kept.read(OTHER, IMAGE) is None and kept.read(KEY, "x" * 64) is None
    assert cache_report(kept.folder).entries == 1 and cache_report(kept.folder / "nowhere").entries == 0


@pytest.mark.parametrize("where", [0.1, 0.5, 0.9])
def test_a_byte_that_changed_is_noticed(kept, where):
    path = kept.path(KEY, IMAGE)
    data = bytearray(path.read_bytes())
    start = data.index(ARRAYS[2].tobytes())
    data[start + int(where * ARRAYS[2].nbytes)] ^= 1
    path.write_bytes(data)
    assert kept.read(KEY, IMAGE) is None
    kept.write(KEY, IMAGE, ARRAYS)
    assert same(kept.read(KEY, IMAGE))


@pytest.mark.parametrize(("was", "now"), [(b"<f4", b">f4"), (b"[5, 6]", b"[6, 5]")])
def test_a_type_or_shape_that_changed_is_noticed(kept, was, now):
    path = kept.path(KEY, IMAGE)
    data = path.read_bytes()
    assert was in data
    path.write_bytes(data.replace(was, now))
    assert kept.read(KEY, IMAGE) is None


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_torn_file_is_noticed(kept, share):
    path = kept.path(KEY, IMAGE)
    os.truncate(path, int(share * path.stat().st_size))
    assert kept.read(KEY, IMAGE) is None


def test_an_entry_under_a_wrong_name_is_noticed(kept):
    stray = kept.path(OTHER, IMAGE)
    stray.parent.mkdir()
    kept.path(KEY, IMAGE).rename(stray)
    assert kept.read(OTHER, IMAGE) is None


def test_the_oldest_make_room_and_what_is_read_is_young(tmp_path):
    block = np.ones(25_000, np.float32)  # 100 kB
    folder = FeatureFolder(tmp_path, bound_bytes=1_050_000)
    for i in range(10):
        folder.write(KEY, f"{i:02d}" * 32, [block])
        os.utime(folder.path(KEY, f"{i:02d}" * 32), (i, i))
    assert folder.read(KEY, "00" * 32) is not None  # the oldest, now the youngest
    mapped = folder.read(KEY, "01" * 32)
    os.utime(folder.path(KEY, "01" * 32), (1, 1))
    for i in range(10, 12):
        folder.write(KEY, f"{i:02d}" * 32, [block])
    left = {path.name[:2] for path in tmp_path.rglob("*.arrow")}
    assert {"01", "02"}.isdisjoint(left) and {"00", "11"} <= left
    report = cache_report(tmp_path, folder.bound_bytes)
    assert report.entries == len(left) and report.bytes <= report.bound_bytes and report.bound_bytes == 1_050_000
    assert same(mapped, [block]), "what a process has mapped outlives its file"


def test_what_dead_processes_left_is_removed(kept):
    part = kept.path(KEY, IMAGE).with_name(".x.arrow.1.0.part")
    part.write_bytes(b"x")
    kept.make_room()
    assert part.exists(), "its process may still be writing"
    os.utime(part, (0, 0))
    kept.make_room()
    assert not part.exists() and same(kept.read(KEY, IMAGE))


def _write_often(folder, barrier):
    barrier.wait()
    for _ in range(30):
        FeatureFolder(folder).write(KEY, IMAGE, ARRAYS)
        assert same(FeatureFolder(folder).read(KEY, IMAGE))


def test_processes_that_write_the_same_entry_at_once_do_no_harm(tmp_path):
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(3)
    processes = [context.Process(target=_write_often, args=(tmp_path, barrier)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert [path.suffix for path in tmp_path.rglob("*.*")] == [".arrow"]


def test_the_folder_is_measured_again_as_it_grows(tmp_path, monkeypatch):
    folder, measured = FeatureFolder(tmp_path, bound_bytes=100 * SCANS), []
    monkeypatch.setattr(folder, "make_room", lambda: measured.append(1))
    for i in range(4):
        folder.write(KEY, f"{i:064d}"[::-1], [np.zeros(15, np.float32)])  # 60 bytes
    assert len(measured) == 2, "at the first entry, and after more than a thirty-second of the bound"
