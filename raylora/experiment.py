"""One federated experiment: its rounds, one after the other, from a plan to a summary."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from raylora import identity
from raylora.config import Config, dump
from raylora.core.errors import InputError, named
from raylora.core.files import read_json_object, write_json, write_text
from raylora.core.types import Tree
from raylora.ending import Standing, end_early, finish, validate, validation_scores
from raylora.federation import checkpoint, stacking
from raylora.federation.answers import Outcome
from raylora.federation.border import Checked
from raylora.federation.buffered import end_buffered
from raylora.federation.lines import round_lines
from raylora.federation.protocol import initial_tree
from raylora.federation.rounds import Executor, Progress, RoundReport, Rows, begin_round, end_round, receive
from raylora.federation.spec import protocol_of
from raylora.method import caveats, epsilon, expected_cohort, make_strategy
from raylora.plan import Plan, opening
from raylora.provenance import code
from raylora.tracking.record import BRING, PATIENTS, Record, lines_before

Event = Mapping[str, Any]
Events = Generator[Event, str | None, str | None]
CHECKPOINTS = "checkpoints"  # in the run's folder
TOLD_S = 0.5  # between two events about one round
STOP = "stop"  # sent to a running experiment after a round: end here, without a look at the test patients


def run_experiment(
    plan: Plan,
    out: Path,
    make_executor: Callable[[Plan], Executor],
    *,
    resume: bool = False,
    notes: Mapping[str, Any] | None = None,
    judged: bool = False,
) -> Events:
    """Run (or go on with) an experiment into the folder `out`, telling what happens. The last event is {"event": "done", "summary": ...}.

    Whoever answers "start" or a "round" with STOP ends it there: adapters and a summary with `status: pruned` are written, test patients are not
    scored. Without `judged`, a round begins while the validation of the one before is still under way, and an answer comes too late to save
    what it computes. `make_executor` decides where clients run and nothing else. Raises RunError if a client fails for good or a loss is not finite.
    """
    started = time.monotonic()
    code()  # asked now, and remembered: the checkout may be another one when the run ends
    threadpool_limits(1, user_api="blas")  # of the server's sums and decompositions: other counts of threads give other last bits
    config, clients = plan.config, plan.clients
    strategy = make_strategy(config, len(clients))
    record = Record(out)
    progress = Progress(round=0, server=opening(strategy, plan.outline, plan.spec, clients))
    before = read_json_object(out / PATIENTS) if resume and (out / PATIENTS).is_file() else {}
    if resume:
        progress, seconds, words = _gone_on_with(plan, record, before, progress)
        started -= seconds
        for word in words:
            yield {"event": "note", "text": word}
    began = before.get("began") or identity.began(plan)
    about = {"patients": plan.cohort.patients(), "left_out": dict(plan.left_out), **identity.hashes(plan), "began": began}
    write_json(out / PATIENTS, about)
    answer = yield {
        "event": "start",
        "clients": [c.id for c in clients],
        "rounds": config.training.rounds,
        "round": progress.round,
        "name": config.name,
    }
    for word in [*plan.notes, *caveats(config, strategy, len(clients)), *_of_features(plan)]:
        yield {"event": "note", "text": word}
    s = config.sampling
    end = end_round if s.buffer is None else partial(end_buffered, size=s.buffer, exponent=s.staleness)
    executor = Checked(make_executor(plan), clients, _shapes(plan), config.faults.malformed)
    try:
        if config.training.stack == "auto":  # once: what was chosen is part of the run from now on
            config, chosen = _measured(config, executor, config.sampling.buffer or math.ceil(expected_cohort(config, len(clients))))
            plan = replace(plan, config=config)
            write_text(out / "config.yaml", dump(config))
            write_json(out / PATIENTS, {**about, "began": {**began, "config": identity.settled(config)}})
            yield {"event": "note", "text": chosen}
        if config.placement.gpus_per_client and any(actor["device"] == "cpu" for actor in executor.describe()):
            yield {"event": "note", "text": "placement.gpus_per_client: torch finds no GPU where clients run, so they compute on the CPU"}
        stack = int(config.training.stack)
        executor.arrange(stack)
        executor.restore(progress.states)
        standing = partial(Standing, plan=plan, strategy=strategy, executor=executor, record=record, started=started, notes=notes or {})
        progress, broadcasts = receive(progress, strategy, clients, plan.weights)
        executor.set_base(progress.base)
        closing: Events | None = None  # of the round before: what waits for its validation
        lap = _stopwatch()
        while progress.round < config.training.rounds and answer != STOP:
            t = progress.round
            cohort = plan.dials.cohort(clients, t)
            conditions = plan.dials.conditions(cohort, t)
            answers = begin_round(progress, broadcasts, cohort, executor, stack=stack, conditions=conditions)
            if closing is not None:
                answer, closing = (yield from closing), None
                if answer == STOP:
                    break
            staying = plan.dials.staying(clients, t)
            arrived = yield from _arriving(answers, t, len(cohort))
            progress, report = end(progress, broadcasts, strategy, staying, cohort, arrived, executor, conditions=conditions)
            del arrived  # or the next round's updates would lie beside these
            version = progress.base_version
            progress, broadcasts = receive(progress, strategy, clients, plan.weights)
            if progress.base_version != version:
                executor.set_base(progress.base)
            closing = _closing(standing(progress=progress, broadcasts=broadcasts), report, lap)
            if judged:
                answer, closing = (yield from closing), None
        if closing is not None:
            answer = yield from closing
        ended = standing(progress=progress, broadcasts=broadcasts)
        if progress.round < config.training.rounds:
            summary = end_early(ended)
        else:
            yield {"event": "phase", "text": "scoring the test patients"}
            summary = finish(ended)
    finally:
        executor.close()
    yield {"event": "done", "summary": summary}
    return None


def _gone_on_with(plan: Plan, record: Record, before: Mapping[str, Any], anew: Progress) -> tuple[Progress, float, list[str]]:
    """(the last whole checkpoint, or `anew` without any; the seconds that its rounds took; what the user is told). What the folder holds of
    later rounds goes. `before`: what the run began with. Raises InputError for another experiment, and for a folder that somebody altered."""
    out = record.folder
    with _as_it_was_left(out):
        words = identity.require_same(out, plan, before)
        found, torn = checkpoint.latest(out / CHECKPOINTS)
        progress, rows = found or (anew, 0)
        record.rewind(rows, progress.round)
        done = [line for line in (lines_before(out, progress.round) if progress.round else []) if line["kind"] == "round"]
        record.require_cases(line["round"] for line in done if line["validation"])
        seconds = sum(line["seconds"] for line in done)
    checkpoint.discard_after(out / CHECKPOINTS, progress.round)  # torn ones: they must not count among those that are kept
    return progress, seconds, [*words, *torn]


def _of_features(plan: Plan) -> list[str]:
    """What is computed once for each image, or why nothing is where one might think so."""
    training, cache = plan.config.training, plan.spec.cache
    if cache is not None:
        views = "" if cache.views is None else f", {cache.views} views of each sample"
        return [f"computed once for each image: up to {cache.stage} ({cache.dtype}{views}; in {cache.folder})"]
    if training.cached_views is not None:
        return [f"training.cached_views: nothing is kept ({plan.no_cache}), so every step draws a view of its own"]
    return [f"no features are kept: {plan.no_cache}"] if training.augment and training.cache != "off" else []


def _closing(standing: Standing, report: RoundReport, lap: Callable[[], float]) -> Events:
    """What is left to do for a round that has its sum, and what is told of it. Its validation is asked for now, and waited for later."""
    config, done = standing.plan.config, standing.progress.round
    last = done == config.training.rounds
    validated = last or (config.evaluation.every and done % config.evaluation.every == 0)
    return _close(standing, report, validate(standing) if validated else None, last, lap)


def _close(standing: Standing, report: RoundReport, scored: Rows | None, last: bool, lap: Callable[[], float]) -> Events:
    plan, progress, record = standing.plan, standing.progress, standing.record
    config, t = plan.config, report.round
    validation: dict[str, dict[str, float]] = {}
    if scored is not None:
        rows = scored()
        record.keep_cases(t, [(t, "validation", *row) for row in rows])
        validation = validation_scores(rows, config.task)
    lines = round_lines(report, validation, progress, lap(), clock_runs=plan.config.clock_runs)
    if config.privacy.clip is not None:
        lines[-1] = {**lines[-1], "epsilon": epsilon(config, progress.round, len(plan.clients))}
    if report.refused:
        lines[-1] = {**lines[-1], "refused": dict(report.refused)}
    record.append(lines)
    if progress.round % config.checkpoint.every == 0 or last:
        checkpoint.save(record.folder / CHECKPOINTS, progress, record.rows)
        checkpoint.prune(record.folder / CHECKPOINTS, config.checkpoint.keep)
    for client, why in report.refused.items():
        yield {"event": "note", "text": f"round {t + 1}: the update of client {client} is left out: {why}"}
    return (yield {"event": "round", "round": t, "rounds": config.training.rounds, "lines": lines})


def _arriving(answers: Iterable[Outcome], round: int, asked: int) -> Generator[Event, str | None, list[Outcome]]:
    """A round's answers, and on the way, every `TOLD_S` seconds at most, how many of those that were asked have come."""
    arrived: list[Outcome] = []
    told = time.monotonic()
    for outcome in answers:
        arrived.append(outcome)
        if time.monotonic() - told >= TOLD_S and len(arrived) < asked:
            yield {"event": "clients", "round": round, "done": len(arrived), "asked": asked}
            told = time.monotonic()
    return arrived


