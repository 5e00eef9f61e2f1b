"""A run as the command starts it: checked here, run by a driver actor, followed by MLflow, ended with its report."""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raylora import config as configuration
from raylora import run_folder
from raylora.config import Config
from raylora.core.errors import InputError, MachineError, RunError, named
from raylora.core.files import absolute_path, read_json_object, write_json
from raylora.core.loading import uncollected
from raylora.data import obtain
from raylora.data.manifest import Manifest, PrepareOptions, read_manifest
from raylora.method import make_strategy
from raylora.planner import Planner

if TYPE_CHECKING:
    from raylora.tracking.mlflow import Finished, Uploaded

Event = Mapping[str, Any]


def absolute(config: Config, here: Path) -> Config:
    """The same with every relative path made absolute: actors may have another working folder."""
    values = config.as_dict()
    data, model, tracking = values["data"], values["model"], values["tracking"]
    sources = data["dataset"] if isinstance(data["dataset"], list) else [data]
    for source in (*sources, data):
        if source.get("root") is not None:
            source["root"] = str(absolute_path(source["root"], here, "data.root"))
    if data["cache"] is not None:
        data["cache"] = str(absolute_path(data["cache"], here, "data.cache"))
    if model["weights"] is not None:
        from raylora.models import files

        with contextlib.suppress(InputError):  # what is missing is said where it is needed
            found = files.find(model["weights"], model["weights_folder"], model["name"])
            if found.parent != files.SHIPPED:
                model["weights"] = os.path.abspath(here / found)  # not what a link points to: a file says by its name what it has seen
    if tracking["uri"] is not None:
        from raylora.tracking.mlflow import resolved

        tracking["uri"] = resolved(tracking["uri"], here)
    return configuration.from_dict(values)


def run(
    config: Config, out: Path, *, address: str | None = None, on_event: Callable[[Event], None] = lambda event: None, resume: bool = False
) -> dict[str, Any]:
    """Run one experiment into `out` and return its summary. Raises InputError before anything is left behind, RunError afterwards."""
    make_strategy(config)  # a misspelt name is said before torch and Ray are loaded
    if not resume:
        run_folder.refuse_used(out)
        config = absolute(config, Path.cwd())
    with contextlib.ExitStack() as ending:
        if resume:
            ending.enter_context(run_folder.alone(out))
        planner = ending.enter_context(contextlib.closing(Planner()))
        with uncollected():
            from raylora.cluster import resources, session  # while torch is loaded over there

        planner.ask(config, _told(on_event))  # what is not prepared yet is prepared here: other machines need not see the files
        own = address is None and not session.connected()
        try:
            ending.enter_context(session.opened(address))  # Ray starts beside the planning
        except RunError:
            planner.result(_told(on_event))  # what is wrong with what was asked for is said first
            raise
        plan = planner.result(_told(on_event))
        if own:
            resources.request_of(plan, resources.local(), resume)  # says "this machine" where it has too little
        request = resources.request_of(plan, session.available(), resume)
        if address is not None and (taken := session.taken_by_others(request)):
            on_event({"event": "note", "text": taken})
        made: list[Path] = []
        if not resume:
            made = run_folder.claim(out, configuration.dump(config))
            ending.enter_context(run_folder.alone(out))
        try:
            return _run(config, plan, request, out, address=address, on_event=on_event, resume=resume)
        except InputError as error:
            if resume:
                raise
            if any((out / "checkpoints").glob("round_*")):  # of a study that could not be read any more
                raise MachineError(_goes_on(error, out)) from error
            run_folder.forget(out, made)
            raise
        except MachineError as error:
            raise MachineError(_goes_on(error, out)) from error


def _goes_on(error: Exception, out: Path) -> str:
    return f"{error}; `raylora resume {shlex.quote(str(out))}` goes on after the last complete round"


def _run(
    config: Config, plan: Any, request: Any, out: Path, *, address: str | None, on_event: Callable[[Event], None], resume: bool
) -> dict[str, Any]:
    """What `run` does once everything has been checked and the folder is its own."""
    from raylora.cluster import driver
    from raylora.tracking.record import lines_before

    tracker = _tracker(config, plan, out)
    status = "FAILED"
    try:
        summary: dict[str, Any] | None = None
        for event in driver.run(plan, out, address=address, resume=resume, request=request):
            if tracker is not None and event["event"] == "start" and event["round"]:  # what was told before may never have arrived
                tracker.rounds(lines_before(out, event["round"]))
            if tracker is not None and event["event"] == "round":
                tracker.rounds(event["lines"])
            if event["event"] == "done":
                summary = dict(event["summary"])
            else:
                on_event(event)
        if summary is None:
            raise RunError("the driver ended without a summary")
        summary = _finished(out, summary, tracker)
        on_event({"event": "phase", "text": "writing the report"})
        _report(out)
        if tracker is not None:
            tracker.finish(out, summary)
        status = "FINISHED"
        return summary
    except OSError as error:
        raise MachineError(f"{error.filename or out}: {error.strerror or error}") from error
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        if tracker is not None:
            if status != "FINISHED":
                tracker.fail(status)
            lost = tracker.close()
            if lost:
                folder = shlex.quote(str(out))
                first = "" if status == "FINISHED" else f"`raylora resume {folder}` and then "
                on_event({"event": "note", "text": f"{lost}; {first}`raylora upload {folder}` brings the record later"})


