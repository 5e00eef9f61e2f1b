"""From the `data` section to prepared folders: phantoms are made on demand, downloads are prepared once into a cache."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raylora.core.errors import InputError
from raylora.core.files import absolute_path, is_folder, require_writable
from raylora.data import layouts, manifest
from raylora.data.cases import Study
from raylora.data.manifest import Manifest, PrepareOptions, Row
from raylora.data.pool import process_map
from raylora.data.prepare import Mapper, prepare
from raylora.data.shards import STUDIES
from raylora.data.sources import refuse

if TYPE_CHECKING:
    from raylora.config import Data, Phantom, Source

Say = Callable[[str, int, int], None]
"""What is being done, how many are done, of how many."""


CACHE = "data.cache (or RAYLORA_CACHE)"


def cache_folder(configured: str | None = None) -> Path:
    """Where prepared data and phantoms are kept. Raises InputError for what can be no path."""
    return absolute_path(configured or os.environ.get("RAYLORA_CACHE") or "~/.cache/raylora", Path.cwd(), CACHE)


def workers() -> int:
    """The CPUs that this process may use."""
    return len(os.sched_getaffinity(0))


def prepare_download(dataset: str, source: Path, out: Path, options: PrepareOptions, skip_bad: bool, say: Say, mapper: Mapper) -> Manifest:
    """`raylora data prepare`: the folder `out` made from a download. Bad studies end it, or (`skip_bad`) go into the manifest."""
    bad: list[tuple[str, str]] = []
    note = (lambda name, error: bad.append((name, str(error)))) if skip_bad else refuse
    found = layouts.scan(dataset, source, note)

    def told(done: int, total: int) -> None:
        say(f"preparing {dataset} studies", done, total)

    skip = (lambda name, error: None) if skip_bad else refuse
    return prepare(found, out, options, mapper=mapper, progress=told, problem=skip, skipped=bad)


def prepared(data: Data, say: Say = lambda what, done, total: None) -> list[Path]:
    """One prepared folder for each source. What is not done yet is done in processes of this machine.

    Raises InputError for what is missing or wrong.
    """
    return [_one(source, data, say) for source in data.sources]


def of_phantoms(data: Data, folders: Sequence[Path], seeds: Collection[int]) -> list[Path]:
    """Those of the prepared folders that hold the synthetic cohort of one of the seeds."""
    pairs = zip(data.sources, folders, strict=True)
    return [folder for source, folder in pairs if source.dataset == "phantom" and (source.phantom or data.phantom).seed in seeds]


def _one(source: Source, data: Data, say: Say) -> Path:
    options = PrepareOptions(spacing_mm=data.spacing_mm, size=data.size, crop=data.crop)
    cache = cache_folder(data.cache)
    if source.root is None and source.dataset != "phantom":
        raise InputError(f"data.root: expected the folder of {source.dataset}, found nothing (data.root=/path/to/{source.dataset})")
    if source.dataset == "phantom":
        cohort = source.phantom or data.phantom
        layout = cohort.layout
        root = phantoms(cache, cohort, say)
    else:
        layout, root = source.dataset, absolute_path(str(source.root), Path.cwd(), "data.root")
        if not is_folder(root, "data.root"):
            raise InputError(f"data.root: {root}: no such folder (expected {source.dataset})")
        if (root / manifest.NAME).is_file() or any((root / STUDIES).glob("*.arrow")):  # shards alone: interrupted, which it says
            _matching(root, layout, options)
            return root.resolve()
    studies = _scanned(layout, root)
    key = manifest.sha256_of([str(root.resolve()), layout, options.shard_options(), options.size[2]])
    out = cache / "prepared" / f"{layout}-{key[:16]}"
    if not out.is_dir():
        require_writable(out, CACHE)
    prepare(
        studies, out, options, mapper=process_map(workers()), progress=lambda done, total: say(f"preparing {layout} studies", done, total)
    )
    return out


def _scanned(layout: str, root: Path) -> list[Study]:
    """Its studies. Raises InputError, with what the folder looks like if that is another data set."""
    try:
        return layouts.scan(layout, root)
    except InputError as error:
        others: list[str] = []
        with contextlib.suppress(InputError):
            others = sorted({name for name, place in layouts.found_in(root) if place == root} - {layout})
        if not others:
            raise
        raise InputError(f"{error}; it looks like {others[0]} (data.dataset={others[0]})") from None


def _matching(root: Path, dataset: str, options: PrepareOptions) -> None:
    """A prepared folder must hold the data set, made with the options that the experiment asks for."""
    described = manifest.read_manifest(root)
    if described.datasets != (dataset,):
        raise InputError(f"data.root: {root}: expected prepared {dataset}, found {', '.join(described.datasets) or 'nothing'}")
    found = described.options
    other = [name for name in ("spacing_mm", "size", "crop") if _listed(getattr(found, name)) != _listed(getattr(options, name))]
    if other:
        wanted = " ".join(f"data.{name}={_said(getattr(found, name))}" for name in other)
        given = ", ".join(_said(getattr(options, name)) for name in other)
        raise InputError(f"data.{other[0]}: expected what {root} was prepared with ({wanted}), found {given}")


def _listed(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, tuple | list) else (value,)


def _said(value: Any) -> str:
    """As an override is typed."""
    if isinstance(value, tuple | list):
        return f"[{','.join(map(_said, value))}]"
    return "null" if value is None else str(value).removesuffix(".0")


def phantoms(cache: Path, cohort: Phantom, say: Say = lambda what, done, total: None) -> Path:
    """The folder of a synthetic cohort, made if it is not there. Its name holds the code that made it, so that new code makes new phantoms."""
    code = b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("phantom*.py")))
    parts = [cohort.model_dump(), hashlib.sha256(code).hexdigest()]
    out = cache / "phantoms" / f"{cohort.layout}-{cohort.patients}-{manifest.sha256_of(parts)[:16]}"
    if not out.is_dir():
        require_writable(out, CACHE)
        from raylora.data import phantom  # with all that draws them: a process that finds them there starts sooner

        partial = out.with_name(f".{out.name}.{os.getpid()}")
        shutil.rmtree(partial, ignore_errors=True)
        partial.parent.mkdir(parents=True, exist_ok=True)
        try:
            phantom.write_cohort(partial, **cohort.model_dump(), progress=lambda done, total: say("making phantoms", done, total))
            try:
                partial.rename(out)
            except OSError:  # another process was first
                if not out.is_dir():
                    raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return out


def studies(folders: Sequence[Path]) -> list[Row]:
    """Every prepared study of the folders. Raises InputError for an id that two of them have."""
    rows: dict[str, Row] = {}
    for folder in folders:
        for row in manifest.read_manifest(folder).rows:
            if row.id in rows:
                raise InputError(f"two studies with the id {row.id}: in {row.dataset} and {rows[row.id].dataset}")
            rows[row.id] = row
    return [rows[i] for i in sorted(rows)]


def digest(folders: Sequence[Path]) -> str:
    """One hash over the prepared studies."""
    return manifest.sha256_of([manifest.read_manifest(folder).data_sha256 for folder in folders])
