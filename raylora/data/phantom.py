"""A synthetic cohort: studies as arrays, and whole cohorts as NIfTI folders in the layouts of the public data sets.

Every study follows from (seed, patient number): neither the size of the cohort nor the number of workers changes one.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from types import MappingProxyType

import numpy as np

from raylora.core.errors import InputError
from raylora.core.seeds import generator
from raylora.data import phantom_anatomy as anatomy
from raylora.data import phantom_scene as scene
from raylora.data.phantom_layouts import LAYOUTS, Placed
from raylora.data.phantom_patient import GROUPS, Patient, patient
from raylora.data.phantom_scanner import CENTRES, MIX, VENDORS, acquire, look, oriented, varied

RESOLUTION = (0.7548776662466927, 0.5698402909980532)  # the R2 sequence (Roberts 2018): even shares in every prefix of the numbers
SUBPLANES = (-1 / 3, 0.0, 1 / 3)  # of a slice's thickness: partial volume along z
SEPTUM = np.deg2rad(168)  # direction of the septum from the axis, in the scene
OFF_CENTRE_MM = 20.0  # at most, in x and in y


@dataclass(frozen=True, kw_only=True)
class PhantomStudy:
    """One examination. Arrays are read-only."""

    number: int
    patient: Patient
    group: str
    vendor: str
    centre: str
    images: Mapping[str, np.ndarray]  # "ED", "ES" -> (x, y, z) int16
    labels: Mapping[str, np.ndarray]  # the same -> (x, y, z) uint8, RV 1, MYO 2, LV 3
    affine: np.ndarray  # (4, 4), voxel -> mm
    spacing_mm: tuple[float, float, float]
    volumes_ml: Mapping[str, Mapping[str, float]]  # frame -> {"LV", "MYO", "RV"}: by construction, before pixels
    lv_ef_percent: float
    rv_ef_percent: float


def assign(seed: int, number: int, vendors: Sequence[str] | None = None) -> tuple[str, str, str]:
    """Vendor, centre and group of a patient: each vendor its own share of patients and its own mix of groups."""
    known = tuple(vendors or VENDORS)
    if unknown := [v for v in known if v not in VENDORS]:
        raise InputError(f"vendors: expected some of {', '.join(VENDORS)}, found {unknown[0]!r}")
    start = generator(seed, "phantom-assignment").random(2)
    u, v = ((start + number * np.array(RESOLUTION)) % 1).tolist()
    shares = {c: share for c, (vendor, share, _) in CENTRES.items() if vendor in known}
    centre = _pick(shares, u)
    vendor = CENTRES[centre][0]
    return vendor, centre, _pick(MIX[vendor], v)


def _pick(shares: Mapping[str, float], quantile: float) -> str:
    cumulative = np.cumsum(list(shares.values()))
    return list(shares)[int(np.searchsorted(cumulative / cumulative[-1], quantile, side="right").clip(0, len(shares) - 1))]


def study(seed: int, number: int, *, vendor: str | None = None, group: str | None = None, shift: float = 1.0, vendors: Sequence[str] | None = None) -> PhantomStudy:
    """Patient ``number`` of the population ``seed``, examined.

    Args:
        vendor, group: instead of the assigned ones; the person and the slices' noise stay the same.
        shift: strength of the vendor shift (see `phantom_scanner.look`), 0 or more.
        vendors: the vendors of the cohort, all four by default.

    Raises:
        InputError: an unknown vendor or group, a negative shift or number.
    """
    if not (np.isfinite(shift) and shift >= 0):
        raise InputError(f"shift: expected a number of 0 or more, found {shift}")
    if number < 0:
        raise InputError(f"number: expected 0 or more, found {number}")
    if group is not None and group not in GROUPS:
        raise InputError(f"group: expected one of {', '.join(GROUPS)}, found {group!r}")
    vendor, centre, assigned = assign(seed, number, vendors if vendor is None else (vendor,))
    person = patient(seed, number, group or assigned)
    return _examine(person, number, vendor, centre, shift, generator(seed, "phantom-examination", number))


def _examine(person: Patient, number: int, vendor: str, centre: str, shift: float, rng: np.random.Generator) -> PhantomStudy:
    scanner = varied(look(vendor, centre, shift), rng)
    body = scene.body(rng, person.weight_kg / (person.height_cm / 100) ** 2)
    texture = scene.grain(rng)
    septum = SEPTUM + float(np.clip(rng.normal(0, 0.16), -0.35, 0.35))

    # Slices from below the apex to above the base.
    length_mm = anatomy.length_mm(person)
    first_mm = -(0.4 + 0.6 * rng.random() + 0.5 * max(scanner.extra_slices - 1, 0)) * scanner.slice_mm
    count = int(np.ceil((length_mm - first_mm) / scanner.slice_mm + 0.3 + scanner.extra_slices * rng.random()))
    slices_mm = first_mm + scanner.slice_mm * np.arange(count)
    hearts = dict(zip(("ED", "ES"), anatomy.beat(person, slices_mm, scanner.slice_mm, rng), strict=True))

    # The grid: picture coordinates in mm about the image centre, turned and shifted into the scene.
    size = int(round(scanner.field_mm / scanner.pixel_mm / 8)) * 8
    half_mm = (size - 1) / 2 * scanner.pixel_mm
    axis = np.linspace(-half_mm, half_mm, size, dtype=np.float32)
    px, py = np.meshgrid(axis, axis, indexing="ij")
    turn = np.deg2rad(scanner.turn_deg)
    x0, y0 = px * np.cos(turn) + py * np.sin(turn), py * np.cos(turn) - px * np.sin(turn)
    middle_mm = -14 + np.clip(rng.normal(0, 9, 2), -OFF_CENTRE_MM, OFF_CENTRE_MM) * (1, 1) + (0, 14)
    breath_mm = np.clip(rng.normal(0, scanner.breath_mm, (count, 2)), -6, 6)
    tissue = MappingProxyType({"blood": 1.0} | {n: getattr(scanner, n) for n in ("myocardium", "fat", "muscle", "liver", "spleen", "lung", "bone")})

    signal = {frame: np.zeros((size, size, count), np.float32) for frame in hearts}
    labels = {frame: np.zeros((size, size, count), np.uint8) for frame in hearts}
    reach_mm = max(scene.heart_radius_mm(h) for h in hearts.values())
    for k, w_mm in enumerate(slices_mm):
        x, y = x0 + np.float32(middle_mm[0] + breath_mm[k, 0]), y0 + np.float32(middle_mm[1] + breath_mm[k, 1])
        thorax = scene.paint_thorax(x, y, float(w_mm), length_mm, body, tissue, texture, scanner.pixel_mm)
        box = _box(np.hypot(x, y) < reach_mm)
        xb, yb = x[box], y[box]
        r, theta = np.hypot(xb, yb), anatomy.wrapped(np.arctan2(yb, xb) - septum)
        for frame, heart in hearts.items():
            planes = [
                scene.paint_heart(thorax[box], xb, yb, float(w_mm + d * scanner.fill * scanner.slice_mm), septum, heart, body, tissue, texture, scanner.pixel_mm)
                for d in SUBPLANES
            ]
            signal[frame][:, :, k] = thorax
            signal[frame][(*box, k)] = np.mean(planes, 0)
            labels[frame][(*box, k)] = anatomy.label_slice(heart, theta, r, float(w_mm))

    coil_angle, band_phase = np.pi + rng.normal(0, 0.3) - turn, rng.uniform(0, 2 * np.pi)
    images = {f: acquire(s, px, py, scanner, coil_angle, band_phase, rng) for f, s in signal.items()}
    orientation = oriented(vendor, shift)
    spacing_mm = (scanner.pixel_mm, scanner.pixel_mm, scanner.slice_mm)
    affine = _affine(spacing_mm, images["ED"].shape, rng)
    volumes = {
        f: {"LV": anatomy.lv_ml(h, slices_mm, scanner.slice_mm), "MYO": anatomy.myo_ml(h, slices_mm, scanner.slice_mm), "RV": anatomy.rv_ml(h, slices_mm, scanner.slice_mm)}
        for f, h in hearts.items()
    }
    return PhantomStudy(
        number=number,
        patient=person,
        group=person.group,
        vendor=vendor,
        centre=centre,
        images={f: _frozen(_reorient(a, orientation)) for f, a in images.items()},
        labels={f: _frozen(_reorient(a, orientation)) for f, a in labels.items()},
        affine=_frozen(_reoriented_affine(affine, images["ED"].shape, orientation)),
        spacing_mm=spacing_mm,
        volumes_ml=volumes,
        lv_ef_percent=100 * (1 - volumes["ES"]["LV"] / volumes["ED"]["LV"]),
        rv_ef_percent=100 * (1 - volumes["ES"]["RV"] / volumes["ED"]["RV"]),
    )


def _box(inside: np.ndarray) -> tuple[slice, slice]:
    rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def _frozen(array: np.ndarray) -> np.ndarray:
    array = np.ascontiguousarray(array)
    array.flags.writeable = False
    return array


def _affine(spacing_mm: tuple[float, float, float], shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """An oblique short-axis plane: the stack's axis points from the apex (left, front, down) to the base (right, back, up). RAS, mm."""
    normal = np.array([0.62, -0.58, 0.53]) + rng.normal(0, 0.06, 3)
    normal /= np.linalg.norm(normal)
    across = np.cross([0.0, 0.0, 1.0], normal) + rng.normal(0, 0.05, 3)
    across -= normal * (across @ normal)
    across /= np.linalg.norm(across)
    axes = np.stack([across, np.cross(normal, across), normal], 1) * np.asarray(spacing_mm)
    affine = np.eye(4)
    affine[:3, :3] = axes
    affine[:3, 3] = np.array([-25.0, 20.0, 10.0]) + rng.normal(0, 25, 3) - axes @ (np.asarray(shape) - 1) / 2
    return affine


