"""A stress campaign as the command starts it: its experiments one after the other on one Ray, remembered in a ledger, ended with its page."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from raylora import config as configuration
from raylora import launch
from raylora import stress as space
from raylora.core.errors import InputError, RunError
from raylora.report.stress import Ended, campaign, write_campaign
from raylora.stress import Stress, Trial
from raylora.sweep.ledger import Ledger, plain
from raylora.tracking.record import write_json

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
    for a file that is wrong, or if every experiment is refused.
    """
    from raylora.cluster import driver

    settings = space.load(path, overrides)
    base = launch.absolute(configuration.from_dict(settings.base), Path.cwd())
    settings = settings.model_copy(update={"base": base.as_dict()})
    out = (out or Path("runs") / settings.name).resolve()
    if not (out / "ledger.jsonl").exists():
        launch.refuse_used(out)
    listed = space.trials(settings)
    with contextlib.closing(Ledger(out, settings.sha256())) as ledger:
        (out / "stress.yaml").write_text(configuration.dump(settings), encoding="utf-8")
        left = [trial for trial in listed if trial.number not in ledger.of("end")]
        with driver.session(address) if left else contextlib.nullcontext():
            for trial in left:
                on_event({"event": "note", "text": f"experiment {trial.number + 1} of {len(listed)}: {trial.said}"})
                status, why = _conducted(settings, trial, out / "trials" / trial.folder, address, on_event)
                ledger.append({"kind": "end", "number": trial.number, "status": status, "why": why})
        ends = ledger.of("end")
    if all(end["status"] == "refused" for end in ends.values()):
        raise InputError(f"{path}: every experiment was refused; the first: {ends[0]['why']}")
    on_event({"event": "phase", "text": "writing the page"})
    return out, _ended(settings, listed, ends, out)


def _conducted(settings: Stress, trial: Trial, folder: Path, address: str | None, on_event: OnEvent) -> tuple[str, str]:
    """(how it ended, and why if not well). A folder that an interruption left is gone on with."""
    try:
        if (folder / "config.yaml").is_file():
            if not (folder / "report.html").is_file():
                launch.run(configuration.load(folder / "config.yaml"), folder, address=address, on_event=on_event, resume=True)
        else:
            launch.run(settings.config(trial), folder, address=address, on_event=on_event)
    except InputError as error:
        return "refused", str(error)
    except RunError as error:
        return "failed", str(error)
    return "finished", ""


def _ended(settings: Stress, listed: Sequence[Trial], ends: Mapping[int, Any], out: Path) -> Any:
    """Everything that the page says, written down."""
    done = [
        Ended(
            number=trial.number,
            label=trial.label,
            levels=tuple(trial.levels.values()),
            seed=trial.seed,
            status=ends[trial.number]["status"],
            why=ends[trial.number]["why"],
            folder=out / "trials" / trial.folder,
        )
        for trial in listed
    ]
    found = campaign(settings.name, {key: tuple(levels) for key, levels in settings.dials.items()}, list(settings.strategies), done)
    write_campaign(found, out / "stress.html")
    write_json(out / "stress.json", plain(found.as_dict()))
    return found
