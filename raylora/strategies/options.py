"""Checks of a strategy's options: one line that names the key, what was expected and what was found."""

from __future__ import annotations

import math
from collections.abc import Sequence

from raylora.core.errors import InputError


def one_of(key: str, value: object, allowed: Sequence[object]) -> None:
    """Raise InputError unless the value is one of the allowed ones."""
    if value not in allowed:
        raise InputError(f"strategy.{key}: expected {' or '.join(str(word) for word in allowed)}, found {value}")


def number(key: str, value: float, low: float, high: float = math.inf, *, open_low: bool = False) -> None:
    """Raise InputError unless low <= value <= high (low < value if open_low)."""
    fits = isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high and not (open_low and value == low)
    if not fits:
        bound = f" at most {high}" if high < math.inf else ""
        raise InputError(f"strategy.{key}: expected a number {'above' if open_low else 'of at least'} {low}{bound}, found {value}")


def whole(key: str, value: int, low: int) -> None:
    """Raise InputError unless the value is a whole number of at least `low`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < low:
        raise InputError(f"strategy.{key}: expected a whole number of at least {low}, found {value}")


def rank(key: str, value: int | None, low: int = 1) -> None:
    """Raise InputError unless the value is None (the configuration's rank) or a whole number of at least `low`."""
    if value is not None:
        whole(key, value, low)


def check(*, weights: str = "size", head: str = "shared") -> None:
    """The two options nearly every strategy has."""
    one_of("weights", weights, ("size", "uniform"))
    one_of("head", head, ("shared", "private"))
