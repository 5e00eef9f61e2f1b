"""NIfTI files from outside, read with suspicion: the header first, and nothing is allocated that the file does not justify.

nibabel parses the header. The voxels are streamed by ourselves, frame by frame, so that a 4-D cine costs the memory of the frames
that are wanted and a gzip that inflates to more than its header promises is stopped where the promise ends.
"""

from __future__ import annotations

import gzip
import os
import stat
import zlib
from collections.abc import Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from raylora.core.errors import InputError

if TYPE_CHECKING:
    import nibabel

MAX_FRAME_VOXELS = 1 << 24  # 512 x 512 x 64
MAX_FILE_BYTES = 1 << 30  # inflated
MAX_GZIP_RATIO = 200  # an image with noise in it reaches 3, one on a black background 20
RATIO_MATTERS_BYTES = 1 << 20  # below this size a ratio harms nobody
MAX_SLACK_BYTES = 4096  # some writers pad the end
MAX_OFFSET_BYTES = 1 << 20
MAX_SPACING_MM = 1000.0
CHUNK_BYTES = 1 << 18
HEADERS = {348: "Nifti1Header", 540: "Nifti2Header"}  # bytes -> nibabel's class
BROKEN = (EOFError, zlib.error, gzip.BadGzipFile)


@dataclass(frozen=True, kw_only=True)
class Header:
    """What a NIfTI file says of itself, checked."""

    path: Path
    shape: tuple[int, int, int]  # voxels along x, y, z
    frames: int  # along t; 1 for a 3-D file
    spacing_mm: tuple[float, float, float]
    affine: np.ndarray  # (4, 4) voxel -> mm
    placed: bool  # whether the file says where it is: tools that do not know write no code, or an affine of ones
    dtype: np.dtype
    offset: int  # bytes before the first voxel
    slope: float
    intercept: float

    @property
    def frame_bytes(self) -> int:
        return int(np.prod(self.shape)) * self.dtype.itemsize

    @property
    def total_bytes(self) -> int:
        return self.offset + self.frames * self.frame_bytes


def read_header(path: Path, *, max_ratio: float = MAX_GZIP_RATIO) -> Header:
    """The checked header of a ``.nii`` or ``.nii.gz`` file. Reads a few hundred bytes.

    Raises InputError: not a regular file, not NIfTI, dimensions, spacing, affine, data type or size out of bounds, or a gzip that
    would have to inflate more than ``max_ratio`` times.
    """
    path = Path(path)
    with opened(path) as (stream, stored_bytes):
        raw = _parse(path, stream)
    header = Header(path=path, **_geometry(path, raw), **_encoding(path, raw))
    _check_size(header, stored_bytes, max_ratio)
    return header


def read_frames(header: Header, wanted: Iterable[int]) -> dict[int, np.ndarray]:
    """The frames ``wanted`` (zero-based time indices) as {index: (x, y, z) array}, scaled by the header's slope and intercept.

    Integer files without scaling keep their type, everything else is float32. The file is read to its end, so that a truncated or
    corrupt one (gzip checksum) is found even where the wanted frames are whole. Raises InputError, also for NaN and infinite voxels.
    """
    wanted = sorted(set(wanted))
    if wanted and not 0 <= wanted[0] <= wanted[-1] < header.frames:
        raise InputError(f"{header.path}: frame {wanted[-1]} (zero-based) is asked for, the file has {header.frames}")
    found: dict[int, np.ndarray] = {}
    with opened(header.path) as (stream, _):
        _skip(header, stream, header.offset)
        for index in range(header.frames):
            if index in wanted:
                found[index] = _decode(header, _take(header, stream, header.frame_bytes), index)
            else:
                _skip(header, stream, header.frame_bytes)
        if len(stream.read(MAX_SLACK_BYTES + 1)) > MAX_SLACK_BYTES:
            raise InputError(f"{header.path}: holds more data than the {header.total_bytes} bytes its header promises")
    return found


