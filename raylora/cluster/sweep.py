"""A sweep on Ray Tune: a scheduler and a search that are made again from the ledger, and what becomes of the trials (`cluster.trial`)."""

from __future__ import annotations

import logging
import math
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import ray
from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler
from ray.tune.search import Searcher

from raylora.cluster.resources import Available, Request, fitting, on_nodes
from raylora.cluster.trial import DriverActor, Place
from raylora.config import Config
from raylora.core.errors import InputError, MachineError, RunError, named
from raylora.plan import Plan
from raylora.sweep.ledger import Ledger
from raylora.sweep.search import Search
from raylora.sweep.space import Sweep, Trial
from raylora.sweep.state import summary_of, write_failure

RESTARTS = 3  # of one trial's driver, after it was lost
AT_A_STAND = 2  # trials in a row that the disk stops: the next ones would fare no better
SETTLE_S = 60.0  # for pruned trials to write their end
QUIET = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the record is ours
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a failed trial has no objective
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # an interrupt ends the command as it ends every other
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000",  # nothing is unpickled when a sweep is gone on with
    "TUNE_RESULT_BUFFER_LENGTH": "1",  # a trial stands still until its report was judged
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
}
Told = Callable[[str, Trial, Mapping[str, Any]], None]
"""(what, trial, result): "started", "report", "finished", "pruned", "failed"; "stopped" where a full disk ended it for now."""


class Trouble(tune.Stopper):
    """Ends the sweep at the first exception of our own code: Tune would take it for a failure of the trial at hand."""

    def __init__(self) -> None:
        self.error: BaseException | None = None

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self.error is not None

    def watching(self, thing: Any, *names: str) -> Any:
        """The thing, with what these methods raise kept."""
        for name in names:
            setattr(thing, name, self._kept(getattr(thing, name)))
        return thing

    def _kept(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*arguments: Any, **named: Any) -> Any:
            try:
                return method(*arguments, **named)
            except BaseException as error:
                self.error = self.error or error
                raise

        return watched


class Unwritten:
    """Tune copies what it is given, and writes it as pickles that nobody reads: neither shall touch the ledger behind it."""

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self


@dataclass(frozen=True)
class Seat:
    """What a scheduler knows of a trial: the same before and after an interruption."""

    trial_id: str


class Remembered(Unwritten, FIFOScheduler):
    """A scheduler of Tune's behind the ledger: every report and every pruning is written down before it takes effect."""

    def __init__(self, inner: Any, ledger: Ledger) -> None:
        """`inner`: from `scheduler`."""
        super().__init__()
        self.ledger = ledger
        self.known: set[int] = set()
        self.inner = inner
        self.reported: dict[
            tuple[int, int], str
        ] = {}  # (trial, round) -> what was decided: a trial that goes on reports its last round again
        self.complete: set[int] = set()
        for number in ledger.of("trial"):
            self._add(number)
        for line in ledger.lines:  # as it happened
            if line["kind"] == "report" and line.get("last"):
                self.reported[line["number"], line["round"]] = TrialScheduler.CONTINUE
                self._complete(line["number"], line["round"], line["objective"])
            elif line["kind"] == "report":
                decision = self._judge(line["number"], {"round": line["round"], "objective": line["objective"]})
                self.reported[line["number"], line["round"]] = decision
            elif line["kind"] == "pruned":
                self._complete(line["number"], *ledger.reports(line["number"])[-1])

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        if _number(trial) not in self.known:
            self._add(_number(trial))

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        number, value = _number(trial), result.get("objective")
        if value is None:
            return TrialScheduler.CONTINUE
        key = (number, result["round"])
        if key not in self.reported:
            self.ledger.append({"kind": "report", "number": number, "round": result["round"], "objective": value})
            self.reported[key] = self._judge(number, {"round": result["round"], "objective": value})
        if self.reported[key] == TrialScheduler.STOP and number not in self.ledger.of("pruned"):
            self.ledger.append({"kind": "pruned", "number": number, "round": result["round"]})
        return self.reported[key]

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """Of a trial that has done all its rounds Tune asks no decision about the last: those still running are compared with it."""
        number, value = _number(trial), result.get("objective")
        if value is None:  # it has failed
            return
        whole = result.get("status") not in ("running", "stopped")  # else it was pruned; or a full disk has stopped it, and it may go on
        if (number, result["round"]) not in self.reported:
            last = {"last": True} if whole else {}
            self.ledger.append({"kind": "report", "number": number, "round": result["round"], "objective": value, **last})
            self.reported[number, result["round"]] = TrialScheduler.CONTINUE
        if whole or number in self.ledger.of("pruned"):
            self._complete(number, result["round"], value)

    def _add(self, number: int) -> None:
        self.known.add(number)
        if self.inner is not None:
            self.inner.on_trial_add(None, Seat(str(number)))

    def _judge(self, number: int, result: dict[str, Any]) -> str:
        return TrialScheduler.CONTINUE if self.inner is None else str(self.inner.on_trial_result(None, Seat(str(number)), result))

    def _complete(self, number: int, round: int, objective: float) -> None:
        """Once, though a trial that goes on after an interruption ends again."""
        if self.inner is not None and number not in self.complete:
            self.inner.on_trial_complete(None, Seat(str(number)), {"round": round, "objective": objective})
        self.complete.add(number)


