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
    try:
        return LAYOUTS[dataset].scan(root, problem)
    except OSError as error:
        raise InputError(f"{error.filename or root}: cannot be read: {error.strerror or error}") from None


def found_in(root: Path | str) -> list[tuple[str, Path]]:
    """(data set, its root) for ``root`` itself, or else for its sub-folders: a folder that several downloads lie in side by side.

    Sub-folders that cannot be read are passed over. Raises InputError if ``root`` cannot be, or holds no data set.
    """
    root = Path(root)
    if not root.is_dir():
        raise InputError(f"{root}: expected a folder, found {'a file' if root.exists() else 'nothing'}")
    if found := _sets_in(root):
        return found
    unreadable = 0
    for place in folders(root):
        try:
            found += _sets_in(place)
        except InputError:
            unreadable += 1
    if found:
        return found
    if unreadable:
        raise InputError(f"{root}: none of {', '.join(LAYOUTS)} found in it ({unreadable} of its sub-folders cannot be read)")
    raise InputError(f"{root}: none of {', '.join(LAYOUTS)} found in it (nor in its sub-folders)")


def _sets_in(place: Path) -> list[tuple[str, Path]]:
    try:
        return [(name, place) for name, layout in LAYOUTS.items() if layout.is_here(place)]
    except OSError as error:
        raise InputError(f"{error.filename or place}: cannot be read: {error.strerror or error}") from None
