"""From scanned studies to a prepared folder, once: restartable, bounded in memory, and done again only where something changed.

A shard is written to a temporary file and renamed; the manifest is removed before the first shard changes and written after the last.
So a killed preparation leaves whole shards and no manifest, and the next one goes on from them.
"""

from __future__ import annotations

import fcntl
import hashlib
import multiprocessing
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from raylora.core.errors import InputError, RunError
from raylora.data import cases, manifest, shards
from raylora.data.cases import Study
from raylora.data.duplicates import fingerprint
from raylora.data.manifest import Manifest, PrepareOptions, Row, Source
from raylora.data.preprocess import prepare_case
from raylora.data.sources import Problem, refuse

VERSION = 1  # of what is done to an array: part of every shard's key

Mapper = Callable[[Callable, Iterable], Iterable]
"""``map`` and its relatives: applies a function to every item; the results may come in any order, and items are taken lazily."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One study to prepare: what a mapper's worker is given."""

    study: Study
    out: Path
    options: PrepareOptions


def prepare(
    studies: Sequence[Study],
    out: Path | str,
    options: PrepareOptions,
    *,
    mapper: Mapper = map,
    progress: Callable[[int, int], None] = lambda done, total: None,
    problem: Problem = refuse,
    skipped: Sequence[tuple[str, str]] = (),
) -> Manifest:
    """Prepare ``studies`` into the folder ``out``; its manifest.

    A study that cannot be read goes to ``problem(id, error)``, which by default raises the error and so ends the preparation;
    otherwise the study goes into the manifest's ``skipped``, as do those of ``skipped`` (bad already when they were scanned). All
    headers are looked at before ``mapper`` is called. What an earlier preparation left in ``out`` is used where neither files nor
    options have changed, and removed where it no longer belongs. Raises InputError also for a folder that is not a prepared one, or
    one of other data sets. On an InputError nothing is left of a folder that this call made. Raises RunError if the disk takes no more:
    whole shards stay, and the next preparation goes on from them.
    """
    out = Path(out)
    fresh = not out.exists()
    _check_ids(studies, out)
    with _claimed(out):
        try:
            return _prepare(studies, out, options, mapper, progress, problem, list(skipped))
        except InputError:
            if fresh:
                shutil.rmtree(out, ignore_errors=True)
            raise


def _prepare(studies, out, options, mapper, progress, problem, skipped) -> Manifest:
    known = _known_rows(out, studies)
    rows: dict[str, Row] = {}
    jobs = []

    def skip(id: str, error: InputError) -> None:
        problem(id, error)
        skipped.append((id, str(error)))

    for study in studies:
        try:
            if row := _current(known.get(study.id), study, options, shards.shard_path(out, study.id)):
                rows[study.id] = row
            else:
                cases.inspect(study)
                jobs.append(Job(study=study, out=out, options=options))
        except InputError as error:
            skip(study.id, error)
    _drop(out, keep=rows)
    total = len(studies) + len(skipped) - len({id for id, _ in skipped} & {study.id for study in studies})
    if jobs:
        progress(total - len(jobs), total)
    failures: list[InputError] = []
    for id, result in mapper(prepare_study, (job for job in jobs if not failures)) if jobs else ():
        try:
            if isinstance(result, Row):
                rows[id] = result
            else:
                skip(id, InputError(result))
        except InputError as error:
            failures.append(error)  # raised when what is under way has ended: a worker must not write into a removed folder
        progress(len(rows) + len(skipped), total)
    if failures:
        raise failures[0]
    if not rows:
        raise InputError(f"{out}: no study could be prepared; {skipped[0][0]}: {skipped[0][1]}")
    done = Manifest(options=options, rows=tuple(rows[id] for id in sorted(rows)), skipped=tuple(sorted(skipped)))
    text = manifest.to_json(done).encode()
    path = out / manifest.NAME
    if not path.exists() or path.read_bytes() != text:
        manifest.write_atomically(path, text)
    return done


def prepare_study(job: Job) -> tuple[str, Row | str]:
    """Read, prepare and write one study: (id, its row), or (id, why not). Mappers call it in other processes.

    Raises RunError if the shard cannot be written.
    """
    study = job.study
    try:
        for path in study.files:
            cases.inside(study.root, path)
        sources = tuple(_source(path, study.root) for path in study.files)
        case = cases.read(study)
        prepared = prepare_case(case, job.options)
        row = Row(
            **_described(study),
            crop=prepared.crop,
            cut_voxels=prepared.cut_voxels,
            fingerprint=fingerprint(case.frames["ED"].image),
            geometry=prepared.geometry,
            sources=sources,
            key=_key(study, job.options),
            shard_bytes=0,
            shard_sha256="",
        )
    except InputError as error:
        return study.id, str(error)
    except OSError as error:
        return study.id, f"{error.filename or study.root}: {error.strerror or error}"
    try:
        return study.id, shards.write_shard(shards.shard_path(job.out, study.id), row, prepared.frames)
    except OSError as error:  # a full disk: no study is to blame
        raise RunError(f"{error.filename or job.out}: {error.strerror or error}: start again, what is done is kept") from None


