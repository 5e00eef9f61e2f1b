"""safetensors files as named arrays, and what their headers say: no torch."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError, safe_open

from raylora.core.errors import InputError, one_line
from raylora.core.files import replacing


def read_names(path: str | Path) -> list[str]:
    """The tensors' names in a safetensors file; nothing else is read. Raises InputError if it is missing or none."""
    with opened(path, "np") as file:
        return list(file.keys())


def read_header(path: str | Path) -> dict[str, str]:
    """The free-text entries in a safetensors file's header. Raises InputError if it is missing or none."""
    with opened(path, "np") as file:
        return dict(file.metadata() or {})


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """All tensors of a safetensors file as they are. Raises InputError if it is missing or none (torn, altered)."""
    try:
        return dict(safetensors.numpy.load_file(path))
    except (OSError, ValueError, SafetensorError) as error:
        raise InputError(f"{path}: expected a safetensors file ({one_line(error)})") from None


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray], metadata: dict[str, str] | None = None) -> None:
    """A safetensors file, whole or not there, with the modes of any other file (safetensors' own is its owner's alone)."""
    content = safetensors.numpy.save({name: np.ascontiguousarray(array) for name, array in arrays.items()}, metadata)
    with replacing(path) as partial:
        partial.write_bytes(content)


def opened(path: str | Path, framework: str) -> safe_open:
    """A safetensors file, opened for "np" or "pt". Raises InputError if it is missing or none."""
    try:
        return safe_open(path, framework)
    except Exception as error:  # safetensors' own error for a bad file, OSError for a missing one
        raise InputError(f"{path}: expected a safetensors file ({error})") from None
