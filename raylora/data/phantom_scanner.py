"""How a scanner shows a body: vendor by vendor, between a reference look (shift 0) and the vendor's own (shift 1).

The reference is the look of the population that foundation models are pre-trained on. `look(vendor, centre, shift)` is pure: numbers
that must be positive are interpolated geometrically, angles linearly, so shift is a dial from one domain to clearly separate ones.
The numbers were chosen by eye for bSSFP cine (post-contrast studies have brighter myocardium); they are no vendor's specification.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType

import numpy as np
from scipy.ndimage import gaussian_filter

Array = np.ndarray


@dataclass(frozen=True, kw_only=True)
class Look:
    """Appearance of a scanner. Signals are relative to blood."""

    myocardium: float = 0.28
    fat: float = 0.85
    muscle: float = 0.20
    liver: float = 0.34
    spleen: float = 0.40
    lung: float = 0.05
    bone: float = 0.08
    gamma: float = 1.0  # of the contrast curve; above 1 darkens the middle
    coil: float = 0.3  # log fall-off of the receive coils over 100 mm
    banding: float = 0.02  # depth of off-resonance bands
    blur_mm: float = 0.7
    noise: float = 0.025  # Rician sigma, blood = 1
    pixel_mm: float = 1.45
    slice_mm: float = 10.0  # distance between slices
    fill: float = 0.8  # slice thickness / distance
    field_mm: float = 330.0
    breath_mm: float = 1.2  # misalignment between breath-holds, sigma
    extra_slices: float = 1.0  # beyond the heart
    full_scale: float = 900.0  # of the stored integers
    turn_deg: float = 0.0  # of the picture in its plane


REFERENCE = Look()
# fmt: off
SIEMENS = Look(
    myocardium=0.33, fat=0.80, gamma=1.1, coil=0.4, noise=0.035, blur_mm=0.8, pixel_mm=1.35, slice_mm=9.6, full_scale=650, turn_deg=-14,
)
PHILIPS = Look(
    myocardium=0.48, fat=1.1, muscle=0.34, liver=0.55, spleen=0.62, lung=0.10, gamma=0.85, coil=0.55,
    banding=0.06, noise=0.05, blur_mm=1.0, pixel_mm=1.25, field_mm=350, breath_mm=1.6, extra_slices=1.4,
    full_scale=320, turn_deg=38,
)
GE = Look(
    myocardium=0.43, fat=1.25, muscle=0.30, liver=0.42, lung=0.07, gamma=1.35, coil=0.45,
    banding=0.12, noise=0.06, blur_mm=1.3, pixel_mm=1.5, field_mm=360, breath_mm=2.0, extra_slices=1.8,
    full_scale=2300, turn_deg=-32,
)
CANON = Look(
    myocardium=0.54, fat=0.62, muscle=0.40, liver=0.60, spleen=0.64, lung=0.11, gamma=0.8, coil=0.55,
    banding=0.10, noise=0.06, blur_mm=1.4, pixel_mm=1.6, slice_mm=9, field_mm=320, breath_mm=2.4,
    full_scale=5200, turn_deg=62,
)
# fmt: on
LOOKS: Mapping[str, Look] = MappingProxyType({"Siemens": SIEMENS, "Philips": PHILIPS, "GE": GE, "Canon": CANON})
LINEAR = ("turn_deg",)
VENDORS = tuple(LOOKS)

# Array orientation (swap x and y, reverse x, reverse y, reverse z); the reference's is plain.
ORIENTATIONS = MappingProxyType(
    {
        "Siemens": (False, False, False, False),
        "Philips": (False, False, False, True),
        "GE": (False, False, False, True),
        "Canon": (False, False, False, False),
    }
)

# centre -> (vendor, share of all patients, factors on the vendor's look at shift 1). M&Ms has six centres of these vendors.
CENTRES = MappingProxyType(
    {
        "1": ("Siemens", 0.16, {}),
        "6": ("Siemens", 0.08, {"noise": 1.4, "myocardium": 1.15, "pixel_mm": 0.92}),
        "2": ("Philips", 0.32, {}),
        "3": ("Philips", 0.16, {"myocardium": 0.85, "fat": 0.85, "coil": 1.2, "slice_mm": 0.9}),
        "4": ("GE", 0.14, {}),
        "5": ("Canon", 0.14, {}),
    }
)
# Which patients a vendor's hospitals see: share by group. Each has normal and diseased hearts.
MIX = MappingProxyType(
    {
        "Siemens": {"NOR": 0.40, "DCM": 0.20, "HCM": 0.15, "MINF": 0.10, "RV": 0.15},
        "Philips": {"NOR": 0.40, "DCM": 0.15, "HCM": 0.25, "MINF": 0.12, "RV": 0.08},
        "GE": {"NOR": 0.35, "DCM": 0.20, "HCM": 0.05, "MINF": 0.35, "RV": 0.05},
        "Canon": {"NOR": 0.50, "DCM": 0.10, "HCM": 0.15, "MINF": 0.10, "RV": 0.15},
    }
)


# However strong the shift: a heart can be made out, and its numbers are neither cut off at int16's end nor few.
WITHIN = MappingProxyType(
    {
        "myocardium": (0.1, 0.85),
        "pixel_mm": (1.1, 2.2),
        "slice_mm": (6.0, 12.0),
        "field_mm": (280.0, 380.0),
        "full_scale": (100.0, 16_000.0),
    }
)


def look(vendor: str, centre: str, shift: float) -> Look:
    """The appearance at this strength of the vendor shift: 0 the reference for everyone, 1 the vendor's (and centre's), more beyond."""
    own, factors = asdict(LOOKS[vendor]), CENTRES[centre][2]
    mixed = {}
    for name, start in asdict(REFERENCE).items():
        end = own[name] * factors.get(name, 1.0)
        mixed[name] = start + shift * (end - start) if name in LINEAR else start * (end / start) ** shift
    for name, (low, high) in WITHIN.items():
        mixed[name] = float(np.clip(mixed[name], low, high))
    return Look(**mixed)


def varied(scanner: Look, rng: np.random.Generator) -> Look:
    """The same scanner on another day: settings differ between examinations of one site."""
    spread = {"myocardium": 0.07, "fat": 0.06, "muscle": 0.08, "liver": 0.08, "spleen": 0.08, "gamma": 0.05, "coil": 0.2, "banding": 0.3}
    spread |= {"blur_mm": 0.08, "noise": 0.15, "pixel_mm": 0.05, "field_mm": 0.03, "full_scale": 0.15, "breath_mm": 0.2}
    changed = {name: getattr(scanner, name) * float(np.exp(s * np.clip(rng.standard_normal(), -2, 2))) for name, s in spread.items()}
    return Look(**{**asdict(scanner), **changed, "turn_deg": scanner.turn_deg + float(np.clip(rng.normal(0, 9), -20, 20))})


def oriented(vendor: str, shift: float) -> tuple[bool, bool, bool, bool]:
    """The array orientation: the reference's up to half the shift."""
    return ORIENTATIONS[vendor] if shift >= 0.5 else (False, False, False, False)


