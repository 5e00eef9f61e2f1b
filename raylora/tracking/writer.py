"""The thread that brings runs to MLflow: it is told what happened, waits for nobody, and tries again for as long as it lives."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable

from raylora.core.errors import named
from raylora.tracking.store import Node, Store, refusal, unchanged_s

WAIT_S = 60.0  # for a server that does not say a word, at the end of a run
QUIET_S = 5.0  # a server that fails and has been silent for so long is not waited for
PAUSE_S = 1.0  # what comes within it is written together
LONGEST_S = 15.0  # between two tries

Change = Callable[[], None]


def patience_s(failures: int, longest: float) -> float:
    """Seconds until the next try after so many in a row that failed."""
    return min(2.0 ** min(failures, 10) / 2, longest)


class Writer:
    """Runs changes of nodes, then writes the nodes that changed. `tell` never blocks and never raises."""

    def __init__(self, uri: str, experiment: str, nodes: Callable[[], list[Node]]) -> None:
        """`nodes`: those that changes may have touched, parents before what is below them."""
        self.uri = uri
        self.error: str | None = None  # of the last try; None after one that worked
        self._fault: str | None = None  # something that no other try will bring
        self._experiment, self._nodes = experiment, nodes
        self._queue: queue.SimpleQueue[Change | None] = queue.SimpleQueue()
        self._closing: float | None = None  # when `close` was called
        self._heard = time.monotonic()  # when a write last worked
        self._tries = 0
        self._tried = threading.Condition()
        self._thread = threading.Thread(target=self._work, daemon=True, name="mlflow")
        self._thread.start()

    def tell(self, change: Change) -> None:
        self._queue.put(change)

    def wait(self, until: Callable[[], bool]) -> None:
        """Wait until something holds, for as long as MLflow takes what it is given; not for a server that cannot be reached."""
        began, tries = time.monotonic(), self._tries
        with self._tried:
            while not until() and self._thread.is_alive() and self._silent(began) < WAIT_S:
                waited = self._tries > tries + 1 or time.monotonic() - began > QUIET_S  # for one whole try, unless it takes long
                others = unchanged_s(self.uri)  # a database that others write to is busy, not gone
                if self.error is not None and waited and min(self._silent(0.0), others) > QUIET_S:
                    return
                self._tried.wait(0.1)

    def _silent(self, since: float) -> float:
        """Seconds since a write last worked, or since a later moment."""
        return time.monotonic() - max(self._heard, since)

    def close(self) -> str | None:
        """Wait for what is left (see `wait`); None, or one line on what is missing."""
        if self._closing is None:
            self._closing = time.monotonic()
            self._queue.put(None)
        self.wait(lambda: not self._thread.is_alive())
        self._thread.join(0.0)
        if self._thread.is_alive() and self.error is None:
            return f"MLflow at {self.uri} is still busy after {WAIT_S:g} s"
        return self.error or self._fault

    def _work(self) -> None:
        store: Store | None = None
        failures, closing = 0, False
        patience: float | None = 0.0  # the first run is made at once
        while True:
            closing = self._take(patience) or closing
            self._tries += 1
            try:
                store = store or Store(self.uri, self._experiment)
                for node in self._nodes():
                    if node.dirty:
                        self._write(store, node)
                failures, patience = 0, None
                self._say(None)
            except Exception as error:
                failures += 1
                patience = patience_s(failures, 1.0 if closing else LONGEST_S)
                self._say(self._line(error))
            if closing and (not failures or self._silent(self._closing or 0.0) > WAIT_S):
                return

    def _write(self, store: Store, node: Node) -> None:
        try:
            store.write(node, self._worked)
        except Exception as error:
            if not refusal(error):
                raise
            node.refused = True
            self._fault = self._line(error)

    def _worked(self) -> None:
        self._heard = time.monotonic()
        self._say(None)

    def _take(self, patience: float | None) -> bool:
        """Wait for a change (None: for ever), make it and those that come soon after it. Whether that was all there will ever be."""
        try:
            change = self._queue.get(timeout=patience)
            end = time.monotonic() + max(patience or 0.0, PAUSE_S)
            while change is not None:
                try:
                    change()
                except Exception as error:  # a record that is not as it should be
                    self._fault = self._line(error)
                change = self._queue.get(timeout=max(end - time.monotonic(), 0.0))
        except queue.Empty:
            return False
        return True

    def _line(self, error: Exception) -> str:
        return f"MLflow at {self.uri}: {named(error)}"

    def _say(self, error: str | None) -> None:
        with self._tried:
            self.error = error
            self._tried.notify_all()
