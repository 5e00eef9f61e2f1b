"""Cohorts: seeded, independent of order, with the stated chances."""

import numpy as np
import pytest

from raylora.core.errors import InputError
from raylora.core.sampling import cohort
from raylora.core.types import Client

CLIENTS = [Client(id=name, num_examples=size, rank=2) for name, size in zip("dacb", (4, 1, 3, 2), strict=True)]


def ids(kind: str, fraction: float, seed: int = 0, round: int = 0, clients: list[Client] = CLIENTS) -> list[str]:
    return [client.id for client in cohort(clients, kind, fraction, seed, round)]


def test_all() -> None:
    assert ids("all", 0.5) == ["a", "b", "c", "d"]


@pytest.mark.parametrize("kind", ["uniform", "size", "poisson"])
def test_draws_follow_seed_and_round_only(kind: str) -> None:
    drawn = [ids(kind, 0.5, seed, round) for seed in range(3) for round in range(10)]
    assert drawn == [ids(kind, 0.5, seed, round, CLIENTS[::-1]) for seed in range(3) for round in range(10)]
    assert len({tuple(names) for names in drawn}) > 3
    assert all(names == sorted(set(names)) for names in drawn)


@pytest.mark.parametrize(("kind", "expected"), [("uniform", [0.5] * 4), ("poisson", [0.5] * 4), ("size", None)])
def test_chances(kind: str, expected: list[float] | None) -> None:
    """Frequencies over n rounds within 5 standard errors. By size, two of four in turn: p_i + sum_j p_j p_i / (1 - p_j)."""
    n, p = 1500, np.array([1, 2, 3, 4]) / 10
    if expected is None:
        expected = [p[i] + sum(p[j] * p[i] / (1 - p[j]) for j in range(4) if j != i) for i in range(4)]
    found = np.mean([[name in ids(kind, 0.5, round=round) for name in "abcd"] for round in range(n)], axis=0)
    assert np.abs(found - expected).max() < 5 * 0.5 / np.sqrt(n)


def test_count_is_rounded_up() -> None:
    assert len(ids("uniform", 0.26)) == 2 and len(ids("uniform", 0.25)) == 1 and len(ids("size", 1.0)) == 4


@pytest.mark.parametrize(("kind", "fraction"), [("largest", 0.5), ("uniform", 0.0), ("uniform", 1.5)])
def test_refused(kind: str, fraction: float) -> None:
    with pytest.raises(InputError, match="sampling"):
        ids(kind, fraction)


def test_by_size_needs_patients() -> None:
    with pytest.raises(InputError, match="expected 2 clients with training patients, found 1"):
        ids("size", 1.0, clients=[Client(id="a", num_examples=0, rank=1), Client(id="b", num_examples=1, rank=1)])
