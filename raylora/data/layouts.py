"""The data sets by name, and which of them a folder holds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType, ModuleType

from raylora.core.errors import InputError
from raylora.data import acdc, mnms, mnms2
from raylora.data.cases import Study
from raylora.data.sources import Problem, folders, refuse

LAYOUTS: Mapping[str, ModuleType] = MappingProxyType({"acdc": acdc, "mnms": mnms, "mnms2": mnms2})


def scan(dataset: str, root: Path | str, problem: Problem = refuse) -> list[Study]:
    """The studies of ``dataset`` under ``root`` (see `acdc.scan`). Raises InputError, also for an unknown data set or no folder."""
    root = Path(root)
    if dataset not in LAYOUTS:
        raise InputError(f"dataset: expected one of {', '.join(LAYOUTS)}, found {dataset!r}")
    if not root.is_dir():
        raise InputError(f"{root}: expected a folder with {dataset} in it, found {'a file' if root.exists() else 'nothing'}")
    return LAYOUTS[dataset].scan(root, problem)


def found_in(root: Path | str) -> list[tuple[str, Path]]:
    """(data set, its root) for ``root`` itself, or else for its sub-folders: a folder that several downloads lie in side by side."""
    root = Path(root)
    if not root.is_dir():
        raise InputError(f"{root}: expected a folder, found {'a file' if root.exists() else 'nothing'}")
    for places in ([root], folders(root)):
        found = [(name, place) for place in places for name, layout in LAYOUTS.items() if layout.is_here(place)]
        if found:
            return found
    raise InputError(f"{root}: none of {', '.join(LAYOUTS)} found in it (nor in its sub-folders)")
