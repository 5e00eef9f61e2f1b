"""Hostile and broken files: each refused in one line that names file and reason, quickly, without the memory it claims."""

import gzip
import resource
import subprocess
import sys
import time

import nibabel
import numpy as np
import pytest

from raylora.core.errors import InputError
from raylora.data import nifti

SHAPE = (12, 10, 4)


def header(shape=SHAPE, dtype=np.int16, kind=nibabel.Nifti1Header, **fields):
    """A raw header, not checked by nibabel."""
    raw = kind()
    raw.set_data_dtype(dtype)
    raw["dim"][: 1 + len(shape)] = [len(shape), *shape]
    raw["pixdim"][1:4] = (1.5, 1.5, 10.0)
    raw["vox_offset"] = 352 if kind is nibabel.Nifti1Header else 544
    raw["magic"] = b"n+1" if kind is nibabel.Nifti1Header else raw["magic"]
    raw["sform_code"], raw["qform_code"] = 0, 0
    for name, value in fields.items():
        raw[name] = value
    return raw.binaryblock + b"\0" * 4


def voxels(shape=SHAPE, dtype=np.int16):
    return np.arange(np.prod(shape)).astype(dtype).tobytes()


def pixdim(*spacing):
    return [1, *spacing, 1, 0, 0, 0]


def bomb(path, megabytes):
    """A gzip of zeros after a header of a few voxels: it is written in pieces, and inflates about a thousandfold."""
    with gzip.open(path, "wb") as file:
        file.write(header() + voxels())
        for _ in range(megabytes):
            file.write(bytes(1 << 20))


def honest_bomb(path):
    """The same, but the header owns up to it."""
    shape = (512, 512, 16, 8)
    with gzip.open(path, "wb", compresslevel=9) as file:
        file.write(header(shape))
        for _ in range(64):
            file.write(bytes(1 << 20))


def write(path, data):
    with gzip.open(path, "wb") as file:
        file.write(data)


def cut(path, share):
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])


def corrupt(path):
    write(path, header((64, 64, 4)) + np.random.default_rng(0).integers(0, 99, 64 * 64 * 4).astype(np.int16).tobytes())
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 8] = b"\xff" * 8
    path.write_bytes(data)


