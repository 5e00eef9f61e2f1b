"""What a client sends is data from outside: it is held against what was asked for before anything is summed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from numbers import Real
from typing import Any

import numpy as np

from raylora.core import lowrank
from raylora.core.errors import RunError
from raylora.core.tree import finite, match
from raylora.core.types import Broadcast, Client, ClientUpdate, Task, Tree
from raylora.federation.answers import Outcome
from raylora.federation.rounds import Executor, Stack

SPARE_METRICS = 16  # numbers beside the scores that were asked for


def refusal(update: Any, broadcast: Broadcast, client: Client, model: Tree) -> str | None:
    """Why an update is not what was asked for, or None.

    model: the client's names with their shapes as it starts; values are not looked at. Held against the task: the names of the adapter and
    of the extra trees, exactly; their shapes; float32 and finite; the count of patients; the scaling; metrics as finite numbers.
    """
    task, shapes = broadcast.task, {**model, **broadcast.adapter}
    if not isinstance(update, ClientUpdate):
        return f"sent {type(update).__name__}, expected an update"
    if not _is_number(update.num_examples) or update.num_examples != client.num_examples:
        return f"says {_short(update.num_examples)} patients, expected {client.num_examples}"
    rank = lowrank.rank_of(shapes) or client.rank
    scaling = client.scaling * client.rank / rank
    if not _is_number(update.scaling) or not math.isclose(update.scaling, scaling, rel_tol=1e-6):
        return f"says a scaling of {_short(update.scaling)}, expected {scaling:g}"
    if update.adapter_bytes is not None and (type(update.adapter_bytes) is not int or update.adapter_bytes < 0):
        return f"says {_short(update.adapter_bytes)} bytes"
    if why := _wrong_tree(update.adapter, {name: shapes[name] for name in match(shapes, task.uploads)}):
        return why
    return _wrong_extra(update.extra, task, shapes) or _wrong_metrics(update.metrics, broadcast)


def _wrong_tree(tree: Any, expected: Tree) -> str | None:
    if not isinstance(tree, Mapping):
        return f"sent {type(tree).__name__} for named arrays"
    missing, unknown = expected.keys() - tree.keys(), tree.keys() - expected.keys()
    if missing or unknown:
        return f"{len(missing)} names are missing ({_short(sorted(missing)[:1])}), {len(unknown)} were not asked for ({_short([*unknown][:1])})"
    for name, wanted in expected.items():
        value = tree[name]
        if type(value) is not np.ndarray or value.dtype != np.float32:
            return f"{name} is {value.dtype if isinstance(value, np.ndarray) else type(value).__name__}, expected float32"
        if value.shape != wanted.shape:
            return f"{name} has shape {value.shape}, expected {wanted.shape}"
        if not finite(value):
            return f"{name} has values that are not finite"
    return None


def _wrong_extra(extra: Any, task: Task, shapes: Tree) -> str | None:
    """Control variates are the one thing that clients send beside the adapter, and not before they have trained."""
    if not isinstance(extra, Mapping):
        return f"sent {type(extra).__name__} for extra trees"
    expected = {"delta_c"} if task.phases and "control" in task.phases[-1].terms else set[str]()
    if set(extra) != expected:
        return f"sent the extra trees {_short([*extra])}, expected {_short([*expected])}"
    if not expected:
        return None
    return _wrong_tree(extra["delta_c"], {name: shapes[name] for name in match(shapes, task.phases[-1].trains)})


def _wrong_metrics(metrics: Any, broadcast: Broadcast) -> str | None:
    """Scores are of the client's own model, before and after training, and of others' that it was shown."""
    scores = broadcast.task.scores
    if not isinstance(metrics, Mapping) or len(metrics) > SPARE_METRICS + len(scores):
        return "sent something else than a few metrics"
    for name, number in metrics.items():
        if not isinstance(name, str) or not _is_number(number) or not math.isfinite(number):
            return f"the metric {_short(name)} is {_short(number)}"
    for name in scores:
        if f"score_{name}" not in metrics and (name in ("received", "trained") or name in broadcast.extra):
            return f"the score {_short(name)} is missing"
    return None


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _short(value: Any) -> str:
    """For a message: what it is, whatever it is."""
    try:
        return " ".join(repr(value).split())[:60]
    except Exception:
        return type(value).__name__


class Checked:
    """An `Executor` that hands on well-formed updates alone. Of a client whose update is not, the run ends (`stop`), or the update is left out
    of this round (`exclude`): then its outcome carries the reason and an empty update, and what the client keeps has moved as it says (but for
    SCAFFOLD's c_k, see `rounds.end_round`).

    An update in the name of somebody who was not asked ends the run in any case: nobody can tell whose it is. Raises RunError.
    """

    def __init__(self, executor: Executor, clients: Sequence[Client], models: Mapping[str, Tree], malformed: str) -> None:
        self.executor, self.models, self.malformed = executor, models, malformed
        self.clients = {client.id: client for client in clients}

    def train(self, stacks: Sequence[Stack]) -> Iterator[Outcome]:
        return self._checked(self.executor.train(stacks), {client: broadcast for stack in stacks for client, broadcast in stack})

    def _checked(self, answers: Iterator[Outcome], asked: dict[str, Broadcast]) -> Iterator[Outcome]:
        for outcome in answers:
            name = getattr(outcome.update, "client_id", None)
            if not isinstance(name, str) or name not in asked:
                raise RunError(f"an update in the name of {_short(name)}, who was not asked or has answered already")
            broadcast = asked.pop(name)
            why = refusal(outcome.update, broadcast, self.clients[name], self.models[name])
            if why is not None and self.malformed == "stop":
                raise RunError(f"round {broadcast.task.round + 1}, client {name}: {why}")
            yield outcome if why is None else replace(outcome, update=ClientUpdate(client_id=name, num_examples=0, adapter={}), refused=why)
        if asked:
            raise RunError(f"no update came from {', '.join(sorted(asked))}")

    def __getattr__(self, name: str) -> Any:
        return getattr(self.executor, name)
