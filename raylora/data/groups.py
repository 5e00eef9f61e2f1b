"""What the data sets' group names mean: to the disease task, and to each other. What has no counterpart is said, not guessed."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

NORMAL = "NOR"
DISEASED: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        "acdc": frozenset({"DCM", "HCM", "MINF", "RV"}),
        "mnms": frozenset({"DCM", "HCM", "ARV", "HHD", "IHD", "LVNC", "Other"}),  # AHS, the athlete's heart, is neither
        "mnms2": frozenset({"LV", "HCM", "ARR", "FALL", "CIA", "RV", "TRI"}),
    }
)
COUNTERPARTS: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "acdc": {"NOR": "NOR", "DCM": "DCM", "HCM": "HCM", "RV": "ARV"},  # ACDC's web page says ARV, its files RV
        "mnms": {"NOR": "NOR", "DCM": "DCM", "HCM": "HCM", "ARV": "ARV"},
        "mnms2": {"NOR": "NOR", "HCM": "HCM"},  # LV and RV mean any dilated ventricle
    }
)


def disease_label(dataset: str, group: str) -> int | None:
    """0 normal, 1 diseased, None: the data set does not say (blank, unknown, or neither)."""
    if group == NORMAL:
        return 0
    return 1 if group in DISEASED.get(dataset, ()) else None


def common_group(dataset: str, group: str) -> str | None:
    """The group's name over all data sets, None if the others have no counterpart."""
    return COUNTERPARTS.get(dataset, {}).get(group)


def without_counterpart(groups: set[tuple[str, str]]) -> list[str]:
    """One line for each (dataset, group) that stays on its own when several data sets are combined."""
    if len({dataset for dataset, _ in groups}) < 2:
        return []
    return [f"{d}: group {g!r} has no counterpart in the other data sets" for d, g in sorted(groups) if g and common_group(d, g) is None]