def _report(out: Path) -> None:
    """The page, whole or not there."""
    from raylora.report.html import write_report

    write_report(out)


def plan(config: Config, *, on_event: Callable[[Event], None] = lambda event: None) -> dict[str, Any]:
    """What a run of this configuration would do and need. Ray is not started. Raises InputError for what `run` would refuse."""
    make_strategy(config)
    from raylora.forecast import describe

    return describe(absolute(config, Path.cwd()), _told(on_event))


def _told(on_event: Callable[[Event], None]) -> Callable[[str, int, int], None]:
    """Progress as an event."""
    return lambda what, done, total: on_event({"event": "progress", "text": what, "done": done, "total": total})


def prepared_ids(out: Path) -> set[str]:
    """The studies that an earlier preparation left in a folder."""
    try:
        return {row.id for row in read_manifest(out).rows}
    except InputError:
        return set()


def prepare(
    dataset: str,
    source: Path,
    out: Path,
    spacing_mm: tuple[float, float, float],
    size: tuple[int, int, int],
    crop: str,
    *,
    skip_bad: bool,
    address: str | None = None,
    on_event: Callable[[Event], None] = lambda event: None,
) -> Manifest:
    """Prepare a download into the folder `out`, over Ray if anything is to be done. Raises InputError."""
    options = PrepareOptions(spacing_mm=spacing_mm, size=size, crop=crop)
    with contextlib.ExitStack() as ending:

        def mapper(function: Callable[[Any], Any], items: Iterable[Any]) -> Iterable[Any]:
            from raylora.cluster import mapper, session  # Ray is not even imported where there is nothing to do

            return mapper.ray_map(lambda: ending.enter_context(session.opened(address)))(function, items)

        return obtain.prepare_download(dataset, source.resolve(), out.resolve(), options, skip_bad, _told(on_event), mapper)


def _finished(out: Path, summary: dict[str, Any], tracker: Any) -> dict[str, Any]:
    """The summary with where MLflow keeps the run."""
    if tracker is not None and (where := tracker.where()) is not None:
        summary["mlflow"] = where
        write_json(out / "summary.json", summary)
    return summary


def _tracker(config: Config, plan: Any, out: Path) -> Any:
    if config.tracking.uri is None:
        return None
    from raylora.tracking.mlflow import Tracker

    return Tracker(
        config.tracking.uri,
        config.tracking.experiment,
        config.name,
        config.as_dict(),
        tags(config, plan.data_sha256),
        config.tracking.client_runs,
        out,
    )


def tags(
    config: Config, data_sha256: str, source: str = "raylora run", computed_by: Mapping[str, str | None] | None = None
) -> dict[str, str]:
    """What runs are searched by; `source` is the command that they come from, `computed_by` the code (by default, that of this process)."""
    from raylora import provenance

    computed_by = provenance.code() if computed_by is None else computed_by
    found = {
        "strategy": config.strategy.name,
        "task": config.task,
        "rank": str(config.lora.rank),
        "blocks": str(config.lora.blocks),
        "seed": str(config.seed),
        "config_sha256": config.sha256(),
        "data_sha256": data_sha256,
        "mlflow.source.name": source,
        "mlflow.user": os.environ.get("USER", ""),
    }
    if "temperature" in config.strategy.options:
        found["temperature"] = str(config.strategy.options["temperature"])
    if sha256 := computed_by.get("sha256"):
        found["code_sha256"] = sha256
    if commit := computed_by.get("commit"):
        found["mlflow.source.git.commit"] = commit
    return found


