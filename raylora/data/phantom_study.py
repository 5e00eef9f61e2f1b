"""One synthetic examination: a patient, their heart (phantom_anatomy) in their thorax (phantom_scene), seen by a scanner."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from raylora.core.errors import InputError
from raylora.core.seeds import generator
from raylora.data import phantom_anatomy as anatomy
from raylora.data.phantom_heart import heart_reach_mm, paint_heart
from raylora.data.phantom_paint import Palette, plane
from raylora.data.phantom_patient import GROUPS, Patient, patient
from raylora.data.phantom_scanner import CENTRES, MIX, VENDORS, Look, acquire, look, oriented, varied
from raylora.data.phantom_thorax import body, paint_chest_wall, paint_organs

RESOLUTION = (0.7548776662466927, 0.5698402909980532)  # the R2 sequence (Roberts 2018): even shares in every prefix of the numbers
SUBPLANES = (-1 / 3, 0.0, 1 / 3)  # of a slice's thickness: partial volume along z
SEPTUM = np.deg2rad(168)  # direction of the septum from the axis, in the scene
OFF_CENTRE_MM = 20.0  # at most, in x and in y
TISSUES = ("myocardium", "fat", "muscle", "liver", "spleen", "lung", "bone")


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


def study(
    seed: int,
    number: int,
    *,
    vendor: str | None = None,
    group: str | None = None,
    shift: float = 1.0,
    severity: float = 1.0,
    vendors: Sequence[str] | None = None,
) -> PhantomStudy:
    """Patient ``number`` of the population ``seed``, examined.

    Args:
        vendor, group: instead of the assigned ones; the person and the slices' noise stay the same.
        shift: strength of the vendor shift (see `phantom_scanner.look`), 0 or more.
        severity: factor on how far disease is from normal; above 1 the groups overlap less.
        vendors: the vendors of the cohort, all four by default.

    Raises:
        InputError: an unknown vendor or group, a negative shift or number.
    """
    for name, value in (("shift", shift), ("severity", severity)):
        if not (np.isfinite(value) and value >= 0):
            raise InputError(f"{name}: expected a number of 0 or more, found {value}")
    if number < 0:
        raise InputError(f"number: expected 0 or more, found {number}")
    if group is not None and group not in GROUPS:
        raise InputError(f"group: expected one of {', '.join(GROUPS)}, found {group!r}")
    vendor, centre, assigned = assign(seed, number, vendors if vendor is None else (vendor,))
    person = patient(seed, number, group or assigned, severity)
    return _examine(person, number, vendor, centre, shift, generator(seed, "phantom-examination", number))


def _examine(person: Patient, number: int, vendor: str, centre: str, shift: float, rng: np.random.Generator) -> PhantomStudy:
    scanner = varied(look(vendor, centre, shift), rng)
    orientation = oriented(vendor, shift)
    slices_mm = _slices(anatomy.length_mm(person), scanner, rng)
    hearts = dict(zip(("ED", "ES"), anatomy.beat(person, slices_mm, scanner.slice_mm, rng), strict=True))
    size = round(scanner.field_mm / scanner.pixel_mm / 8) * 8
    x_mm, y_mm = _grid(size, scanner.pixel_mm)
    signal, labels = _draw(person, hearts, slices_mm, scanner, x_mm, y_mm, rng)
    coil_angle, band_phase = float(np.pi + rng.normal(0, 0.3) + np.deg2rad(scanner.turn_deg)), float(rng.uniform(0, 2 * np.pi))
    images = {f: acquire(s, x_mm, y_mm, scanner, coil_angle, band_phase, rng) for f, s in signal.items()}
    spacing_mm = (scanner.pixel_mm, scanner.pixel_mm, scanner.slice_mm)
    affine = _affine(spacing_mm, images["ED"].shape, rng)
    measure = {"LV": anatomy.lv_ml, "MYO": anatomy.myo_ml, "RV": anatomy.rv_ml}
    volumes = {f: {name: ml(h, slices_mm, scanner.slice_mm) for name, ml in measure.items()} for f, h in hearts.items()}
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


def _slices(length_mm: float, scanner: Look, rng: np.random.Generator) -> np.ndarray:
    """Heights of the slices: from below the apex to above the base."""
    first_mm = -(0.4 + 0.6 * rng.random() + 0.5 * max(scanner.extra_slices - 1, 0)) * scanner.slice_mm
    count = int(np.ceil((length_mm - first_mm) / scanner.slice_mm + 0.3 + scanner.extra_slices * rng.random()))
    return first_mm + scanner.slice_mm * np.arange(count)


def _grid(size: int, pixel_mm: float) -> tuple[np.ndarray, np.ndarray]:
    """Pixel positions (size, size) in mm about the image centre."""
    half_mm = (size - 1) / 2 * pixel_mm
    axis = np.linspace(-half_mm, half_mm, size, dtype=np.float32)
    x_mm, y_mm = np.meshgrid(axis, axis, indexing="ij")
    return x_mm, y_mm


def _draw(
    person: Patient,
    hearts: Mapping[str, anatomy.Chambers],
    slices_mm: np.ndarray,
    scanner: Look,
    x_mm: np.ndarray,
    y_mm: np.ndarray,
    rng: np.random.Generator,
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Signal (blood = 1, float32) and labels (uint8) of both frames, each (x, y, z)."""
    thorax = body(rng, person.weight_kg / (person.height_cm / 100) ** 2, hearts["ED"])
    septum = SEPTUM + float(np.clip(rng.normal(0, 0.16), -0.35, 0.35))
    off_centre_mm = np.clip(rng.normal(0, 8, 2), -OFF_CENTRE_MM, OFF_CENTRE_MM) - (
        0.25 * thorax.front_mm,
        0,
    )  # the middle of both ventricles
    breaths_mm = np.clip(rng.normal(0, scanner.breath_mm, (len(slices_mm), 2)), -6, 6).tolist()
    turn = np.deg2rad(scanner.turn_deg)
    x = (x_mm * np.cos(turn) + y_mm * np.sin(turn) + off_centre_mm[0]).astype(np.float32)
    y = (y_mm * np.cos(turn) - x_mm * np.sin(turn) + off_centre_mm[1]).astype(np.float32)
    picture = plane(x, y, scanner.pixel_mm, rng)
    paint = Palette(
        signal=MappingProxyType({"blood": 1.0} | {name: getattr(scanner, name) for name in TISSUES}), softness_mm=scanner.pixel_mm
    )

    shape = (*x.shape, len(slices_mm))
    signal = {frame: np.zeros(shape, np.float32) for frame in hearts}
    labels = {frame: np.zeros(shape, np.uint8) for frame in hearts}
    box = _box(np.hypot(x, y) < max(heart_reach_mm(h) for h in hearts.values()) + 6)
    wall, inner = paint_chest_wall(picture, thorax, paint)
    for k, w_mm in enumerate(slices_mm.tolist()):
        here = picture.next(k, breaths_mm[k])
        organs = paint_organs(wall, inner, here, w_mm / hearts["ED"].length_mm, thorax, paint)
        near = here.within(box)
        r, direction = np.hypot(near.x, near.y), anatomy.direction_index(np.arctan2(near.y, near.x) - np.float32(septum))
        for frame, heart in hearts.items():
            heights_mm = [w_mm + d * scanner.fill * scanner.slice_mm for d in SUBPLANES]
            planes = [paint_heart(organs[box], near, r, direction, w, septum, heart, thorax, paint) for w in heights_mm]
            signal[frame][:, :, k] = organs
            signal[frame][(*box, k)] = sum(planes) / len(planes)
            labels[frame][(*box, k)] = anatomy.label_slice(anatomy.surfaces(heart, w_mm), direction, r)
    return signal, labels


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