def scheduler(sweep: Sweep, max_rounds: int) -> Any:
    """Tune's own scheduler for a sweep; None: no trial is stopped early."""
    common: dict[str, Any] = {"time_attr": "round", "metric": "objective", "mode": sweep.objective.mode}
    if sweep.scheduler.kind == "asha":
        grace = min(sweep.scheduler.grace, max_rounds)
        return ASHAScheduler(
            **common, max_t=max_rounds, grace_period=grace, reduction_factor=sweep.scheduler.reduction, stop_last_trials=False
        )
    if sweep.scheduler.kind == "median":  # it would pause trials that have nothing to be compared with; ours cannot be paused
        return MedianStoppingRule(**common, grace_period=sweep.scheduler.grace, min_time_slice=float("inf"))
    return None


class Asked(Unwritten, Searcher):
    """Hands out the trials that were left unfinished, then the search's. One that turns out impossible has failed, and the next is asked for."""

    def __init__(self, search: Search, unfinished: Sequence[Trial], ledger: Ledger, place: Callable[[Trial], Place], folder: Path) -> None:
        super().__init__(metric="objective", mode="max")
        self.search, self.unfinished, self.ledger, self.place, self.folder = search, list(unfinished), ledger, place, folder

    def suggest(self, trial_id: str) -> Any:
        trial: Trial | None
        while self.unfinished:
            trial = self.unfinished.pop(0)
            try:
                return {"place": self.place(trial)}
            except InputError as error:
                was_possible = self.ledger.of("trial")[trial.number]["config_sha256"] is not None
                if was_possible:  # on another machine, or while the data were there
                    raise
                self._impossible(trial, error)
        while (trial := self.search.next()) is not None:
            about = {"kind": "trial", "number": trial.number, "values": trial.values, "seed": trial.seed}
            try:
                place = self.place(trial)
            except InputError as error:
                self.ledger.append({**about, "config_sha256": None})
                self._impossible(trial, error)
                continue
            self.ledger.append({**about, "config_sha256": place.config_sha256})
            return {"place": place}
        return Searcher.FINISHED

    def _impossible(self, trial: Trial, error: InputError) -> None:
        write_failure(self.folder / trial.folder, None, str(error))
        self.ledger.append({"kind": "end", "number": trial.number, "status": "failed", "objective": None})
        self.search.tell(trial, None)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """The ledger's "end" tells the search."""

    def save(self, checkpoint_path: str) -> None:
        """The ledger is what is kept."""

    def restore(self, checkpoint_path: str) -> None:
        """The ledger is what is gone on with."""


