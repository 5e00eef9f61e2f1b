"""Which runs may be compared, which are repeats of one configuration under other seeds, and what a configuration is called."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from raylora.core.values import flat
from raylora.metrics.matrix import Sample, sample
from raylora.metrics.panel import Panel, panel
from raylora.metrics.rows import FROZEN, GLOBAL, CaseTable
from raylora.report.runs import Run
from raylora.report.table import short_key
from raylora.strategies import default_options

# Keys that name, place or record a run and decide no number of it; the seed makes repeats; which data it was is told by their hash.
NO_DIFFERENCE = (
    *("name.", "seed.", "placement.", "tracking.", "checkpoint.", "evaluation.", "data.root.", "data.cache.", "data.dataset."),
    *("training.cache_gb.", "model.weights_folder."),
)
BASELINE = "fedit"
WEIGHTS = "model.weights"
STACK = "training.stack"  # if it was measured (`auto`), each run has its own: it tells runs apart only where one seed was run with several


@dataclass(frozen=True)
class Group:
    """One configuration: its runs under different seeds, in order of seed."""

    label: str
    settings: Mapping[str, Any]  # the keys that vary within the block, with this group's values
    runs: tuple[Run, ...]

    @property
    def strategy(self) -> str:
        return self.runs[0].strategy

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(run.seed for run in self.runs)

    def mean(self, key: str) -> float | None:
        """The mean over seeds of a number of the summary."""
        values = [run.summary.get(key) for run in self.runs]
        return float(np.mean(values)) if values and None not in values else None

    def in_client(self, metric: str, split: str = "test") -> Panel:
        """Each client's own model on its own patients."""
        return panel([(run.seed, at_home(_table(run, split), metric, run.clients)) for run in self.runs])

    def cross_client(self, metric: str) -> Panel | None:
        """Each client's full model on the patients of the other clients; None for one client."""
        rows = [(run.seed, row) for run in self.runs for row in abroad(run.test, metric, run.clients)]
        return panel(rows) if rows else None

    def of_model(self, metric: str, model: str, sites: Sequence[str]) -> Panel | None:
        """One model ("frozen", "global") on the patients of some clients; None if it was not scored there."""
        rows = [(run.seed, {c: sample(run.test, metric, model, c) for c in sites}) for run in self.runs]
        made = panel(rows) if sites else None
        return made if made is not None and made.patients else None


def at_home(table: CaseTable, metric: str, clients: Sequence[str]) -> dict[str, Sample]:
    """Each client's own model on its own patients."""
    return {client: sample(table, metric, table.own_model(client), client) for client in clients}


def abroad(table: CaseTable, metric: str, clients: Sequence[str]) -> list[dict[str, Sample]]:
    """One entry for each "k-th other client": the models of the others on every client's patients. Clients without a model of their own
    use the global one."""
    entries = []
    for k in range(len(clients) - 1):
        entry = {}
        for number, client in enumerate(clients):
            other = clients[(number + k + 1) % len(clients)]
            entry[client] = sample(table, metric, other if (other, client) in table.patients else GLOBAL, client)
        entries.append(entry)
    return entries


def blocks_of(runs: Sequence[Run]) -> dict[tuple[str, str], list[Run]]:
    """Runs by (task, data hash): only within these are patients the same. A run that ended before it knew its data is of the task's only
    data, if there is one."""
    known = {(run.task, data) for run in runs if (data := str(run.summary.get("data_sha256") or ""))}
    blocks: dict[tuple[str, str], list[Run]] = defaultdict(list)
    for run in runs:
        only = [data for task, data in known if task == run.task]
        data = str(run.summary.get("data_sha256") or "") or (only[0] if len(only) == 1 else "")
        blocks[run.task, data].append(run)
    return dict(blocks)


