"""`raylora` with clients and trials one after the other in its own process: what commands say and leave behind, without the seconds that a
Ray and its actors take to start, and that pictures take to draw. They have tests of their own."""

import contextlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image
from small_runs import InProcess, build_host

from raylora import config as configuration
from raylora import experiment
from raylora.cluster import driver, mapper, resources, session, sweep
from raylora.data import obtain
from raylora.plan import Plan
from raylora.report import html
from raylora.report.html import write_report
from raylora.sweep.trial import RunningTrial


def blank() -> bytes:
    """A picture on which nothing is drawn."""
    paper = io.BytesIO()
    Image.new("RGB", (3, 2), "white").save(paper, format="png")
    return paper.getvalue()


def without_ray(patch: Callable[[Any, str, Any], None]) -> None:
    """Put this in the place of Ray, with `setattr` or monkeypatch's."""
    patch(session, "opened", lambda address, **options: contextlib.nullcontext())
    patch(session, "available", resources.local)
    patch(driver, "run", run)
    patch(sweep, "run", trials)
    patch(mapper, "ray_map", lambda connect: map)
    patch(obtain, "process_map", lambda workers: map)
    patch(html, "png", lambda picture: blank())


def executor(plan: Plan) -> InProcess:
    return InProcess(build_host(plan.spec, plan.weights))


def run(plan, out, *, address, resume, request):
    """`driver.run` without actors."""
    yield from experiment.run_experiment(plan, out, executor, resume=resume)


def trials(ledger, search, unfinished, folder: Path, prepare, *, metric: str, told, **options: Any) -> None:
    """`cluster.sweep.run` without Tune: none is stopped early."""
    for trial in [*unfinished, *iter(search.next, None)]:
        plan, _ = prepare(trial)
        about = {"number": trial.number, "values": getattr(trial, "values", {}), "seed": trial.seed}
        ledger.append({"kind": "trial", **about, "config_sha256": plan.config.sha256()})
        told("started", trial, {})
        out = folder / trial.folder
        out.mkdir(parents=True, exist_ok=True)
        (out / "config.yaml").write_text(configuration.dump(plan.config))
        running = RunningTrial(plan, out, metric, executor)
        while (report := running.advance()).status == "running":
            ledger.append({"kind": "report", "number": trial.number, "round": report.round, "objective": report.objective})
        write_report(out)
        result = {"status": report.status, "objective": report.objective}
        ledger.append({"kind": "end", "number": trial.number, **result})
        search.tell(trial, report.objective)
        told(report.status, trial, {**result, "round": report.round, "lines": report.lines, "error": report.error})