def check_complete(header: Header) -> None:
    """Refuse a truncated file without inflating it where possible: a gzip's last four bytes are its inflated size modulo 2^32."""
    if header.path.name.endswith(".gz"):
        if _promised_bytes(header.path) != header.total_bytes % 2**32:
            read_frames(header, ())  # several gzip members, padding, or broken: reading tells
    elif header.path.stat().st_size < header.total_bytes:
        raise InputError(f"{header.path}: truncated: expected {header.total_bytes} bytes, found {header.path.stat().st_size}")


def _promised_bytes(path: Path) -> int:
    """What the end of a gzip says that it inflates to, modulo 2^32."""
    with open(path, "rb") as file:
        file.seek(-4, os.SEEK_END)
        return int.from_bytes(file.read(4), "little")


@contextmanager
def opened(path: Path):
    """The file's (inflated) bytes as a stream, and its size on disk; what a broken gzip or disk raises becomes an InputError."""
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise InputError(f"{path}: expected a regular file")
        with open(path, "rb") as file:
            if not path.name.endswith(".gz"):
                yield file, status.st_size
            elif file.read(2) != b"\x1f\x8b":
                raise InputError(f"{path}: expected gzip (the name ends in .gz), found something else")
            else:
                file.seek(0)
                with gzip.GzipFile(fileobj=file) as stream:
                    yield stream, status.st_size
    except BROKEN as error:
        raise InputError(f"{path}: truncated or corrupt gzip: {error or type(error).__name__}") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None


def _parse(path: Path, stream: BinaryIO) -> nibabel.Nifti1Header:
    import nibabel  # once a file is there to be read: most processes see prepared data alone

    start = stream.read(540)
    kinds = [(size, order) for size in HEADERS for order in ("little", "big") if int.from_bytes(start[:4], order) == size]
    if not kinds or len(start) < kinds[0][0]:
        raise InputError(f"{path}: not a NIfTI file (a header of 348 or 540 bytes was expected, {len(start)} bytes found)")
    size, order = kinds[0]
    raw = getattr(nibabel, HEADERS[size])(start[:size], "<" if order == "little" else ">", check=False)
    if bytes(raw["magic"])[:3] not in (b"n+1", b"n+2"):
        raise InputError(f"{path}: not a single-file NIfTI (magic {bytes(raw['magic'])[:3]!r}, expected b'n+1' or b'n+2')")
    return raw


def _geometry(path: Path, raw: nibabel.Nifti1Header) -> dict:
    dims = [int(n) for n in raw["dim"]]
    if not 1 <= dims[0] <= 7:
        raise InputError(f"{path}: the header says {dims[0]} dimensions, expected 3 or 4")
    sizes = dims[1 : dims[0] + 1] + [1] * (4 - dims[0])
    if min(sizes) < 1 or any(n != 1 for n in sizes[4:]):
        raise InputError(f"{path}: expected (x, y, z) or (x, y, z, t), the header says {tuple(sizes)}")
    spacing = [float(s) for s in raw["pixdim"][1:4]]
    if not all(0.0 < s <= MAX_SPACING_MM for s in spacing):  # also false for NaN
        raise InputError(f"{path}: expected a positive spacing of at most {MAX_SPACING_MM:g} mm, found {tuple(spacing)}")
    with np.errstate(all="ignore"):
        try:
            affine = np.asarray(raw.get_best_affine(), np.float64)
        except Exception as error:  # a quaternion of a length above one
            raise InputError(f"{path}: the affine cannot be read: {error}") from None
        volume = abs(np.linalg.det(affine[:3, :3])) if np.isfinite(affine).all() else 0.0
    if not volume > 1e-6 * float(np.prod(spacing)):
        raise InputError(f"{path}: the affine is singular or not finite")
    placed = bool(raw["sform_code"] or raw["qform_code"]) and not np.array_equal(np.abs(affine[:3, :3]), np.eye(3))
    return {"shape": tuple(sizes[:3]), "frames": sizes[3], "spacing_mm": tuple(spacing), "affine": affine, "placed": placed}


