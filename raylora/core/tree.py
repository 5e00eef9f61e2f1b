"""Flat named arrays: choosing names, laying one tree over another, sums. A tree that is kept is float32 and read-only.

Sums run in float64 in the order given (callers sort by client id first) and stay float64 until `freeze` stores them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from functools import lru_cache

import numpy as np

from raylora.core.errors import RunError
from raylora.core.types import Tree

ADAPTERS = ("", "local", "rest")
"""The adapters that a model may have: the global one, a private one, and the mean of the others' (FedALT). Its name stands before the names
of its factors; the global one's stand alone."""
LORA = "*.lora_[AB]"
"""Every factor of every adapter."""
LOCAL = "local.*"
"""Factors of the private adapter."""
GLOBAL = (LORA, *(f"!{adapter}.*" for adapter in ADAPTERS[1:]))
"""Factors of the global adapter."""
HEAD = ("*", "!" + LORA, "!router.*")
"""Plain names: heads, decoders."""


def match(names: Iterable[str], patterns: Sequence[str]) -> tuple[str, ...]:
    """The names that the patterns take, in their own order. Patterns are fnmatch patterns, case-sensitive, read in turn; the last one
    that fits a name decides, and a leading "!" takes the name out.

    >>> match(["q.lora_A", "q.lora_B", "head"], ("*", "!*.lora_A"))
    ('q.lora_B', 'head')
    """
    patterns = tuple(patterns)
    return tuple(name for name in names if _taken(name, patterns))


@lru_cache(maxsize=1 << 16)  # every round asks the same of the same names, client by client
def _taken(name: str, patterns: tuple[str, ...]) -> bool:
    decision = False
    for pattern in patterns:
        if fnmatchcase(name, pattern.removeprefix("!")):
            decision = not pattern.startswith("!")
    return decision


def select(tree: Tree, patterns: Sequence[str]) -> Tree:
    """The part of the tree whose names the patterns take."""
    return {name: tree[name] for name in match(tree, patterns)}


def freeze(tree: Tree) -> Tree:
    """The tree as float32, read-only. An array that is both already is shared, anything else is copied."""

    def frozen(array: np.ndarray) -> np.ndarray:
        if array.dtype == np.float32 and not array.flags.writeable:
            return array
        copy = np.array(array, dtype=np.float32)
        copy.flags.writeable = False
        return copy

    return {name: frozen(np.asarray(array)) for name, array in tree.items()}


def zeros(tree: Tree) -> Tree:
    """Zeros of the same names and shapes."""
    return freeze({name: np.zeros_like(array, dtype=np.float32) for name, array in tree.items()})


def finite(array: np.ndarray) -> bool:
    """Whether all its values are finite numbers."""
    flat = array.ravel("K")  # as it lies
    return math.isfinite(np.vdot(flat, flat)) or bool(np.isfinite(flat).all())  # squares say so in half the time, unless they overflow


def require_same(expected: Tree, got: Tree, where: str) -> None:
    """Raise RunError unless both trees have the same names and shapes and `got` is finite. `where` names the client or the file."""
    missing, unknown = sorted(expected.keys() - got.keys()), sorted(got.keys() - expected.keys())
    if missing or unknown:
        raise RunError(f"{where}: names differ; missing {missing or 'none'}, not expected {unknown or 'none'}")
    for name, array in expected.items():
        if got[name].shape != array.shape:
            raise RunError(f"{where}: {name} has shape {got[name].shape}, expected {array.shape}")
        if got[name].dtype.kind != "f":
            raise RunError(f"{where}: {name} is {got[name].dtype}, expected floating-point numbers")
        if not finite(got[name]):
            raise RunError(f"{where}: {name} is not finite")


def weighted_sum(trees: Sequence[Tree], weights: Sequence[float]) -> Tree:
    """sum_k weights[k] * trees[k], in float64, in the order given."""
    total = {}
    for name, first in trees[0].items():  # one name after the other: what is added up stays in the processor's cache
        sum_ = np.zeros(first.shape, dtype=np.float64)
        for tree, weight in zip(trees, weights, strict=True):
            sum_ += np.multiply(tree[name], weight, dtype=np.float64)
        total[name] = sum_
    return total


def add(tree: Tree, step: Tree, factor: float = 1.0) -> Tree:
    """tree + factor * step over the names of `step`, in float64; the other names as they are."""
    moved = {name: np.asarray(tree[name], dtype=np.float64) + factor * np.asarray(array, dtype=np.float64) for name, array in step.items()}
    return {**tree, **moved}


def subtract(tree: Tree, other: Tree) -> Tree:
    """tree - other over the names of `tree`, in float64."""
    return {name: np.subtract(array, other[name], dtype=np.float64) for name, array in tree.items()}


def scale(tree: Tree, factor: float) -> Tree:
    """factor * tree, in float64."""
    return {name: factor * np.asarray(array, dtype=np.float64) for name, array in tree.items()}


def inner(tree: Tree, other: Tree) -> float:
    """The inner product over all names, in float64."""
    pairs = ((np.asarray(array, dtype=np.float64), np.asarray(other[name], dtype=np.float64)) for name, array in tree.items())
    return float(sum(np.vdot(array, twin) for array, twin in pairs))


def norm(tree: Tree) -> float:
    """The Euclidean norm over all names together."""
    return float(np.sqrt(inner(tree, tree)))


def size(tree: Tree) -> int:
    """The number of elements of a tree."""
    return sum(int(array.size) for array in tree.values())


def shared_names(head: str, factors: str = LORA) -> tuple[str, ...]:
    """Patterns of what a client shares: the factors of the global adapter, and the plain names if the head is shared, not private."""
    return ((*HEAD,) if head == "shared" else ()) + (factors, *GLOBAL[1:])


def private_names(head: str) -> tuple[str, ...]:
    """Patterns of what a client with a global and a private adapter keeps for itself: the other names."""
    return ((*HEAD,) if head == "private" else ()) + (LOCAL,)