class Followed(Unwritten, tune.Callback):
    """What happens to trials, for the ledger, the search and whoever listens."""

    def __init__(self, search: Search, ledger: Ledger, folder: Path, trials: dict[int, Trial], told: Told) -> None:
        self.search, self.ledger, self.folder, self.trials, self.told = search, ledger, folder, trials, told
        self.stopped: dict[int, Mapping[str, Any]] = {}  # pruned, their summary not yet written
        self.started: set[int] = set()
        self.at_a_stand = 0  # trials in a row that the disk has stopped

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        if _number(trial) not in self.started:  # not when its driver was lost
            self.started.add(_number(trial))
            self.told("started", self._of(trial), {})

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any) -> None:
        self.told("report", self._of(trial), result)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        result = trial.last_result
        number = _number(trial)
        if self.ledger.ended(number):
            return
        if result.get("status") == "stopped":
            self._stopped(number, result)
        elif result.get("status", "running") == "running":  # Tune's word for one that its scheduler or the time limit stopped
            if number in self.ledger.of("pruned"):
                self.stopped[number] = result
        else:
            self._end(number, result)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Its driver was lost too often, or could not begin: what goes wrong inside a trial is a report."""
        number = _number(trial)
        if self.ledger.ended(number):
            return
        summary, reports = summary_of(self.folder / self.trials[number].folder), self.ledger.reports(number)
        if summary.get("status") == "finished" and reports and reports[-1][0] == summary["rounds"]:  # lost after its end
            self._end(number, {"status": "finished", "objective": reports[-1][1]})
            return
        raised = _raised(trial.get_error())
        said = f"its driver ended {RESTARTS + 1} times with {raised}" if raised else f"its driver was lost {RESTARTS + 1} times"
        write_failure(self.folder / self.trials[number].folder, trial.config["place"].plan.config, said)
        self._end(number, {"status": "failed", "objective": None, "error": said})

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        self.settle()

    def settle(self) -> None:
        """Note the end of pruned trials whose summary has been written."""
        for number, result in list(self.stopped.items()):
            if summary_of(self.folder / self.trials[number].folder).get("status") == "pruned":
                del self.stopped[number]
                self._end(number, {**result, "status": "pruned"})

    def _stopped(self, number: int, result: Mapping[str, Any]) -> None:
        """It can go on another day. Where that happens to one after the other, the disk needs somebody's help: raises MachineError."""
        self.told("stopped", self.trials[number], result)
        self.at_a_stand += 1
        if self.at_a_stand >= AT_A_STAND:
            raise MachineError(
                f"{AT_A_STAND} trials in a row could not go on, the last: {result['error']}; the same command goes on from here"
            )

    def _end(self, number: int, result: Mapping[str, Any]) -> None:
        self.at_a_stand = 0
        objective = result.get("objective")
        self.ledger.append({"kind": "end", "number": number, "status": result["status"], "objective": objective})
        self.search.tell(self.trials[number], objective)
        self.told(result["status"], self.trials[number], result)

    def _of(self, trial: Any) -> Trial:
        return self.trials[_number(trial)]


def _raised(said: str | None) -> str | None:
    """The exception that ended a trial's driver the last time, by Tune's text of its failures; None if its process was lost."""
    last = (said or "").rpartition("Failure # ")[2]
    found = [line for line in last.splitlines() if re.match(r"[A-Za-z_][\w.]*: ", line)] if "Traceback" in last else []
    return found[-1][:500] if found else None


def _number(trial: Any) -> int:
    return int(trial.config["place"].number)


def _name(trial: Any) -> str:
    return f"{_number(trial):03d}"


