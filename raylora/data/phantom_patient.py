"""Who the synthetic patients are: body, group, volumes, ejection fractions and walls. Pure functions of (seed, patient number).

The groups follow the definitions of the ACDC challenge (Bernard et al., IEEE TMI 2018, section II-A). A patient has one *severity*: 0 is
a normal heart, 1 the typical heart of the group; it varies, so that mild disease overlaps with normal hearts a little.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from raylora.core.seeds import generator

GROUPS = ("NOR", "DCM", "HCM", "MINF", "RV")


@dataclass(frozen=True, kw_only=True)
class Typical:
    """Means of a group; volumes are indexed to body surface (ml/m2)."""

    lvedv_index: float
    lv_ef_percent: float
    wall_mm: float  # thickest segment at ED
    septal: float  # how much of that thickness is the septum's alone (0: the wall is even)
    slenderness: float  # cavity radius / length
    rvedv_index: float
    rv_ef_percent: float
    akinesia: float  # 1: the infarcted segment does not move
    thinning: float  # share of the wall lost there


TYPICAL = MappingProxyType(
    {
        "NOR": Typical(
            lvedv_index=76,
            lv_ef_percent=62,
            wall_mm=9.5,
            septal=0.08,
            slenderness=0.29,
            rvedv_index=80,
            rv_ef_percent=58,
            akinesia=0,
            thinning=0,
        ),
        "DCM": Typical(
            lvedv_index=142,
            lv_ef_percent=25,
            wall_mm=8.6,
            septal=0.05,
            slenderness=0.345,
            rvedv_index=88,
            rv_ef_percent=46,
            akinesia=0,
            thinning=0,
        ),
        "HCM": Typical(
            lvedv_index=70,
            lv_ef_percent=67,
            wall_mm=19.0,
            septal=0.35,
            slenderness=0.275,
            rvedv_index=72,
            rv_ef_percent=62,
            akinesia=0,
            thinning=0,
        ),
        "MINF": Typical(
            lvedv_index=104,
            lv_ef_percent=28,
            wall_mm=9.5,
            septal=0.08,
            slenderness=0.31,
            rvedv_index=78,
            rv_ef_percent=52,
            akinesia=0.95,
            thinning=0.42,
        ),
        "RV": Typical(
            lvedv_index=74,
            lv_ef_percent=58,
            wall_mm=9.0,
            septal=0.06,
            slenderness=0.28,
            rvedv_index=138,
            rv_ef_percent=35,
            akinesia=0,
            thinning=0,
        ),
    }
)
# Spread between patients of one group and severity, in the units of Typical.
SPREAD = Typical(
    lvedv_index=11,
    lv_ef_percent=5.5,
    wall_mm=1.3,
    septal=0.04,
    slenderness=0.018,
    rvedv_index=12,
    rv_ef_percent=6,
    akinesia=0.03,
    thinning=0.06,
)


@dataclass(frozen=True, kw_only=True)
class Patient:
    """One person and heart, before any scanner."""

    group: str
    severity: float
    sex: str  # F | M
    age_years: int
    height_cm: float
    weight_kg: float
    lvedv_ml: float
    lv_ef_percent: float
    rvedv_ml: float
    rv_ef_percent: float
    wall_mm: float
    septal: float
    slenderness: float
    akinesia: float
    thinning: float
    infarct_angle: float  # radians from the septum's middle

    @property
    def bsa_m2(self) -> float:
        """Body surface, Mosteller 1987."""
        return body_surface_m2(self.height_cm, self.weight_kg)

    @property
    def lvesv_ml(self) -> float:
        return self.lvedv_ml * (1 - self.lv_ef_percent / 100)

    @property
    def rvesv_ml(self) -> float:
        return self.rvedv_ml * (1 - self.rv_ef_percent / 100)


def body_surface_m2(height_cm: float, weight_kg: float) -> float:
    """Mosteller's formula (NEJM 1987)."""
    return float(np.sqrt(height_cm * weight_kg / 3600))


def meets_definition(patient: Patient) -> bool:
    """Whether a heart fulfils its group's ACDC definition (a mild one may not)."""
    lvedv_index, rvedv_index = patient.lvedv_ml / patient.bsa_m2, patient.rvedv_ml / patient.bsa_m2
    return {
        "NOR": patient.lv_ef_percent > 50
        and lvedv_index < 100
        and patient.wall_mm < 13
        and rvedv_index < 105
        and patient.rv_ef_percent > 45,
        "DCM": patient.lv_ef_percent < 40 and lvedv_index > 100,
        "HCM": patient.wall_mm > 15 and patient.lv_ef_percent > 50,
        "MINF": patient.lv_ef_percent < 40 and patient.akinesia > 0.5,
        "RV": rvedv_index > 110 or patient.rv_ef_percent < 40,
    }[patient.group]


def patient(seed: int, number: int, group: str, severity_factor: float = 1.0) -> Patient:
    """Patient ``number`` of the population ``seed``, had they the disease ``group``; ``severity_factor`` moves all disease away from normal.

    The body and the variation do not depend on the group, so the same number under two groups is the same person.
    """
    rng = generator(seed, "phantom-patient", number)
    male = bool(rng.random() < 0.55)
    height_cm = float(np.clip(rng.normal(177 if male else 164, 7), 145, 200))
    bmi = float(np.clip(rng.normal(26, 3.8), 18, 40))
    weight_kg = bmi * (height_cm / 100) ** 2
    severity = 0.0 if group == "NOR" else severity_factor * float(np.clip(rng.normal(1.15, 0.22), 0.5, 1.7))
    normal, typical = TYPICAL["NOR"], TYPICAL[group]

    def draw(name: str) -> float:
        low, high = getattr(normal, name), getattr(typical, name)
        return low + severity * (high - low) + getattr(SPREAD, name) * float(np.clip(rng.standard_normal(), -2.5, 2.5))

    surface_m2 = body_surface_m2(height_cm, weight_kg)
    values = {name: draw(name) for name in Typical.__dataclass_fields__}
    infarcted = group == "MINF"
    return Patient(
        group=group,
        severity=severity,
        sex="M" if male else "F",
        age_years=int(np.clip(rng.normal(54, 15), 18, 85)),
        height_cm=height_cm,
        weight_kg=weight_kg,
        lvedv_ml=max(values["lvedv_index"], 45) * surface_m2,
        lv_ef_percent=float(np.clip(values["lv_ef_percent"], 10, 80)),
        rvedv_ml=max(values["rvedv_index"], 45) * surface_m2,
        rv_ef_percent=float(np.clip(values["rv_ef_percent"], 12, 75)),
        wall_mm=float(np.clip(values["wall_mm"], 6, 27)),
        septal=float(np.clip(values["septal"], 0, 0.5)),
        slenderness=float(np.clip(values["slenderness"], 0.24, 0.4)),
        akinesia=float(np.clip(values["akinesia"], 0, 1)) if infarcted else 0.0,
        thinning=float(np.clip(values["thinning"], 0, 0.6)) if infarcted else 0.0,
        infarct_angle=float(rng.uniform(-np.pi, np.pi)),
    )
