"""One trial: an experiment that stands still after each report until it is told to go on or to end."""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from raylora import experiment
from raylora.core.errors import InputError, RunError, one_line
from raylora.federation.rounds import Executor
from raylora.plan import Plan
from raylora.sweep.state import write_failure
from raylora.tracking.record import lines_before

OF_THE_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.ESTALE}


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a trial says after a round that was validated, and at its end."""

    round: int  # rounds done
    objective: float | None  # on validation patients; None: nothing was validated
    lines: tuple[Mapping[str, Any], ...]  # of rounds.jsonl since the last report
    status: str = "running"  # finished | pruned | failed: the last report; stopped: the last one here, the trial can go on
    error: str | None = None


class RunningTrial:
    """An experiment in its folder, resumed if the folder holds a part of it."""

    def __init__(
        self,
        plan: Plan,
        folder: Path,
        metric: str,
        make_executor: Callable[[Plan], Executor],
        *,
        notes: Mapping[str, Any] | None = None,
        until: int | None = None,
    ) -> None:
        """`until`: it was decided before that this trial ends after so many rounds."""
        self.plan, self.folder, self.metric, self.until = plan, folder, metric, until
        self.last: Report | None = None
        self._make, self._notes = make_executor, dict(notes or {})
        self._events: experiment.Events | None = None

    def advance(self) -> Report:
        """Go on to the next report. What goes wrong is a report as well: `status: failed`, and a summary that says so; where the disk and not
        the trial is to blame, `status: stopped`, and what is kept stays as it is."""
        try:
            self.last = self._advance()
        except OSError as error:
            if error.errno not in OF_THE_DISK:
                self.last = self._failed(error)
                return self.last
            self.close()
            said = f"{error.filename or self.folder}: {error.strerror}"
            self.last = replace(self.last or Report(round=0, objective=None, lines=()), lines=(), status="stopped", error=said)
        except Exception as error:  # whatever it was, it ends this trial and no other
            self.last = self._failed(error)
        return self.last

    def prune(self) -> None:
        """End after the round of the last report: adapters and a summary are written, test patients stay untouched."""
        if self._events is not None and (self.last is None or self.last.status == "running"):
            try:
                for _ in iter(lambda: self._answer(experiment.STOP), None):
                    pass
            except Exception as error:
                self._failed(error)
            self._events = None

    def close(self) -> None:
        """Let go of the executor, wherever the trial stands."""
        if self._events is not None:
            self._events.close()
            self._events = None

    def _answer(self, answer: str | None) -> experiment.Event | None:
        assert self._events is not None
        try:
            return self._events.send(answer)
        except StopIteration:
            return None

    def _advance(self) -> Report:
        answer = None
        if self._events is None:
            resume = (self.folder / "checkpoints").is_dir()
            self._events = experiment.run_experiment(self.plan, self.folder, self._make, resume=resume, notes=self._notes, judged=True)
        lines: list[Mapping[str, Any]] = []
        objective, done = (self.last.objective, self.last.round) if self.last else (None, 0)
        while (event := self._answer(answer)) is not None:
            answer = None
            if event["event"] == "start" and event["round"]:
                done, lines = event["round"], lines_before(self.folder, event["round"])  # of a trial that is gone on with
                objective = next((v[self.metric] for item in reversed(lines) if self.metric in (v := item["validation"])), None)
                if done not in (event["rounds"], self.until) and self.metric in lines[-1]["validation"]:
                    return Report(round=done, objective=objective, lines=tuple(lines))  # its report may have been lost with the process
            if event["event"] == "round":
                lines += event["lines"]
                done = event["round"] + 1
                found = event["lines"][-1]["validation"].get(self.metric)
                objective = objective if found is None else found
                if found is not None and done not in (event["rounds"], self.until):
                    return Report(round=done, objective=found, lines=tuple(lines))
            if event["event"] in ("start", "round") and done == self.until:
                answer = experiment.STOP
            if event["event"] == "done":
                self._events = None
                return Report(round=done, objective=objective, lines=tuple(lines), status=event["summary"]["status"])
        raise RunError(f"{self.folder}: the experiment ended without a summary")

    def _failed(self, cause: Exception) -> Report:
        self.close()
        error = one_line(cause)
        error = error if isinstance(cause, InputError | RunError) else f"{type(cause).__name__}: {error}"
        done = self.last.round if self.last else 0
        write_failure(self.folder, self.plan.config, error)
        return Report(round=done, objective=None, lines=(), status="failed", error=error)