def _reorient(array: np.ndarray, orientation: tuple[bool, bool, bool, bool]) -> np.ndarray:
    swap, *reverse = orientation
    array = array.swapaxes(0, 1) if swap else array
    return array[tuple(slice(None, None, -1 if r else 1) for r in reverse)]


def _reoriented_affine(affine: np.ndarray, shape: tuple[int, ...], orientation: tuple[bool, bool, bool, bool]) -> np.ndarray:
    swap, *reverse = orientation
    out = affine.copy()
    if swap:
        out[:, [0, 1]] = out[:, [1, 0]]
        shape = (shape[1], shape[0], shape[2])
    for i, r in enumerate(reverse):
        if r:
            out[:, 3] += out[:, i] * (shape[i] - 1)
            out[:, i] *= -1
    return out


def write_cohort(
    out: Path | str,
    *,
    layout: str = "mnms",
    patients: int = 100,
    seed: int = 0,
    shift: float = 1.0,
    vendors: Sequence[str] | None = None,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Placed]:
    """Writes patients 0 to ``patients`` - 1 as NIfTI in the layout of a public data set.

    Studies are written to a hidden folder beside their place and renamed, the list of studies last.

    Args:
        layout: acdc (Siemens only, as in Dijon), mnms or mnms2 (no Canon, as in the original).
        vendors: which vendors take part; default all that the layout has.
        workers: processes; default one a core. It changes no byte.
        progress: called with (done, total) after every study.

    Raises:
        InputError: an unknown layout or vendor, no patients, too many for the layout, or a folder that is not empty.
    """
    out = Path(out)
    if layout not in LAYOUTS:
        raise InputError(f"layout: expected one of {', '.join(LAYOUTS)}, found {layout!r}")
    if patients < 1:
        raise InputError(f"patients: expected 1 or more, found {patients}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out}: expected an empty or new folder, found {'files in it' if out.is_dir() else 'a file'}")
    plan = LAYOUTS[layout]
    vendors = tuple(vendors or plan.vendors)
    if absent := [v for v in vendors if v not in plan.vendors]:
        raise InputError(f"vendors: layout {layout} has {', '.join(plan.vendors)}, found {absent[0]!r}")
    placed = plan.place([assign(seed, n, vendors) for n in range(patients)], seed)
    out.mkdir(parents=True, exist_ok=True)
    jobs = [(str(out), layout, seed, n, shift, vendors, place) for n, place in enumerate(placed)]
    workers = min(workers or os.cpu_count() or 1, patients)
    done: list[Placed] = []
    try:
        if workers == 1:
            for job in jobs:
                done.append(_write(job))
                _tell(progress, len(done), patients)
        else:
            with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
                for place in pool.map(_write, jobs, chunksize=2):
                    done.append(place)
                    _tell(progress, len(done), patients)
        plan.index(out, done)
    except BaseException:
        shutil.rmtree(out, ignore_errors=True)  # it was empty or absent before
        raise
    return done


def _tell(progress: Callable[[int, int], None] | None, done: int, total: int) -> None:
    if progress is not None:
        progress(done, total)


def _write(job: tuple) -> Placed:
    out, layout, seed, number, shift, vendors, place = job
    made = study(seed, number, shift=shift, vendors=vendors)
    return LAYOUTS[layout].write(Path(out), place, made)
