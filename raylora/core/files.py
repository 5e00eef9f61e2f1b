"""Files of the user: read with a refusal that names them, written whole or not at all."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from raylora.core.errors import InputError, one_line


def read_json_object(path: Path) -> dict[str, Any]:
    """The object that a JSON file holds. Raises InputError, also for a file that is not there or is torn."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON: {one_line(error)}") from None
    if not isinstance(value, dict):
        raise InputError(f"{path}: expected one JSON object, found {type(value).__name__}")
    return value


def without_nan(value: Any) -> Any:
    """The value with every number that JSON cannot hold as None."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): without_nan(item) for key, item in value.items()}
    return [without_nan(item) for item in value] if isinstance(value, list | tuple) else value


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """As `write_text`; no NaN or Infinity."""
    write_text(path, json.dumps(without_nan(value), indent=1, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """The file holds all of it, or what it held before. Raises OSError."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def absolute_path(text: str, here: Path, name: str) -> Path:
    """A path as it was written, from the folder `here`. Raises InputError, naming the key or option, for what can be no path."""
    try:
        return (here / Path(text).expanduser()).resolve()
    except (RuntimeError, ValueError, OSError) as error:  # nobody's home; a NUL; links in a circle
        raise InputError(f"{name}: {text!r}: {error}") from None


def is_folder(path: Path, name: str) -> bool:
    """Whether one is there. Raises InputError, naming the key or option, where that cannot be seen."""
    try:
        return path.is_dir()
    except OSError as error:
        raise InputError(f"{name}: {path}: cannot be read: {error.strerror}") from None


def require_writable(path: Path, name: str) -> None:
    """Raise InputError, naming the key or option, unless a file or folder can be made at `path`. Tried, and nothing stays.

    Asked before long work: permissions alone do not tell (root may write to everything but /proc).
    """
    folder = path = path.absolute()
    try:
        folder = path if path.is_dir() else path.parent
        while not folder.exists():
            folder = folder.parent
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise InputError(
            f"{name}: {path}: cannot be written{f' ({folder})' if folder != path else ''}: {error.strerror or error}"
        ) from None


def require_file_place(path: Path, name: str) -> None:
    """`require_writable` for a file, which may be there and is then replaced."""
    if path.is_dir():
        raise InputError(f"{name}: expected a file, {path} is a folder")
    require_writable(path, name)


def require_folder_place(path: Path, name: str) -> None:
    """`require_writable` for a folder, which may be there and is then written into."""
    if path.exists() and not path.is_dir():
        raise InputError(f"{name}: expected a folder, {path} is a file")
    require_writable(path, name)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file to write, beside `path`, which takes its place once it is whole and is gone otherwise. An OSError names `path`."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield partial
        os.replace(partial, path)
    except OSError as error:  # of a full disk, Python's has no name
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    finally:
        partial.unlink(missing_ok=True)
