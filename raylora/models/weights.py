"""Weights files: safetensors only, read whole, with names and shapes that match exactly or are refused."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from raylora.core.errors import InputError
from raylora.models.arrays import opened


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, floating ones in float32. Raises InputError if it is missing or none."""
    with opened(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    return {name: value.to(torch.float32) if value.is_floating_point() else value for name, value in tensors.items()}


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
