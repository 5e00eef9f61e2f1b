"""Synthetic cohorts as NIfTI folders in the layouts of the public data sets, read back like any of them.

Every study follows from (seed, patient number): neither the size of the cohort nor the number of workers changes one.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from raylora.core.errors import InputError, RunError
from raylora.core.files import require_writable
from raylora.data.phantom_layouts import LAYOUTS, Placed
from raylora.data.phantom_study import PhantomStudy, assign, study
from raylora.data.pool import LOST, Workers

__all__ = ["PhantomStudy", "Placed", "assign", "study", "write_cohort"]

MOST = 10.0  # of shift and severity: looks beyond it take memory without end


def write_cohort(
    out: Path | str,
    *,
    layout: str = "mnms",
    patients: int = 100,
    seed: int = 0,
    shift: float = 1.0,
    severity: float = 1.0,
    vendors: Sequence[str] | None = None,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Placed]:
    """Writes patients 0 to ``patients`` - 1 as NIfTI in the layout of a public data set.

    Studies are written to a hidden folder beside their place and renamed, the list of studies last.

    Args:
        layout: acdc (Siemens only, as in Dijon), mnms or mnms2 (no Canon, as in the original).
        vendors: which vendors take part; default all that the layout has.
        workers: processes; default one a core. It changes no byte.
        progress: called with (done, total) after every study.

    Raises:
        InputError: an unknown layout or vendor, no patients, too many for the layout, or a folder that is not empty.
        RunError: a full disk, or a worker that was killed. Nothing is left behind.
    """
    out = Path(out)
    if layout not in LAYOUTS:
        raise InputError(f"layout: expected one of {', '.join(LAYOUTS)}, found {layout!r}")
    if patients < 1:
        raise InputError(f"patients: expected 1 or more, found {patients}")
    if not (0 <= shift <= MOST and 0 <= severity <= MOST):
        raise InputError(f"shift and severity: expected numbers from 0 to {MOST:g}, found {shift} and {severity}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out}: expected an empty or new folder, found {'files in it' if out.is_dir() else 'a file'}")
    require_writable(out, "OUT")
    plan = LAYOUTS[layout]
    vendors = tuple(vendors or plan.vendors)
    if absent := [v for v in vendors if v not in plan.vendors]:
        raise InputError(f"vendors: layout {layout} has {', '.join(plan.vendors)}, found {absent[0]!r}")
    placed = plan.place([assign(seed, n, vendors) for n in range(patients)], seed)
    missing = [folder for folder in (*reversed(out.parents), out) if not folder.exists()]
    out.mkdir(parents=True, exist_ok=True)
    jobs = [(str(out), layout, seed, n, shift, severity, vendors, place) for n, place in enumerate(placed)]
    workers = min(workers or os.cpu_count() or 1, patients)
    done: list[Placed] = []
    try:
        if workers == 1:
            for job in jobs:
                done.append(_write(job))
                _tell(progress, len(done), patients)
        else:
            with Workers(workers) as pool:
                for place in pool.map(_write, jobs, chunksize=2):
                    done.append(place)
                    _tell(progress, len(done), patients)
        plan.index(out, done)
    except BaseException as error:
        for left in [missing[0]] if missing else out.iterdir():  # the folder was empty or absent before
            shutil.rmtree(left, ignore_errors=True)
        if isinstance(error, BrokenProcessPool):
            raise RunError(f"{LOST} while phantoms were made: start again") from None
        if isinstance(error, OSError):  # nibabel's of a full disk has no name
            raise RunError(f"{error.filename or out}: {error.strerror or error}") from error
        raise
    return done


def _tell(progress: Callable[[int, int], None] | None, done: int, total: int) -> None:
    if progress is not None:
        progress(done, total)


def _write(job: tuple) -> Placed:
    out, layout, seed, number, shift, severity, vendors, place = job
    made = study(seed, number, shift=shift, severity=severity, vendors=vendors)
    return LAYOUTS[layout].write(Path(out), place, made)