def _described(study: Study) -> dict:
    """What a row takes over from the study. None of it changes an array."""
    taken = {name: getattr(study, name) for name in ("id", "dataset", "split", "vendor", "centre", "scanner", "group", "labelled")}
    return taken | {"ed": study.frames["ED"].index, "es": study.frames["ES"].index}


def _key(study: Study, options: PrepareOptions) -> str:
    """What the arrays depend on beside the files' contents."""
    frames = [(name, f.image.name, f.label and f.label.name, f.index) for name, f in sorted(study.frames.items())]
    return manifest.sha256_of([VERSION, options.shard_options(), sorted(study.labels.items()), frames])


def _current(row: Row | None, study: Study, options: PrepareOptions, shard: Path) -> Row | None:
    """The row for this preparation if the shard can stay: same key, same files (by size and time, or else by content), shard in place."""
    if row is None or row.key != _key(study, options) or not shard.is_file() or shard.stat().st_size != row.shard_bytes:
        return None
    sources = []
    for path, source in zip(study.files, row.sources, strict=True):
        status = cases.inside(study.root, path).stat()
        if (status.st_size, status.st_mtime_ns) != (source.bytes, source.mtime_ns):
            found = _source(path, study.root)
            if found.sha256 != source.sha256:
                return None
            source = found
        sources.append(source)
    return replace(row, **_described(study), sources=tuple(sources))


def _drop(out: Path, keep: dict[str, Row]) -> None:
    """Remove the shards that do not stay, the manifest before them."""
    stale = [path for path in (out / shards.STUDIES).glob("*.arrow") if path.stem not in keep]
    try:
        listed = {row.id for row in manifest.read_manifest(out).rows}
    except InputError:
        listed = set()
    if stale or listed != set(keep):
        (out / manifest.NAME).unlink(missing_ok=True)
    for path in stale:
        path.unlink()


def _known_rows(out: Path, studies: Sequence[Study]) -> dict[str, Row]:
    """What an earlier preparation left: from its manifest, or, if it was interrupted, from the shards themselves."""
    try:
        rows = list(manifest.read_manifest(out).rows)
    except InputError:
        rows = [row for path in sorted((out / shards.STUDIES).glob("*.arrow")) if (row := shards.read_row(path)) and row.id == path.stem]
    others = {row.dataset for row in rows} - {study.dataset for study in studies}
    if others:
        raise InputError(f"{out}: holds prepared studies of {', '.join(sorted(others))}: expected another folder, or a new one")
    return {row.id: row for row in rows}


def _check_ids(studies: Sequence[Study], out: Path) -> None:
    if not studies:
        raise InputError(f"{out}: no study to prepare")
    seen: dict[str, Study] = {}
    for study in studies:
        cases.safe_id(study.id, study.dataset)
        if study.id in seen:
            places = f"{seen[study.id].root} ({seen[study.id].dataset}) and {study.root} ({study.dataset})"
            raise InputError(f"two studies with the id {study.id}: {places}")
        seen[study.id] = study


@contextmanager
def _claimed(out: Path) -> Iterator[None]:
    """The folder, made if need be, for this process alone: a second preparation waits and then finds the work done."""
    if getattr(multiprocessing.current_process(), "_inheriting", False):  # it would wait for the process that waits for it to start
        raise RunError("a script must call raylora under `if __name__ == '__main__':`; its worker processes run all the rest of it again")
    try:
        strangers = sorted(entry.name for entry in out.iterdir() if not entry.name.startswith(".")) if out.is_dir() else []
        if strangers and not {manifest.NAME, shards.STUDIES} & set(strangers):
            raise InputError(f"{out}: expected a new, empty or prepared folder, found {strangers[0]} in it")
        (out / shards.STUDIES).mkdir(parents=True, exist_ok=True)
        lock = open(out / ".lock", "w")
    except OSError as error:
        raise InputError(f"{out}: cannot be written: {error.strerror or error}") from None
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for part in (*out.glob(".*.part"), *(out / shards.STUDIES).glob(".*.part")):
            part.unlink(missing_ok=True)
        yield


def _source(path: Path, root: Path) -> Source:
    status = path.stat()
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Source(path=Path(os.path.relpath(path, root)).as_posix(), bytes=status.st_size, mtime_ns=status.st_mtime_ns, sha256=digest)
