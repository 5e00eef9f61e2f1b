"""Worker processes of this machine, for what is made where there is no cluster."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import resource_tracker
from typing import Any

from raylora.core.errors import RunError

AHEAD = 2  # items under way for each worker: bounds the memory
LOST = 'a worker process died (killed, out of memory, or started by a script without `if __name__ == "__main__":`)'


class Workers(ProcessPoolExecutor):
    """Fresh processes that end with this one, also where this one is killed: a pool's own would wait for ever. Ctrl-C and a closed terminal
    reach everybody who was started from there, but are for whoever asked: workers never hear of them, from their first moment on."""

    UNHEARD = (signal.SIGINT, signal.SIGHUP)

    def __init__(self, count: int) -> None:
        super().__init__(count, mp_context=multiprocessing.get_context("spawn"), initializer=_end_with_parent)

    def submit(self, function: Callable, /, *args: Any, **options: Any) -> Future:
        """The first one starts the processes, which inherit what is blocked here."""
        resource_tracker.ensure_running()  # started beside them, it would end the blocking
        before = signal.pthread_sigmask(signal.SIG_BLOCK, self.UNHEARD)
        try:
            return super().submit(function, *args, **options)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def __exit__(self, *error: object) -> None:
        self.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def process_map(workers: int) -> Callable[[Callable, Iterable], Iterator]:
    """Like ``map``, in ``workers`` processes: results as they come, items taken one by one as workers become free.

    Raises RunError if a worker dies (killed, out of memory).
    """

    def mapper(function: Callable, items: Iterable) -> Iterator:
        waiting: set[Future] = set()
        try:
            with Workers(workers) as pool:
                for item in items:
                    waiting.add(pool.submit(function, item))
                    if len(waiting) >= AHEAD * workers:
                        done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                        yield from (future.result() for future in done)
                while waiting:
                    done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                    yield from (future.result() for future in done)
        except BrokenProcessPool:
            raise RunError(f"{LOST}: start again, what is done is kept") from None

    return mapper
