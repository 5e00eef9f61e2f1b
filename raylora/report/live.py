"""Progress while a command runs: a live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from raylora.report.words import listing

PLAIN_EVERY_S = 5.0
WITHIN_EVERY_S = 30.0  # lines about one round, elsewhere than on a terminal


class Live:
    """Called with a run's events; prints to standard error, so that standard output holds results only.

    A terminal that has gone away ends no run.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self.console.soft_wrap = not self.console.is_terminal  # a terminal would break lines inside words
        self.progress: Progress | None = None
        self.task: TaskID | None = None
        self.text = ""
        self.told = 0.0

    def __enter__(self) -> Live:
        if self.console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
            self.progress = Progress(*columns, console=self.console, transient=True)
            with contextlib.suppress(OSError):
                self.progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        if self.progress is not None:
            with contextlib.suppress(OSError):
                self.progress.stop()

    def __call__(self, event: Mapping[str, Any]) -> None:
        with contextlib.suppress(OSError):
            self._show(event)

    def _show(self, event: Mapping[str, Any]) -> None:
        kind = event["event"]
        if kind == "progress":
            self._advance(event["text"], event["done"], event["total"])
        elif kind == "start":
            where = f", going on at round {event['round'] + 1}" if event["round"] else ""
            self.console.print(
                f"{event['name']}: {len(event['clients'])} clients ({listing(event['clients'], 8)}), {event['rounds']} rounds{where}",
                highlight=False,
                markup=False,
            )
            self._advance("rounds", event["round"], event["rounds"])
            self.told = time.monotonic()
        elif kind == "clients":
            self._within(event["round"] + 1, event["done"], event["asked"])
        elif kind == "round":
            self.console.print(_round_text(event), highlight=False, markup=False)
            self.told = time.monotonic()
            if self.progress is not None:
                self._advance("rounds", event["round"] + 1, event["rounds"])
        elif kind in ("note", "phase"):
            self.console.print(str(event["text"]), highlight=False, markup=False)

    def _within(self, round: int, done: int, asked: int) -> None:
        """How far a round is that takes longer than a moment."""
        said = f"round {round}: {done}/{asked} clients"
        if self.progress is None:
            now = time.monotonic()
            if now - self.told > WITHIN_EVERY_S:
                self.console.print(said, highlight=False, markup=False)
                self.told = now
        elif self.task is not None:
            self.progress.update(self.task, description=said)

    def _advance(self, text: str, done: int, total: int) -> None:
        if self.progress is None:
            now = time.monotonic()
            if text != "rounds" and (now - self.told > PLAIN_EVERY_S or done == total):
                self.console.print(f"{text}: {done}/{total}", highlight=False, markup=False)
                self.told = now
            return
        if self.task is None or text != self.text:
            if self.task is not None:
                self.progress.remove_task(self.task)
            self.task, self.text = self.progress.add_task(text, total=total), text
        self.progress.update(self.task, completed=done, total=total, description=text)


def _round_text(event: Mapping[str, Any]) -> str:
    lines = event["lines"]
    total = next(line for line in lines if line["kind"] == "round")
    losses = "  ".join(f"{line['client']} {line['loss']:.3f}" for line in lines if line["kind"] == "client" and "loss" in line)
    scores = "  ".join(f"{name} {value:.3f}" for name, value in total["validation"].items())
    weights = total.get("weights")
    rating = f"  weights: {'  '.join(f'{client} {w:.2f}' for client, w in weights.items())}" if weights else ""
    return f"round {event['round'] + 1}/{event['rounds']}  {total['seconds']:.1f} s  loss: {losses}{f'  validation: {scores}' if scores else ''}{rating}"
