"""What the layout readers share: listing a folder, and what to do with a study that is wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from raylora.core.errors import InputError

Problem = Callable[[str, InputError], None]
"""Called with a study's id and what is wrong with it."""


def refuse(id: str, error: InputError) -> None:
    """The default `Problem`: the first one ends the reading."""
    raise error


def folders(place: Path) -> list[Path]:
    """The visible sub-folders of ``place``, sorted by name; none if it is not a folder. Raises InputError if it cannot be read."""
    try:
        if not place.is_dir():
            return []
        return sorted(entry for entry in place.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    except OSError as error:
        raise InputError(f"{error.filename or place}: cannot be read: {error.strerror or error}") from None
