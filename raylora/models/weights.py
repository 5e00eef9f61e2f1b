"""Weights files: safetensors only, read whole, with names and shapes that match exactly or are refused."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import safetensors.numpy
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from raylora.core.errors import InputError
from raylora.core.files import replacing


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, floating ones in float32. Raises InputError if it is missing or none."""
    with _opened(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    return {name: value.to(torch.float32) if value.is_floating_point() else value for name, value in tensors.items()}


def read_names(path: str | Path) -> list[str]:
    """The tensors' names in a safetensors file; nothing else is read. Raises InputError if it is missing or none."""
    with _opened(path, "np") as file:
        return list(file.keys())


def read_header(path: str | Path) -> dict[str, str]:
    """The free-text entries in a safetensors file's header. Raises InputError if it is missing or none."""
    with _opened(path, "np") as file:
        return dict(file.metadata() or {})


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """All tensors of a safetensors file as they are. Raises InputError if it is missing or none (torn, altered)."""
    try:
        return dict(safetensors.numpy.load_file(path))
    except (OSError, ValueError, SafetensorError) as error:
        raise InputError(f"{path}: expected a safetensors file ({' '.join(str(error).split())})") from None


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray], metadata: dict[str, str] | None = None) -> None:
    """A safetensors file, whole or not there, with the modes of any other file (safetensors' own is its owner's alone)."""
    content = safetensors.numpy.save({name: np.ascontiguousarray(array) for name, array in arrays.items()}, metadata)
    with replacing(path) as partial:
        partial.write_bytes(content)


def _opened(path: str | Path, framework: str) -> safe_open:
    try:
        return safe_open(path, framework)
    except Exception as error:  # safetensors' own error for a bad file, OSError for a missing one
        raise InputError(f"{path}: expected a safetensors file ({error})") from None


def check_tensors(expected: Mapping[str, Tensor], given: Mapping[str, Tensor], path: str | Path) -> None:
    """Raise InputError, naming the first difference, unless both hold the same names and shapes."""
    for kind, names in (("lacks", expected.keys() - given.keys()), ("holds the unexpected", given.keys() - expected.keys())):
        if names:
            raise InputError(f"{path}: weights of another architecture: it {kind} {min(names)} ({len(names)} such names)")
    for name, value in expected.items():
        found, wanted = tuple(given[name].shape), tuple(value.shape)
        if found != wanted:
            raise InputError(f"{path}: weights of another architecture: {name} is {found}, expected {wanted}")


def load_strict(model: nn.Module, path: str | Path) -> nn.Module:
    """Fill a model from a file that holds exactly its state, in place, and return it. Raises InputError and changes nothing otherwise."""
    given = read_tensors(path)
    check_tensors(model.state_dict(), given, path)
    model.load_state_dict(given)
    return model
