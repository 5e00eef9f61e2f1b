"""A stress campaign as the command starts it: planned as a whole, its experiments trials of Ray Tune behind a ledger, ended with its page."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from raylora import config as configuration
from raylora import launch, run_folder
from raylora import stress as space
from raylora.cluster.needs import Needs
from raylora.core.errors import InputError, MachineError, RunError
from raylora.core.files import write_json
from raylora.report.stress import Ended, campaign, write_campaign
from raylora.stress import Stress, Trial
from raylora.sweep.ledger import Ledger, plain
from raylora.sweep.search import Listed
from raylora.sweep.space import METRICS
from raylora.sweep.state import summary_of

OnEvent = Callable[[Mapping[str, Any]], None]


def stress(
    path: Path,
    overrides: Sequence[str] = (),
    out: Path | None = None,
    *,
    address: str | None = None,
    on_event: OnEvent = lambda event: None,
) -> tuple[Path, Any]:
    """Run a campaign, or go on with it; its folder and what came of it.

    An experiment that is refused (a strategy that cannot work so) or that fails is a result, with its reason on the page. Raises InputError
    for a file that is wrong, if nothing fits the machine, or if every experiment is refused.
    """
    from raylora.cluster import resources, session
    from raylora.cluster import sweep as tune

    settings = space.load(path, overrides)
    here = Path.cwd()
    base = launch.absolute(configuration.from_dict(settings.base), here)
    settings = settings.model_copy(update={"base": base.as_dict()})
    out = (out or Path("runs") / settings.name).resolve()
    listed = space.trials(settings)
    with contextlib.ExitStack() as ending:
        if (out / "ledger.jsonl").exists():
            ledger = ending.enter_context(contextlib.closing(Ledger(out, settings.sha256())))
        else:
            run_folder.refuse_used(out)
            ledger = None
        left = [trial for trial in listed if ledger is None or not ledger.ended(trial.number)]
        if left:
            if address is not None:
                ending.enter_context(session.opened(address, environments=True))
            has = session.available() if session.connected() else resources.local()
            needs = Needs(lambda trial: launch.absolute(settings.config(trial), here), has)
            requests, refused = _planned(needs, left, on_event)
            if len(refused) == len(listed):
                raise InputError(f"{path}: every experiment was refused; the first: {next(iter(refused.values()))}")
            concurrent = tune.at_once(list(requests.values()), needs.has, None) if requests else 0
            if ledger is None:
                ledger = ending.enter_context(contextlib.closing(Ledger(out, settings.sha256())))
            (out / "stress.yaml").write_text(configuration.dump(settings), encoding="utf-8")
            for number, why in refused.items():
                if ledger.of("end").get(number, {}).get("why") != why:
                    ledger.append({"kind": "end", "number": number, "status": "refused", "why": why})
            if possible := [trial for trial in left if trial.number in requests]:
                ending.enter_context(session.opened(address, environments=True))
                _conduct(settings, listed, possible, ledger, out, needs, concurrent, on_event)
        assert ledger is not None
        ends = ledger.of("end")
        if still := [trial for trial in listed if trial.number not in ends]:
            raise MachineError(f"{len(still)} experiments could not go on, the first: {still[0].said}; the same command goes on with them")
        if settings.base["tracking"]["uri"] is not None:
            _track([trial for trial in listed if ends[trial.number]["status"] == "finished"], ledger, out, on_event)
    on_event({"event": "phase", "text": "writing the page"})
    return out, _ended(settings, listed, ends, out)


def _planned(needs: Needs, left: Sequence[Trial], on_event: OnEvent) -> tuple[dict[int, Any], dict[int, str]]:
    """({trial: its actors}, {trial: why it is refused})."""
    requests, refused = {}, {}
    for done, trial in enumerate(left, 1):
        try:
            requests[trial.number] = needs(trial)[1]
        except InputError as error:
            refused[trial.number] = str(error)
        on_event({"event": "progress", "text": "checking experiments", "done": done, "total": len(left)})
    return requests, refused


def _conduct(
    settings: Stress,
    listed: Sequence[Trial],
    left: Sequence[Trial],
    ledger: Ledger,
    out: Path,
    needs: Needs,
    concurrent: int,
    on_event: OnEvent,
) -> None:
    """Run what is left, as many at once as fit."""
    from raylora.cluster import sweep as tune

    def told(what: str, trial: Any, result: Mapping[str, Any]) -> None:
        if what not in ("finished", "failed", "stopped"):
            return
        done = len(ledger.of("end"))
        said = f"experiment {trial.number + 1} of {len(listed)} {what}: {trial.said}"
        on_event({"event": "note", "text": said + (f": {result['error']}" if what != "finished" else "")})
        on_event({"event": "progress", "text": "experiments", "done": done, "total": len(listed)})

    begun = ledger.of("trial")
    on_event({"event": "progress", "text": "experiments", "done": len(listed) - len(left), "total": len(listed)})
    tune.run(
        ledger,
        Listed([trial for trial in left if trial.number not in begun]),
        [trial for trial in left if trial.number in begun],
        out / "trials",
        needs,
        metric=METRICS[settings.base["task"]][0],
        concurrent=concurrent,
        told=told,
    )


def _track(finished: Sequence[Trial], ledger: Ledger, out: Path, on_event: OnEvent) -> None:
    """The experiments into MLflow, each as a run of its own, once all have ended: a server that does not answer slows none of them."""
    missing = [trial for trial in finished if trial.number not in ledger.of("tracked")]
    for done, trial in enumerate(missing, 1):
        try:
            launch.upload(out / "trials" / trial.folder)
        except (InputError, RunError) as error:
            again = f"the same command, called again, brings the records of {len(missing) - done + 1} experiments"
            on_event({"event": "note", "text": f"{error}; {again}"})
            return
        ledger.append({"kind": "tracked", "number": trial.number})
        on_event({"event": "progress", "text": "into MLflow", "done": done, "total": len(missing)})


def _ended(settings: Stress, listed: Sequence[Trial], ends: Mapping[int, Any], out: Path) -> Any:
    """Everything that the page says, written down."""
    done = [
        Ended(
            number=trial.number,
            label=trial.label,
            levels=tuple(trial.levels.values()),
            seed=trial.seed,
            status=ends[trial.number]["status"],
            why=ends[trial.number].get("why") or str(summary_of(out / "trials" / trial.folder).get("error", "")),
            folder=out / "trials" / trial.folder,
        )
        for trial in listed
    ]
    found = campaign(settings.name, {key: tuple(levels) for key, levels in settings.dials.items()}, list(settings.strategies), done)
    write_campaign(found, out / "stress.html", configuration.dump(settings))
    write_json(out / "stress.json", plain(found.as_dict()))
    return found