def acquire(
    signal: Array, x_mm: Array, y_mm: Array, scanner: Look, coil_angle: float, band_phase: float, rng: np.random.Generator
) -> Array:
    """From tissue signal to the stored integers.

    Point spread, receive coils, off-resonance bands, contrast curve, Rician noise, scale.
    Args: signal (x, y, z) with blood = 1; x_mm, y_mm (x, y). Returns int16 (x, y, z).
    """
    pixel_mm = scanner.pixel_mm
    blurred = gaussian_filter(signal, (scanner.blur_mm / pixel_mm, scanner.blur_mm / pixel_mm, 0))
    along = (x_mm * np.cos(coil_angle) + y_mm * np.sin(coil_angle)) / 100
    across = (y_mm * np.cos(coil_angle) - x_mm * np.sin(coil_angle)) / 100
    coils = np.exp(np.clip(scanner.coil * (along - 0.25 * across**2), -2, 1.2))
    bands = 1 - scanner.banding * (1 + np.cos(2 * np.pi * (across * 1.1 + 0.6 * along**2) + band_phase))
    clean = np.clip(blurred * (coils * bands).astype(np.float32)[:, :, None], 0, None) ** np.float32(scanner.gamma)
    real, imaginary = np.float32(scanner.noise) * rng.standard_normal((2, *clean.shape), dtype=np.float32)
    noisy = np.hypot(clean + real, imaginary)
    return np.clip(np.rint(noisy * scanner.full_scale * 0.5), 0, 32767).astype(np.int16)