def _encoding(path: Path, raw: nibabel.Nifti1Header) -> dict:
    try:
        dtype = np.dtype(raw.get_data_dtype())
    except Exception:  # an unknown code
        raise InputError(f"{path}: unknown data type code {int(raw['datatype'])}") from None
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise InputError(f"{path}: expected integer or real voxels of at most 8 bytes, found {dtype}")
    offset = float(raw["vox_offset"])
    if not float(raw.sizeof_hdr) <= offset <= MAX_OFFSET_BYTES:
        raise InputError(f"{path}: the voxels start at byte {offset:g}, expected {raw.sizeof_hdr} to {MAX_OFFSET_BYTES}")
    slope, intercept = float(raw["scl_slope"]), float(raw["scl_inter"])
    if slope == 0.0 or np.isnan(slope):  # the standard's "no scaling"
        slope, intercept = 1.0, 0.0
    intercept = 0.0 if np.isnan(intercept) else intercept
    if not np.isfinite([slope, intercept]).all():
        raise InputError(f"{path}: intensity scaling is not finite (slope {slope}, intercept {intercept})")
    return {"dtype": dtype, "offset": int(offset), "slope": slope, "intercept": intercept}


def _check_size(header: Header, stored_bytes: int, max_ratio: float) -> None:
    voxels = int(np.prod([int(n) for n in header.shape], dtype=object))
    total = voxels * header.frames * header.dtype.itemsize
    if voxels > MAX_FRAME_VOXELS or total > MAX_FILE_BYTES:
        raise InputError(
            f"{header.path}: the header claims {header.shape} voxels in {header.frames} frames ({total} bytes), "
            f"at most {MAX_FRAME_VOXELS} voxels a frame and {MAX_FILE_BYTES} bytes are read"
        )
    if header.path.name.endswith(".gz"):
        if total > RATIO_MATTERS_BYTES and total > max_ratio * stored_bytes:
            if _promised_bytes(header.path) != header.total_bytes % 2**32:
                raise InputError(
                    f"{header.path}: truncated or corrupt gzip: its header promises {header.total_bytes} bytes, "
                    f"it has {stored_bytes} and does not end as a gzip of so many does"
                )
            fold = total // stored_bytes
            raise InputError(f"{header.path}: its gzip would inflate {fold}-fold to {total} bytes, at most {max_ratio:g}-fold is read")
    elif stored_bytes < header.total_bytes:
        raise InputError(f"{header.path}: truncated: expected {header.total_bytes} bytes, found {stored_bytes}")


def _take(header: Header, stream: BinaryIO, count: int) -> bytearray:
    """Exactly ``count`` bytes, in chunks: memory grows with what is really there, not with what is claimed."""
    data = bytearray()
    while len(data) < count:
        chunk = stream.read(min(CHUNK_BYTES, count - len(data)))
        if not chunk:
            raise InputError(f"{header.path}: truncated: the header promises {header.total_bytes} bytes, the data end before that")
        data += chunk
    return data


def _skip(header: Header, stream: BinaryIO, count: int) -> None:
    while count:
        chunk = stream.read(min(CHUNK_BYTES, count))
        if not chunk:
            raise InputError(f"{header.path}: truncated: the header promises {header.total_bytes} bytes, the data end before that")
        count -= len(chunk)


def _decode(header: Header, data: bytearray, index: int) -> np.ndarray:
    frame = np.frombuffer(data, header.dtype).reshape(header.shape, order="F")  # x runs fastest
    scaled = header.slope != 1.0 or header.intercept != 0.0
    if frame.dtype.kind in "iu" and not scaled:
        return frame
    with np.errstate(all="ignore"):  # what overflows is refused just below
        frame = (frame * np.float64(header.slope) + header.intercept if scaled else frame).astype(np.float32)
        finite = np.isfinite(frame.sum(dtype=np.float64))
    if not finite:
        bad = int(frame.size - np.isfinite(frame).sum())
        raise InputError(f"{header.path}: {bad} of {frame.size} voxels of frame {index} are NaN or infinite")
    return frame
