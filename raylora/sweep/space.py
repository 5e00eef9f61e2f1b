"""What a sweep file says: a base experiment, a search space over any of its keys, an objective on validation patients."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, model_validator

from raylora import config as configuration
from raylora.config import Config
from raylora.core.errors import InputError
from raylora.core.seeds import generator
from raylora.core.values import laid_over
from raylora.schema import Count, Number, Positive, Section

METRICS = {"segmentation": ("dice",), "disease": ("likelihood", "accuracy")}  # of validation patients, in rounds.jsonl
MOST = 10_000  # trials of one sweep
Whole = Annotated[int, Field(ge=-(2**53), le=2**53)]
Values = Mapping[str, Any]
"""Dotted key -> value: what a trial lays over the base experiment."""


class Dimension(Section):
    """The values of one key; exactly one of these."""

    grid: Annotated[list[Any], Field(min_length=1)] | None = None  # each of them, crossed with everything else
    choice: Annotated[list[Any], Field(min_length=1)] | None = None  # one of them a draw; under search.kind grid each of them
    uniform: tuple[Number, Number] | None = None
    loguniform: tuple[Positive, Positive] | None = None
    integer: tuple[Whole, Whole] | None = None  # both ends included

    @model_validator(mode="after")
    def _one(self) -> Dimension:
        given = self.model_dump(exclude_none=True)
        if len(given) != 1:
            raise ValueError("expected exactly one of grid, choice, uniform, loguniform, integer")
        span = self.uniform or self.loguniform or self.integer
        if span is not None and not (span[0] < span[1] and math.isfinite(span[1] - span[0])):
            raise ValueError("expected two finite numbers [low, high], low < high, a finite number apart")
        if (twice := repeated(self.values or [])) is not None:
            raise ValueError(f"expected each value once, found {twice!r} twice")
        return self

    @property
    def values(self) -> list[Any] | None:
        """Of a dimension that is a list."""
        return self.grid if self.grid is not None else self.choice

    @property
    def extremes(self) -> Sequence[Any]:
        """Every value of a list, the two ends of a range."""
        return self.values or self.uniform or self.loguniform or self.integer or ()

    def draw(self, rng: np.random.Generator) -> Any:
        """One value at random."""
        if self.values is not None:
            return self.values[int(rng.integers(len(self.values)))]
        if self.uniform is not None:
            return float(rng.uniform(*self.uniform))
        if self.loguniform is not None:
            return float(math.exp(rng.uniform(*map(math.log, self.loguniform))))
        assert self.integer is not None
        return int(rng.integers(self.integer[0], self.integer[1] + 1))


def repeated(values: Sequence[Any]) -> Any:
    """The first value that was there before, None without one. 1 and 1.0 are one value; true is another."""
    said = [json.dumps(_numbers(value), sort_keys=True, default=str) for value in values]
    return next((value for place, value in enumerate(values) if said[place] in said[:place]), None)


def _numbers(value: Any) -> Any:
    """The value with its whole numbers as they would be written among others."""
    if isinstance(value, Mapping):
        return {str(key): _numbers(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_numbers(inner) for inner in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


class Objective(Section):
    """What trials are ranked by: the mean over clients on validation patients, after a trial's last round."""

    metric: str = "dice"
    mode: Literal["max", "min"] = "max"

    @property
    def sign(self) -> float:
        """1 if larger is better."""
        return 1.0 if self.mode == "max" else -1.0


class Search(Section):
    """How configurations are chosen."""

    kind: Literal["grid", "random", "optuna"] = "grid"
    trials: Count | None = None  # configurations that random and optuna draw; grid dimensions are crossed with each draw of random
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0

    @model_validator(mode="after")
    def _counted(self) -> Search:
        if (self.kind == "grid") != (self.trials is None):
            raise ValueError("trials: random and optuna need it, grid has as many as its lists say (see limits.trials)")
        return self


class Scheduler(Section):
    """Whether poor trials are stopped early."""

    kind: Literal["none", "asha", "median"] = "none"
    grace: Count = 1  # rounds before a trial can be stopped
    reduction: Annotated[Number, Field(gt=1)] = 4.0  # asha: one in so many goes on at each rung


class Limits(Section):
    """Where a sweep ends."""

    trials: Count | None = None  # the first so many
    hours: Positive | None = None  # of one start of the command
    concurrent: Count | None = None  # trials at once; default: as many as fit