HUGE = (32767, 32767, 32767)
FAULTS = {
    "empty file": (lambda p: p.write_bytes(b""), "expected gzip"),
    "empty gzip": (lambda p: write(p, b""), "not a NIfTI file"),
    "text": (lambda p: p.write_bytes(b"hello, this is no image" * 99), "expected gzip"),
    "noise in gzip": (lambda p: write(p, bytes(range(256)) * 9), "not a NIfTI file"),
    "truncated gzip": (lambda p: (write(p, header() + voxels()), cut(p, 0.8)), "truncated"),
    "only the header": (lambda p: write(p, header()), "truncated: the header promises 1312 bytes"),
    "corrupt gzip": (corrupt, "truncated or corrupt gzip"),
    "32767 cubed": (lambda p: write(p, header(HUGE) + voxels()), r"claims \(32767, 32767, 32767\) voxels"),
    "60000 cubed": (lambda p: write(p, header((60000,) * 3, kind=nibabel.Nifti2Header)), r"claims \(60000, 60000, 60000\) voxels"),
    "many frames": (lambda p: write(p, header((512, 512, 60, 32767))), "in 32767 frames"),
    "bomb": (lambda p: bomb(p, 64), "holds more data than the 1312 bytes its header promises"),
    "honest bomb": (honest_bomb, r"its gzip would inflate 10\d\d-fold"),
    "a large one cut off": (
        lambda p: (write(p, header((256, 256, 40)) + bytes(2 * 256 * 256 * 40)), cut(p, 0.5)),
        "truncated or corrupt gzip",
    ),
    "NaN": (lambda p: write(p, header(dtype=np.float32) + np.full(SHAPE, np.nan, np.float32).tobytes()), "480 of 480 voxels .* NaN"),
    "infinite": (lambda p: write(p, header(dtype=np.float64) + np.full(SHAPE, np.inf).tobytes()), "NaN or infinite"),
    "too large for float32": (lambda p: write(p, header(dtype=np.float64) + np.full(SHAPE, 1e300).tobytes()), "NaN or infinite"),
    "infinite scaling": (lambda p: write(p, header(scl_slope=np.inf) + voxels()), "intensity scaling is not finite"),
    "zero spacing": (lambda p: write(p, header(pixdim=pixdim(1.5, 0.0, 10.0)) + voxels()), "expected a positive spacing"),
    "negative spacing": (lambda p: write(p, header(pixdim=pixdim(1.5, -1.5, 10.0)) + voxels()), r"found \(1.5, -1.5, 10.0\)"),
    "NaN spacing": (lambda p: write(p, header(pixdim=pixdim(np.nan, 1.5, 10.0)) + voxels()), "expected a positive spacing"),
    "singular affine": (
        lambda p: write(p, header(sform_code=1, srow_x=[1.5, 0, 0, 0], srow_y=[1.5, 0, 0, 0], srow_z=[0, 0, 10, 0]) + voxels()),
        "the affine is singular",
    ),
    "NaN affine": (lambda p: write(p, header(sform_code=1, srow_x=[np.nan] * 4) + voxels()), "the affine is singular or not finite"),
    "broken quaternion": (lambda p: write(p, header(qform_code=1, quatern_b=7.0) + voxels()), "the affine cannot be read"),
    "negative size": (lambda p: write(p, header((12, -10, 4)) + voxels()), "expected"),
    "nine dimensions": (lambda p: write(p, header(dim=[9, 2, 2, 2, 2, 2, 2, 2]) + voxels()), "says 9 dimensions"),
    "five dimensions": (lambda p: write(p, header((2, 2, 2, 1, 3)) + voxels()), r"expected \(x, y, z\) or"),
    "complex": (lambda p: write(p, header(dtype=np.complex64) + voxels()), "found complex64"),
    "unknown type": (lambda p: write(p, header(datatype=77) + voxels()), "unknown data type code 77"),
    "offset": (lambda p: write(p, header(vox_offset=1e9) + voxels()), "the voxels start at byte 1e\\+09"),
    "two files": (lambda p: write(p, header(magic=b"ni1") + voxels()), "not a single-file NIfTI"),
    "a folder": (lambda p: p.mkdir(), "regular file"),
    "missing": (lambda p: None, "cannot be read: No such file"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_refused(tmp_path, name):
    path = tmp_path / "study.nii.gz"
    spoil, message = FAULTS[name]
    spoil(path)
    start = time.perf_counter()
    with pytest.raises(InputError, match=message) as caught:
        found = nifti.read_header(path)
        nifti.check_complete(found)
        nifti.read_frames(found, [0])
    assert time.perf_counter() - start < 60
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


@pytest.mark.slow
def test_refused_within_the_memory(tmp_path):
    """All of them in one process whose address space ends 500 MB above what it uses when idle."""
    paths = [tmp_path / str(number) / "study.nii.gz" for number, _ in enumerate(FAULTS)]
    for path, (spoil, _) in zip(paths, FAULTS.values(), strict=True):
        path.parent.mkdir()
        spoil(path)
    code = f"""
import resource, sys
from raylora.core.errors import InputError
from raylora.data import nifti
idle = int(open("/proc/self/statm").read().split()[0]) * {resource.getpagesize()}
resource.setrlimit(resource.RLIMIT_AS, (idle + 500_000_000,) * 2)
for path in sys.argv[1:]:
    try:
        nifti.read_frames(nifti.read_header(path), [0])
    except InputError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", code, *map(str, paths)], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert [said.startswith(str(path)) for said, path in zip(done.stdout.splitlines(), paths, strict=True)] == [True] * len(FAULTS)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float64])
def test_what_nibabel_writes_is_read_as_nibabel_reads_it(tmp_path, suffix, kind, dtype):
    path = tmp_path / f"study{suffix}"
    affine = np.array([[-0.9, 0.8, 0, 7], [1.2, 0.6, 0, -3], [0, 0, 10, 1], [0, 0, 0, 1.0]])
    image = kind(np.random.default_rng(0).integers(0, 99, (6, 5, 4, 3)).astype(dtype), affine)
    nibabel.save(image, path)
    head = nifti.read_header(path)
    nifti.check_complete(head)
    frames = nifti.read_frames(head, [2, 0])
    assert sorted(frames) == [0, 2] and np.array_equal(frames[2], image.get_fdata()[..., 2])
    assert np.allclose(head.affine, affine) and np.allclose(head.spacing_mm, (1.5, 1.0, 10.0))


def test_scaling_and_byte_order(tmp_path):
    path = tmp_path / "study.nii.gz"
    write(path, header(scl_slope=2.0, scl_inter=-1.0) + voxels())
    assert nifti.read_frames(nifti.read_header(path), [0])[0][1, 0, 0] == 1.0  # x runs fastest: voxel 1, times 2, minus 1
    swapped = nibabel.Nifti1Image(np.arange(8, dtype=np.int16).reshape(2, 2, 2), np.eye(4)).as_reoriented([[0, 1], [1, 1], [2, 1]])
    swapped = nibabel.Nifti1Image(swapped.get_fdata().astype(">i2"), np.eye(4), swapped.header.as_byteswapped(">"))
    nibabel.save(swapped, path)
    assert np.array_equal(nifti.read_frames(nifti.read_header(path), [0])[0], np.arange(8).reshape(2, 2, 2))


def test_truncated_without_gzip(tmp_path):
    path = tmp_path / "study.nii"
    path.write_bytes((header() + voxels())[:-1])
    with pytest.raises(InputError, match="truncated: expected 1312 bytes, found 1311"):
        nifti.read_header(path)


def test_a_label_may_be_all_zero(tmp_path):
    """M&Ms' empty label files inflate a thousandfold; their size is bounded by their image's."""
    path = tmp_path / "label.nii.gz"
    write(path, header((256, 256, 12, 4)) + bytes(2 * 256 * 256 * 12 * 4))
    with pytest.raises(InputError, match="inflate"):
        nifti.read_header(path)
    assert not nifti.read_frames(nifti.read_header(path, max_ratio=float("inf")), [3])[3].any()
