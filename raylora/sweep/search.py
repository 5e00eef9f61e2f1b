"""Which trial comes next. Made again from the ledger by asking the same questions in the same order."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any, Protocol

from raylora.sweep.ledger import Ledger
from raylora.sweep.space import Dimension, Sweep, Trial, trials


class Search(Protocol):
    """Asked for trials one after the other, and told how they end."""

    def next(self) -> Trial | None:
        """The next trial, None after the last."""

    def again(self) -> None:
        """A trial that was given before is given again, whatever the limits say today."""

    def tell(self, trial: Trial, objective: float | None) -> None:
        """A trial has ended; None: it failed."""


class Listed:
    """A grid, a seeded random search, a campaign: known in full before it starts."""

    def __init__(self, trials: Sequence[Trial]) -> None:
        self.trials = trials
        self.given = 0

    def next(self) -> Trial | None:
        if self.given == len(self.trials):
            return None
        self.given += 1
        return self.trials[self.given - 1]

    def again(self) -> None:
        self.given = min(self.given + 1, len(self.trials))

    def tell(self, trial: Trial, objective: float | None) -> None:
        """Results change nothing."""


class Suggested:
    """Optuna's tree-structured Parzen estimator; a configuration's result is the mean over its seeds."""

    def __init__(self, sweep: Sweep) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.optuna, self.sweep = optuna, sweep
        self.distributions = {key: distribution(dimension) for key, dimension in sweep.space.items()}
        sampler = optuna.samplers.TPESampler(seed=sweep.search.seed, constant_liar=True)
        direction = "maximize" if sweep.objective.mode == "max" else "minimize"
        self.study = optuna.create_study(direction=direction, sampler=sampler)
        self.asked: list[Any] = []
        self.results: dict[int, list[float | None]] = {}
        self.given = 0

    def next(self) -> Trial | None:
        repeats, most = self.sweep.repeats, self.sweep.limits.trials
        configuration, seed = divmod(self.given, len(repeats))
        if configuration == self.sweep.search.trials or (most is not None and self.given >= most):
            return None
        self.again()
        values = {key: _value(self.sweep.space[key], value) for key, value in self.asked[configuration].params.items()}
        return Trial(self.given - 1, {key: values[key] for key in self.sweep.space}, repeats[seed])

    def again(self) -> None:
        if self.given // len(self.sweep.repeats) == len(self.asked):
            self.asked.append(self.study.ask(self.distributions))
        self.given += 1

    def tell(self, trial: Trial, objective: float | None) -> None:
        configuration = trial.number // len(self.sweep.repeats)
        results = self.results.setdefault(configuration, [])
        results.append(objective)
        if len(results) == len(self.sweep.repeats):
            known = [value for value in results if value is not None]
            failed = self.optuna.trial.TrialState.FAIL
            asked = self.asked[configuration]
            self.study.tell(asked, fmean(known)) if known else self.study.tell(asked, state=failed)


def distribution(dimension: Dimension) -> Any:
    """Optuna's own. Values of a list are told apart by their place in it: Optuna's must be plain."""
    from optuna import distributions as d

    if dimension.values is not None:
        return d.CategoricalDistribution(list(range(len(dimension.values))))
    if dimension.integer is not None:
        return d.IntDistribution(*dimension.integer)
    low, high = dimension.uniform or dimension.loguniform or (0.0, 1.0)
    return d.FloatDistribution(low, high, log=dimension.loguniform is not None)


def _value(dimension: Dimension, drawn: Any) -> Any:
    return dimension.values[drawn] if dimension.values is not None else drawn


def replayed(sweep: Sweep, ledger: Ledger) -> tuple[Search, list[Trial]]:
    """The search as it stood when the ledger ended, and the trials that were chosen and have not ended.

    The ledger's values hold: if the search would choose others today (another version of Optuna), the chosen trials stay as they are.
    """
    search: Search = Suggested(sweep) if sweep.search.kind == "optuna" else Listed(trials(sweep))
    known: dict[int, Trial] = {}
    for line in ledger.lines:
        if line["kind"] == "trial":
            search.again()
            known[line["number"]] = Trial(line["number"], line["values"], line["seed"])
        elif line["kind"] == "end":
            search.tell(known[line["number"]], line["objective"])
    ended = ledger.of("end")
    return search, [trial for number, trial in known.items() if number not in ended]