def groups_of(runs: Sequence[Run]) -> tuple[list[Group], list[str]]:
    """Runs of one block by configuration, in order of first appearance, and remarks on runs that were left out."""
    kept: dict[str, dict[int, Run]] = {}
    settings: dict[str, dict[str, Any]] = {}
    remarks = []
    varied = varied_keys(runs)
    for run in runs:
        config = _flat(run)
        mine = {key: _value(config, key) for key in varied}
        seeds = kept.setdefault(repr(mine), {})
        settings[repr(mine)] = mine
        if run.seed in seeds:
            remarks.append(f"{run.name} repeats {seeds[run.seed].name} (same configuration, same seed) and was left out.")
        else:
            seeds[run.seed] = run
    labels = _labels([(settings[key], next(iter(seeds.values())).strategy) for key, seeds in kept.items()])
    named = zip(labels, kept.items(), strict=True)
    return [Group(label, settings[key], tuple(seeds[s] for s in sorted(seeds))) for label, (key, seeds) in named], remarks


def varied_keys(runs: Sequence[Run]) -> list[str]:
    """The configuration keys that are not the same in all runs, without those that make no difference; the strategy's name first."""
    configs = [_flat(run) for run in runs]
    keys = sorted({key for config in configs for key in config if not f"{key}.".startswith(NO_DIFFERENCE)})
    varied = [key for key in keys if len({repr(_value(config, key)) for config in configs}) > 1]
    if STACK in varied:
        others = [key for key in varied if key != STACK]
        found = {(repr([_value(c, key) for key in others]), run.seed, c.get(STACK)) for c, run in zip(configs, runs, strict=True)}
        if len({(one, seed) for one, seed, _ in found}) == len(found):
            varied = others
    bases = {(run.summary.get("base") or {}).get("sha256") for run in runs if run.finished}
    if WEIGHTS in varied and len(bases) == 1 and None not in bases:
        varied.remove(WEIGHTS)  # the same file in two places
    return sorted(varied, key=lambda key: (key != "strategy.name", key))


def _flat(run: Run) -> dict[str, Any]:
    """The configuration with dotted keys; 1.0 is 1, however it was written."""
    return {key: _number(value) for key, value in flat(run.config).items()}


def _value(config: Mapping[str, Any], key: str) -> Any:
    """What a flat configuration says of a key: an option of a strategy that is not written out has its default."""
    if key in config or not key.startswith("strategy."):
        return config.get(key)
    return _number(default_options(str(config.get("strategy.name"))).get(key.removeprefix("strategy.")))


def _number(value: Any) -> Any:
    if isinstance(value, list):
        return [_number(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def has_all_seeds(group: Group, tried: Sequence[Group]) -> bool:
    """Whether it has finished every seed that was `tried`, in groups that hold the runs that ended early as well."""
    mine = _flat(group.runs[0])
    same = [other for other in tried if all(repr(_value(mine, key)) == repr(value) for key, value in other.settings.items())]
    return all(set(other.seeds) <= set(group.seeds) for other in same)


def baseline_of(groups: Sequence[Group], wanted: str | None) -> Group | None:
    """The group that is called so, or of that strategy; by default that of FedIT, else the first."""
    for name in (wanted,) if wanted else (BASELINE,):
        for group in groups:
            if name in (group.label, group.strategy):
                return group
    return groups[0] if groups and not wanted else None


def frozen_group(groups: Sequence[Group]) -> Group | None:
    """The first group whose runs scored the frozen model."""
    return next((group for group in groups if FROZEN in group.runs[0].test.models), None)


def _table(run: Run, split: str) -> CaseTable:
    return run.test if split == "test" else run.validation


def _labels(found: Sequence[tuple[Mapping[str, Any], str]]) -> list[str]:
    """The strategy, and behind it the keys that tell groups of one strategy apart, with as many digits as that takes."""
    by_strategy: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for settings, strategy in found:
        by_strategy[strategy].append(settings)
    labels = []
    for settings, strategy in found:
        mine = by_strategy[strategy]
        apart = [key for key in settings if key != "strategy.name" and len({repr(other[key]) for other in mine}) > 1]
        short, exact = (
            " ".join([strategy, *(f"{short_key(key, apart)}={text(settings[key])}" for key in apart)]) for text in (value_text, str)
        )
        labels.append((short, exact))
    shown = Counter(short for short, _ in labels)
    return [short if shown[short] == 1 else exact for short, exact in labels]


def value_text(value: object) -> str:
    """A setting in a label or on an axis."""
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(value_text(v) for v in value) + "]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{value_text(v)}" for key, v in value.items()) + "}"
    return "-" if value is None else str(value)
