"""What a stress file says: a base experiment, the strategies that are compared, one or two dials with their levels, seeds."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from raylora import config as configuration
from raylora.config import Config
from raylora.core.errors import InputError
from raylora.core.values import laid_over
from raylora.schema import Section
from raylora.sweep.space import Trial as Overlaid
from raylora.sweep.space import Values, repeated

OWN = ("seed", "name", "task")  # of each experiment: a campaign gives it the first two, and has one task


class Stress(Section):
    """A stress file. Keys of an experiment are dotted; `strategy: {...}` replaces the whole section."""

    name: str = Field(default="stress", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,89}$")
    base: dict[str, Any]  # the experiment, as a mapping (in a file: as such, or its path)
    common: dict[str, Any] = {}  # laid over the base in all runs
    strategies: Annotated[dict[str, dict[str, Any]], Field(min_length=1)]  # label -> what is laid over it; the first is the baseline
    dials: Annotated[dict[str, Annotated[list[Any], Field(min_length=2)]], Field(min_length=1, max_length=2)]  # the neutral level first
    seeds: Annotated[list[int], Field(min_length=1)] = [0]

    def sha256(self) -> str:
        """Of what decides which trials there are and what comes of them."""
        return configuration.digest({**self.model_dump(exclude={"name"}), "base": configuration.decisive(self.base)})

    def config(self, trial: Trial) -> Config:
        """The experiment of one trial. Raises InputError."""
        origin = f"trial {trial.number} ({trial.said})"
        name = {"seed": trial.seed, "name": f"{self.name}-{trial.number:03d}"}
        laid = laid_over(self.base, {**configuration.one_length(trial.values), **name}, origin)
        return configuration.from_dict(laid, origin)


@dataclass(frozen=True)
class Trial(Overlaid):
    """One experiment: what is common, its strategy and its levels are its values."""

    label: str  # of its strategy
    levels: Values  # dial -> level

    @property
    def said(self) -> str:
        return ", ".join([self.label, *(f"{key} {value}" for key, value in self.levels.items()), f"seed {self.seed}"])


def trials(stress: Stress) -> list[Trial]:
    """All experiments: the levels of the dials outermost, then strategies, then seeds, so that what is compared is near in time."""
    levels = [dict(zip(stress.dials, values, strict=True)) for values in itertools.product(*stress.dials.values())]
    every = itertools.product(levels, stress.strategies, stress.seeds)
    return [
        Trial(number, in_order(stress.common, stress.strategies[label], values), seed, label, values)
        for number, (values, label, seed) in enumerate(every)
    ]


def in_order(*layers: Values) -> dict[str, Any]:
    """One mapping whose keys are laid over a configuration layer by layer: a key that is there again goes to the end, or a section that
    a later layer lays over whole would win over it."""
    found: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            found.pop(key, None)
            found[key] = value
    return found


def _share(key: str, other: str) -> bool:
    """Whether one of two dotted keys is the other, or lies in it."""
    return f"{key}.".startswith(f"{other}.") or f"{other}.".startswith(f"{key}.")


def load(path: Path, overrides: Sequence[str] = ()) -> Stress:
    """Read a stress file and check the configuration of every trial. Overrides go to its own keys (``seeds=[0,1]``) or to the base experiment
    (``training.rounds=4``). Raises InputError."""
    return check(configuration.load_around(Stress, path, overrides), str(path))


def check(stress: Stress, origin: str) -> Stress:
    """Refuse what cannot work before anything starts. Raises InputError."""
    for key in stress.dials:
        if key in OWN or key.split(".")[0] in ("placement", "tracking", "checkpoint", "evaluation", "strategy"):
            raise InputError(f"{origin}: dials.{key}: expected what makes an experiment harder (faults, network, clients, data, ...)")
        if any(_share(key, other) for values in stress.strategies.values() for other in values):
            raise InputError(f"{origin}: dials.{key}: a strategy sets it too, and one of them would win")
        if other := next((other for other in (*stress.dials, *stress.common) if other.startswith(f"{key}.")), None):
            raise InputError(f"{origin}: dials.{key}: its levels replace the whole section, with {other}; write that into each of them")
        if (twice := repeated(stress.dials[key])) is not None:
            raise InputError(f"{origin}: dials.{key}: expected each level once, found {twice!r} twice")
    for where, values in (("common", stress.common), *((f"strategies.{label}", values) for label, values in stress.strategies.items())):
        if key := next((key for key in OWN if key in values), None):
            raise InputError(f"{origin}: {where}.{key}: all experiments of a campaign have the base's task, seeds and names of its own")
    if len(set(stress.seeds)) < len(stress.seeds):
        raise InputError(f"{origin}: seeds: expected each seed once, found {stress.seeds}")
    for trial in trials(stress):
        try:
            stress.config(trial)
        except InputError as error:
            raise InputError(f"{origin}: {error}") from None
    return stress