def resume(folder: Path, *, address: str | None = None, on_event: Callable[[Event], None] = lambda event: None) -> dict[str, Any]:
    """Go on with a run after its last complete round; one that lacks its page only is given it.

    Raises InputError if the folder holds no run, one that is finished, one that is under way, or a trial of a sweep.
    """
    if (folder / "ledger.jsonl").is_file():
        raise InputError(f"{folder}: a sweep or a campaign, not a run: the command that began it, with the same --output, goes on")
    if not (folder / "config.yaml").is_file():
        raise InputError(f"{folder}: no run to resume (expected config.yaml in it)")
    if not (folder / "config.yaml").stat().st_size:
        raise InputError(f"{folder}: no run to resume (its config.yaml is empty: it was ended before it had begun)")
    config = configuration.load(folder / "config.yaml")
    summary = read_json_object(folder / "summary.json") if (folder / "summary.json").is_file() else {}
    whole = folder.resolve().parent.parent
    if summary.get("status") != "finished" and (whole / "ledger.jsonl").is_file():
        raise InputError(f"{folder}: a trial of {whole}, whose ledger says where it ends: call the sweep's command again")
    if summary.get("status") != "finished":
        return run(config, folder.resolve(), address=address, on_event=on_event, resume=True)
    if (folder / "report.html").is_file():
        raise InputError(f"{folder}: this run is finished")
    with run_folder.alone(folder):
        on_event({"event": "phase", "text": "writing the report"})
        _report(folder)
    if config.tracking.uri is not None and not (whole / "ledger.jsonl").is_file():  # the run was ended before MLflow was told of its end
        try:
            upload(folder)
        except (InputError, RunError) as error:
            on_event({"event": "note", "text": f"{error}; `raylora upload {shlex.quote(str(folder))}` brings the record later"})
    return summary


def upload(folder: Path, uri: str | None = None) -> Uploaded:
    """Put a finished run, or a sweep with its trials, into an MLflow server, or what of it is missing there.

    Raises InputError for a folder without either, RunError where the server does not take it.
    """
    from raylora.tracking import mlflow

    sweep = read_json_object(folder / "sweep.json") if (folder / "sweep.json").is_file() else None
    ended_trials = (path.parent for path in sorted(folder.glob("trials/*/summary.json")) if (path.parent / "config.yaml").is_file())
    folders = [folder] if sweep is None else list(ended_trials)
    if sweep is not None and sweep.get("status") not in ("finished", "stopped"):
        raise InputError(f"{folder}: no finished sweep (its status is {sweep.get('status')}; the command that began it goes on with it)")
    if not folders:
        raise InputError(f"{folder}: expected a sweep with trials, found none that wrote a summary.json")
    ended = {path: _ended(path, "raylora run" if sweep is None else "raylora sweep") for path in folders}
    config, run = ended[folders[0]]
    if sweep is None and not run.finished:
        raise InputError(f"{folder}: no finished run (its status is {run.summary.get('status')})")
    where = uri or config.tracking.uri
    if where is None:
        raise InputError("--uri: expected a tracking server or database, the run's own tracking.uri is null")
    where = mlflow.resolved(where, Path.cwd())
    try:
        if sweep is None:
            return mlflow.upload(run, where, config.tracking.experiment)
        trials = {int(path.name): run for path, (_, run) in ended.items() if path.name.isdigit()}
        return mlflow.upload_sweep(folder, sweep, trials, where, config.tracking.experiment)
    except Exception as error:
        raise RunError(f"MLflow at {where}: {named(error)}") from None


def fetch(experiment: str, uri: str | None, into: Path, *, on_event: Callable[[Event], None] = lambda event: None) -> dict[Path, str]:
    """The ended runs of an MLflow experiment as {folder: name}, those that are not on this machine in new folders in `into`.

    `uri`: by default the database that runs are tracked in by default. Raises InputError, and RunError where the server does not answer.
    """
    from raylora.tracking import mlflow, remote

    where = mlflow.resolved(uri or str(configuration.Tracking().uri), Path.cwd())
    try:
        return remote.fetch(where, experiment, into, _told(on_event))
    except InputError:
        raise
    except Exception as error:
        raise RunError(f"MLflow at {where}: {named(error)}") from None


def _ended(folder: Path, source: str) -> tuple[Config, Finished]:
    """A run folder whose run has ended, and came from this command. Raises InputError."""
    from raylora.report.runs import read_run
    from raylora.tracking.mlflow import Finished

    if not (folder / "summary.json").is_file() or not (folder / "config.yaml").is_file():
        raise InputError(f"{folder}: no finished run (expected config.yaml and summary.json in it)")
    config, summary = configuration.load(folder / "config.yaml"), read_json_object(folder / "summary.json")
    rounds = read_run(folder).rounds  # what others wrote is looked at before it is read
    return config, Finished(
        folder=folder,
        name=config.name,
        summary=summary,
        config=config.as_dict(),
        tags=tags(config, str(summary.get("data_sha256", "")), source, summary.get("code") or {}),
        client_runs=config.tracking.client_runs,
        rounds=rounds,
    )
