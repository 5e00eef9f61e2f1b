"""A sweep as the command starts it: checked as a whole, counted, run by Ray Tune, followed by MLflow, ended with its comparison."""

from __future__ import annotations

import contextlib
import json
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raylora import config as configuration
from raylora import launch, run_folder
from raylora.cluster.needs import Needs
from raylora.config import Config
from raylora.core.errors import InputError, MachineError, RunError
from raylora.core.files import write_json
from raylora.sweep import space
from raylora.sweep.ledger import Ledger, plain
from raylora.sweep.search import replayed
from raylora.sweep.space import Sweep, Trial
from raylora.sweep.state import state, summary_of

if TYPE_CHECKING:
    from raylora.cluster.resources import Request
    from raylora.plan import Plan

OnEvent = Callable[[Mapping[str, Any]], None]
SHOW_S = 0.5  # between two looks at the whole sweep while trials report


def sweep(
    path: Path,
    overrides: Sequence[str] = (),
    out: Path | None = None,
    *,
    address: str | None = None,
    on_event: OnEvent = lambda event: None,
) -> tuple[Path, dict[str, Any]]:
    """Run a sweep, or go on with it; its folder and what `sweep.json` says. Raises InputError before anything is started, RunError afterwards."""
    from raylora.cluster import resources, session
    from raylora.cluster import sweep as tune

    settings = space.load(path, overrides)
    here = Path.cwd()
    base = launch.absolute(configuration.from_dict(settings.base), here)
    settings = settings.model_copy(update={"base": base.as_dict()})
    out = (out or Path("runs") / settings.name).resolve()
    with contextlib.ExitStack() as ending:
        if (out / "ledger.jsonl").exists():
            ledger = ending.enter_context(contextlib.closing(Ledger(out, settings.sha256())))
        else:
            run_folder.refuse_used(out)
            ledger = None
        if address is not None:
            ending.enter_context(session.opened(address, environments=True))
        has = session.available() if session.connected() else resources.local()

        def configured(trial: Trial) -> Config:
            return launch.absolute(settings.config(trial.values, trial.seed, trial.number), here)

        needs = Needs(configured, has, settings.limits.concurrent)
        listed = space.trials(settings) if settings.search.kind != "optuna" else []
        requests = []
        for number, trial in enumerate(listed, 1):
            try:
                requests.append(_ranked(*needs(trial)))
            except InputError as error:
                raise InputError(f"trial {trial.number} ({space.said(trial.values)}): {error}") from None
            on_event({"event": "progress", "text": "checking trials", "done": number, "total": len(listed)})
        if not listed:  # the first suggestion stands for those to come
            requests.append(_ranked(*needs(Trial(0, space.example(settings), settings.repeats[0]))))
        concurrent = tune.at_once(requests, needs.has, settings.limits.concurrent)
        if ledger is None:
            ledger = ending.enter_context(contextlib.closing(Ledger(out, settings.sha256())))
        ending.enter_context(session.opened(address, environments=True))
        return out, _run(settings, ledger, out, needs, concurrent, listed, on_event)


def _ranked(plan: Plan, request: Request) -> Request:
    """The request of a trial. Raises InputError if it could not be ranked: objectives are scores of validation patients."""
    if not any(plan.splits[client]["validation"] for client in plan.homes):
        raise InputError("data.fractions: no client has a validation patient, and trials are ranked by validation patients alone")
    return request


def _run(
    settings: Sweep, ledger: Ledger, out: Path, needs: Needs, concurrent: int, listed: Sequence[Trial], on_event: OnEvent
) -> dict[str, Any]:
    """What `sweep` does once everything has been checked."""
    from raylora.cluster import sweep as tune

    total = len(listed) or (settings.search.trials or 0) * len(settings.repeats)
    total = max(min(total, settings.limits.trials or total), len(ledger.of("trial")))  # what was begun under another limit is ended
    (out / "sweep.yaml").write_text(configuration.dump(settings), encoding="utf-8")
    search, unfinished = replayed(settings, ledger)
    base = configuration.from_dict(settings.base)
    tracker = _tracker(settings, ledger, needs, base)
    began = time.monotonic()
    before = len(ledger.of("end"))

    rows: dict[int, Mapping[str, Any]] = {}  # of trials that have ended
    stopped: list[Trial] = []
    shown = -SHOW_S

    def show(over: bool = False) -> dict[str, Any]:
        nonlocal shown
        found = state(settings, ledger, out, over=over, total=total, known=rows)
        rows.update((row["number"], row) for row in found["trials"] if row["status"] != "unfinished")
        ended = sum(found["counts"][status] for status in ("finished", "pruned", "failed"))
        per_trial = (time.monotonic() - began) / (ended - before) if ended > before else None
        left_s = None if per_trial is None else per_trial * (total - ended)
        on_event({"event": "sweep", "state": found, "left_s": left_s, "concurrent": concurrent})
        shown = time.monotonic()
        return found

    def told(what: str, trial: Trial, result: Mapping[str, Any]) -> None:
        folder = out / "trials" / trial.folder
        if tracker is not None:
            tracker.told(what, trial, result, folder)
        if what in ("finished", "pruned", "failed"):
            write_json(out / "sweep.json", show())
        elif what == "stopped":
            stopped.append(trial)
            on_event({"event": "note", "text": f"trial {trial.number} cannot go on: {result['error']}; the same command goes on with it"})
        elif what == "report" and time.monotonic() - shown > SHOW_S:
            show()

    whole = "FAILED"
    rounds = max(settings.config(t.values, t.seed, t.number).training.rounds for t in listed) if listed else base.training.rounds
    try:
        if len(ledger.of("end")) < total:
            show()
            tune.run(
                ledger,
                search,
                unfinished,
                out / "trials",
                needs,
                metric=settings.objective.metric,
                judge=tune.scheduler(settings, rounds),
                concurrent=concurrent,
                left_s=settings.limits.hours and settings.limits.hours * 3600,
                told=told,
            )
        found = show(over=True)
        if tracker is not None:
            found["mlflow"] = {**tracker.where, "run_id": tracker.ids()["parent"]}
        whole = "FINISHED" if found["status"] == "finished" else "KILLED"
        write_json(out / "sweep.json", found)
        _compare(out, found, on_event)
        if stopped:
            numbers = ", ".join(str(trial.number) for trial in stopped)
            raise MachineError(f"trials that could not go on: {numbers}; the same command goes on with them")
        return found
    except (KeyboardInterrupt, InputError, RunError) as error:
        whole = "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED"
        with contextlib.suppress(OSError):
            write_json(out / "sweep.json", show(over=True))  # stopped: `upload` and `compare` take what there is
        raise
    finally:
        if tracker is not None and (missing := tracker.end(whole, out)):
            on_event({"event": "note", "text": f"{missing}; `raylora upload {shlex.quote(str(out))}` brings the record later"})