def _stopwatch() -> Callable[[], float]:
    """Called, it tells the seconds since it was last called."""
    last = time.perf_counter()

    def lap() -> float:
        nonlocal last
        before, last = last, time.perf_counter()
        return last - before

    return lap


def _shapes(plan: Plan) -> dict[str, Tree]:
    """Client -> its model's names and shapes as it starts, without values."""
    protocol = protocol_of(plan.spec)
    of_rank = {rank: initial_tree(plan.outline, protocol, plan.clients[0].id, rank) for rank in {client.rank for client in plan.clients}}
    hollow = {rank: {n: np.broadcast_to(np.float32(0), v.shape) for n, v in tree.items()} for rank, tree in of_rank.items()}
    return {client.id: hollow[client.rank] for client in plan.clients}


ALTERED = (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError, LookupError, ValueError, TypeError, AttributeError)
"""What files raise that are gone, altered or of another kind. A disk that is full is none of it."""


@contextlib.contextmanager
def _as_it_was_left(out: Path) -> Iterator[None]:
    """Raise InputError for what only somebody else can have done to a run folder."""
    try:
        yield
    except ALTERED as error:
        raise InputError(f"{out}: not as the run left it ({named(error)}): {BRING}") from None


def _measured(config: Config, executor: Executor, clients: int) -> tuple[Config, str]:
    """The configuration with as many clients in a pass as make the shortest round of so many clients here, and words about it."""
    actors, room = executor.room()
    found = stacking.measure(executor.probe, stacking.most_per_pass(clients, actors), room)
    chosen = stacking.choose(found, clients, actors, room)
    training = config.training.model_copy(update={"stack": chosen})
    return config.model_copy(update={"training": training}), stacking.in_words(found, chosen)