def share(config: Config, has: Available, concurrent: int | None) -> Available:
    """What one trial may fill: with `clients_per_actor: auto` its part of the actors that fit, or one where any number of trials may run."""
    place = config.placement
    if place.clients_per_actor != "auto":
        return has
    actors = 1 if concurrent is None else max(1, fitting(has, place.cpus_per_client, place.gpus_per_client) // concurrent)
    return Available(cpus=actors * place.cpus_per_client, gpus=math.ceil(actors * place.gpus_per_client), where=has.where)


def at_once(requests: Sequence[Request], has: Available, limit: int | None) -> int:
    """How many trials fit side by side, the largest of them. Raises InputError if not one does."""
    fits = min(fitting(has, request.cpus, request.gpus) // len(request.groups) for request in requests)
    if not fits:
        largest = max(requests, key=lambda request: len(request.groups) * request.cpus)
        raise InputError(
            f"placement: a trial needs {len(largest.groups)} actors of {largest.cpus:g} CPUs and {largest.gpus:g} GPUs, "
            f"{has.where} has {has.cpus:g} CPUs and {has.gpus:g} GPUs{on_nodes(has)}; placement.clients_per_actor=auto puts all clients into one actor"
        )
    return min(fits, limit or fits)


def run(
    ledger: Ledger,
    search: Search,
    unfinished: Sequence[Trial],
    folder: Path,
    prepare: Callable[[Trial], tuple[Plan, Request]],
    *,
    metric: str,
    judge: Any = None,
    concurrent: int,
    left_s: float | None = None,
    told: Told,
) -> None:
    """Run what is left of a sweep on the Ray that is connected. `prepare` gives each trial's plan and actors.

    `metric`: what trials report of their validation patients; `judge`: from `scheduler`. Raises RunError if Tune itself fails.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    for name in ("ray.tune", "ray.train", "ray.air"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    held: dict[int, Any] = {}  # where Ray holds the weights of a plan: once for all trials that share them
    trials: dict[int, Trial] = {}
    pruned = {number: line["round"] for number, line in ledger.of("pruned").items()}

    def place(trial: Trial) -> Place:
        plan, request = prepare(trial)
        trials[trial.number] = trial
        if id(plan.weights) not in held:
            held[id(plan.weights)] = ray.put(dict(plan.weights))
        return Place(
            number=trial.number,
            plan=plan.with_weights({}),
            weights=held[id(plan.weights)],
            folder=str(folder / trial.folder),
            ledger=str(ledger.path),
            metric=metric,
            until=pruned.get(trial.number),
            request=request,
            node=f"node:{ray.util.get_node_ip_address()}",
        )

    trouble = Trouble()
    followed = trouble.watching(
        Followed(search, ledger, folder, trials, told),
        "on_trial_start",
        "on_trial_result",
        "on_trial_complete",
        "on_trial_error",
        "on_step_end",
    )
    asked = trouble.watching(Asked(search, unfinished, ledger, place, folder), "suggest")
    remembered = trouble.watching(Remembered(judge, ledger), "on_trial_add", "on_trial_result", "on_trial_complete")
    storage = Path(tempfile.mkdtemp(prefix="raylora-tune-"))
    try:
        tuner = tune.Tuner(
            DriverActor,
            tune_config=tune.TuneConfig(
                search_alg=asked,
                scheduler=remembered,
                num_samples=-1,
                max_concurrent_trials=concurrent,
                reuse_actors=True,
                trial_name_creator=_name,
                trial_dirname_creator=_name,
                time_budget_s=left_s,
            ),
            run_config=tune.RunConfig(
                name="sweep",
                storage_path=str(storage),
                verbose=0,
                stop=trouble,
                callbacks=[followed],
                failure_config=tune.FailureConfig(max_failures=RESTARTS),
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            ),
        )
        tuner.fit()
        if trouble.error is not None:
            raise trouble.error
        until = time.monotonic() + SETTLE_S
        while followed.stopped and time.monotonic() < until:
            followed.settle()
            time.sleep(0.05)
    except (InputError, RunError, KeyboardInterrupt):
        raise
    except Exception as error:
        if isinstance(trouble.error, InputError | RunError):
            raise trouble.error from None
        raise RunError(f"Ray Tune: {named(error)}") from error
    finally:
        shutil.rmtree(storage, ignore_errors=True)
