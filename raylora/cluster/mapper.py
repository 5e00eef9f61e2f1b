"""A mapper over Ray tasks: for `prepare`, what `data.pool.process_map` is on one machine."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import ray
from ray.exceptions import RayTaskError, WorkerCrashedError

from raylora.core.errors import RunError, named

AHEAD = 2  # tasks under way for each CPU: bounds the memory


def ray_map(connect: Callable[[], object]) -> Callable[[Callable[[Any], Any], Iterable[Any]], Iterator[Any]]:
    """Like ``map``, over Ray tasks of one CPU each: results as they come, items taken one by one as tasks end.

    `connect` is called before the first item: it sees to it that Ray runs and keeps running. On a cluster of several machines the paths in
    the items must mean the same files everywhere. Raises RunError if workers keep dying.
    """

    def mapper(function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        connect()
        return _spread(function, items)

    return mapper


def _spread(function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
    task = ray.remote(num_cpus=1)(function)  # asked again up to three times if its worker dies
    most = AHEAD * max(1, int(ray.cluster_resources().get("CPU", 1)))
    pending: list[Any] = []
    try:
        for item in items:
            pending.append(task.remote(item))
            if len(pending) >= most:
                done, pending = ray.wait(pending)
                yield from ray.get(done)
        while pending:
            done, pending = ray.wait(pending)
            yield from ray.get(done)
    except WorkerCrashedError:
        raise RunError("a worker process died (killed, or out of memory): start again, what is done is kept") from None
    except RayTaskError as error:
        cause = error.cause
        if isinstance(cause, RunError):
            raise RunError(str(cause)) from None
        raise RunError(named(cause)) from error
    finally:
        for reference in pending:
            ray.cancel(reference)