class Sweep(Section):
    """A sweep file. Its `space` may name any key of an experiment, whole sections included."""

    name: str = Field(default="sweep", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    base: dict[str, Any]  # the experiment that values are laid over (in a file: as such, or its path)
    space: Annotated[dict[str, Dimension], Field(min_length=1)]
    seeds: Annotated[list[int], Field(min_length=1)] | None = None  # every configuration with each of them; default: the experiment's one
    objective: Objective = Objective()
    search: Search = Search()
    scheduler: Scheduler = Scheduler()
    limits: Limits = Limits()

    def sha256(self) -> str:
        """Of what decides which trials there are. Limits may change when a sweep is gone on with; names, placement and tracking as well."""
        return configuration.digest({**self.model_dump(exclude={"name", "limits"}), "base": configuration.decisive(self.base)})

    @property
    def repeats(self) -> list[int]:
        """The seeds of every configuration."""
        return self.seeds if self.seeds is not None else [int(self.base.get("seed", 0))]

    def config(self, values: Values, seed: int, number: int) -> Config:
        """The experiment of one trial. Raises InputError."""
        origin = f"trial {number} ({said(values)})"
        laid = laid_over(self.base, {**configuration.one_length(values), "seed": seed, "name": trial_name(self.name, number)}, origin)
        return configuration.from_dict(laid, origin)


@dataclass(frozen=True)
class Trial:
    """One experiment of a sweep."""

    number: int
    values: Values
    seed: int

    @property
    def folder(self) -> str:
        return f"{self.number:03d}"


def trial_name(sweep: str, number: int) -> str:
    """The name of a trial's experiment."""
    return f"{sweep[:90]}-{number:03d}"


def said(values: Values) -> str:
    """Values in a line: ``lora.rank 8, strategy.temperature 0.5``."""
    return ", ".join(f"{key} {f'{value:.3g}' if isinstance(value, float) else value}" for key, value in values.items())


def combinations(sweep: Sweep) -> Iterator[Values]:
    """The configurations of a grid or a random search, in order; those of optuna depend on results and are asked for one by one."""
    assert sweep.search.kind != "optuna"
    lists = {key: d.values for key, d in sweep.space.items() if d.grid is not None or sweep.search.kind == "grid"}
    draws = 1 if sweep.search.kind == "grid" else sweep.search.trials or 1
    for number in range(draws):
        rng = generator(sweep.search.seed, "sweep", number)
        drawn = {key: d.draw(rng) for key, d in sweep.space.items() if key not in lists}
        for combination in itertools.product(*(values or [] for values in lists.values())):
            chosen = {**drawn, **dict(zip(lists, combination, strict=True))}
            yield {key: chosen[key] for key in sweep.space}


def trials(sweep: Sweep) -> list[Trial]:
    """All trials of a grid or a random search, seeds innermost, as far as `limits.trials` goes. Raises InputError for too many."""
    pairs = ((values, seed) for values in combinations(sweep) for seed in sweep.repeats)
    most = min(sweep.limits.trials or MOST + 1, MOST + 1)
    found = [Trial(number, values, seed) for number, (values, seed) in enumerate(itertools.islice(pairs, most))]
    if len(found) > MOST:
        raise InputError(f"space: expected at most {MOST} trials, found more (limits.trials takes the first so many)")
    return found


def load(path: Path, overrides: Sequence[str] = ()) -> Sweep:
    """Read a sweep file and check it. Overrides go to its own keys (``limits.hours=2``) or to the base experiment (``training.rounds=4``).
    Raises InputError."""
    return check(configuration.load_around(Sweep, path, overrides), str(path))


def check(sweep: Sweep, origin: str) -> Sweep:
    """Refuse what cannot work before anything starts. Raises InputError."""
    task = sweep.base["task"]
    metric = sweep.objective.metric
    if metric not in METRICS[task]:
        known = ", ".join(METRICS[task])
        raise InputError(
            f"{origin}: objective.metric: expected a validation metric of {task} ({known}), found {metric!r}; a test metric never chooses anything"
        )
    if (twice := repeated(sweep.repeats)) is not None:
        raise InputError(f"{origin}: seeds: expected each seed once, found {twice} twice")
    for key, dimension in sweep.space.items():
        if (section := next((other for other in sweep.space if key.startswith(f"{other}.")), None)) is not None:
            raise InputError(f"{origin}: space.{key}: lies in space.{section}; write its values into that section's")
        if key in ("seed", "name") or key.split(".")[0] in ("placement", "tracking", "checkpoint", "evaluation"):
            raise InputError(
                f"{origin}: space.{key}: does not change what is learnt{'; seeds: repeats with other seeds' * (key == 'seed')}"
            )
        if key == "task":
            raise InputError(f"{origin}: space.task: trials of one sweep have one task, whose metric ranks them")
        if dimension.values is None and sweep.search.kind == "grid":
            raise InputError(
                f"{origin}: space.{key}: expected a grid or a choice for search.kind grid, found a range (search.kind random draws from it)"
            )
    if sweep.scheduler.kind != "none" and not sweep.base["evaluation"]["every"]:
        raise InputError(f"{origin}: scheduler.kind: {sweep.scheduler.kind} needs validation while training, found evaluation.every 0")
    if sweep.search.kind == "optuna":
        some = example(sweep)
        for key, dimension in sweep.space.items():
            for value in dimension.extremes:
                sweep.config({**some, key: value}, sweep.repeats[0], 0)
    else:
        for trial in trials(sweep):
            sweep.config(trial.values, trial.seed, trial.number)
    return sweep


def example(sweep: Sweep) -> Values:
    """Some values of the space."""
    return {key: dimension.draw(generator(sweep.search.seed, "sweep")) for key, dimension in sweep.space.items()}