def _compare(out: Path, found: Mapping[str, Any], on_event: OnEvent) -> None:
    """The comparison page, if a trial has finished; those that were pruned or failed count as tried."""
    from raylora.report import compare as comparing

    if found["counts"]["finished"]:
        on_event({"event": "phase", "text": "writing the comparison"})
        try:
            comparing.compare([out]).write_html(out / "comparison.html")
        except InputError as error:  # trials on different data: their tables would say nothing
            on_event({"event": "note", "text": f"no comparison page: {error}"})


class Following:
    """MLflow's record of a sweep, kept up with what the trials say."""

    def __init__(self, settings: Sweep, ledger: Ledger, needs: Needs, tracking: Any) -> None:
        from raylora.provenance import code_sha256
        from raylora.tracking.mlflow import SweepTracker, sweep_key

        told = [line for line in ledger.lines if line["kind"] == "mlflow"]
        trials = {int(number): id for line in told for number, id in line["trials"].items()}
        self.settings, self.ledger, self.needs = settings, ledger, needs
        self.passed_on: dict[int, int] = {}  # trial -> rounds, by this process: one before it may have died before MLflow had them
        self.where = {"tracking_uri": tracking.uri, "experiment": tracking.experiment}
        key = sweep_key(settings.sha256(), ledger.path)  # a sweep whose ids were lost with its process is found again
        values = settings.model_dump(exclude={"base"}, exclude_none=True)
        tags = {"raylora.key": key, "sweep_sha256": settings.sha256(), "code_sha256": code_sha256(), "task": settings.base["task"]}
        self.tracker = SweepTracker(
            tracking.uri,
            tracking.experiment,
            settings.name,
            plain(values),
            tags,
            tracking.client_runs,
            known=trials,
            parent=told[-1]["parent"] if told else None,
        )
        self.written = self.ids()

    def ids(self) -> dict[str, Any]:
        parent, trials = self.tracker.ids()
        return {"parent": parent, "trials": {str(number): id for number, id in trials.items()}}

    def told(self, what: str, trial: Trial, result: Mapping[str, Any], folder: Path) -> None:
        """Pass on what a trial says, each of its rounds once.

        A trial that goes on says all its rounds again: those that are in MLflow already are not written there twice.
        """
        if what == "started":
            plan, _ = self.needs(trial)
            tags = launch.tags(plan.config, plan.data_sha256, "raylora sweep")
            self.tracker.trial(trial.number, plan.config.name, plan.config.as_dict(), tags)
            return
        before = self.passed_on.get(trial.number, 0)
        lines = [line for line in result.get("lines", ()) if line["round"] >= before]
        self.passed_on[trial.number] = max(before, result.get("round") or 0)
        if lines:
            self.tracker.rounds(trial.number, lines)
        if what == "finished":
            self.tracker.finish(trial.number, folder, self.placed(trial.number, folder))
        elif what in ("pruned", "failed"):
            self.tracker.fail(trial.number, what.upper(), summary_of(folder))
        if (ids := self.ids()) != self.written and ids["parent"] is not None:
            new = {number: id for number, id in ids["trials"].items() if self.written["trials"].get(number) != id}
            self.ledger.append({"kind": "mlflow", "parent": ids["parent"], "trials": new})
            self.written = ids

    def placed(self, number: int, folder: Path) -> dict[str, Any]:
        """A trial's summary, with where MLflow keeps it if that is known."""
        summary: dict[str, Any] = json.loads((folder / "summary.json").read_text())
        if (run_id := self.tracker.ids()[1].get(number)) is not None:
            summary["mlflow"] = {**self.where, "run_id": run_id}
            write_json(folder / "summary.json", summary)
        return summary

    def end(self, status: str, out: Path) -> str | None:
        """The sweep's end; one line on what is missing in MLflow."""
        self.tracker.end(status, out)
        return self.tracker.close()


def _tracker(settings: Sweep, ledger: Ledger, needs: Needs, base: Config) -> Following | None:
    return None if base.tracking.uri is None else Following(settings, ledger, needs, base.tracking)
