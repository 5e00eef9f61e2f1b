"""The folder of a run: claimed by one, left as it was found where nothing came of it, and locked while somebody runs in it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from raylora.core.errors import InputError
from raylora.core.files import require_writable


def free(name: str, under: Path = Path("runs")) -> Path:
    """runs/<name>, or runs/<name>-2, ... : the first that does not exist."""
    number, folder = 1, under / name
    while os.path.lexists(folder):
        number += 1
        folder = under / f"{name}-{number}"
    return folder


@contextlib.contextmanager
def reserved(name: str, under: Path = Path("runs")) -> Iterator[Path]:
    """`free`, and nobody else's: the empty folder. Gone again if nothing came of it."""
    made = [] if under.exists() else [under]
    while True:
        folder = free(name, under)
        try:
            folder.mkdir(parents=True)
            break
        except OSError as error:
            if os.path.lexists(folder):  # another run was quicker
                continue
            raise InputError(f"--output {folder}: cannot be written: {error.strerror}") from None
    try:
        yield folder
    finally:
        _remove_empty([*made, folder])


def refuse_used(folder: Path) -> None:
    """Raises InputError for an output folder that holds anything, or that cannot be read or made."""
    try:
        if folder.exists() and not folder.is_dir():
            raise InputError(f"--output {folder}: expected a new or empty folder, found a file")
        used = folder.exists() and any(folder.iterdir())
    except OSError as error:
        raise InputError(f"--output {folder}: cannot be read: {error.strerror}") from None
    if used:
        what = "a run" if (folder / "config.yaml").exists() else "something"
        raise InputError(f"--output {folder}: already holds {what}; name another folder, or use `raylora resume`")
    require_writable(folder, "--output")


def claim(folder: Path, text: str) -> list[Path]:
    """Make the output folder with its `config.yaml`; returns the folders that were not there, from the top.

    Raises InputError if it holds anything already or cannot be written to; what was made is gone then.
    """
    made, config = [parent for parent in (*reversed(folder.parents), folder) if not parent.exists()], folder / "config.yaml"
    try:
        refuse_used(folder)
        folder.mkdir(parents=True, exist_ok=True)
        with config.open("x", encoding="utf-8") as file:  # of two runs that start at once, one
            file.write(text)
    except FileExistsError:
        raise InputError(f"--output {folder}: another run has just started in it") from None
    except OSError as error:  # a full disk, for one
        with contextlib.suppress(OSError):
            config.unlink()
        _remove_empty(made)
        raise InputError(f"--output {folder}: cannot be written: {error.strerror}") from None
    return made


def forget(out: Path, made: list[Path]) -> None:
    """Leave what was there before."""
    shutil.rmtree(out, ignore_errors=True)
    if made:
        _remove_empty(made)
    else:  # it was there, and empty
        out.mkdir()


def _remove_empty(folders: list[Path]) -> None:
    """Those that hold nothing, from the bottom: another run may have begun in one of them meanwhile."""
    for folder in reversed(folders):
        with contextlib.suppress(OSError):
            folder.rmdir()


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Nobody else runs in this folder meanwhile. Raises InputError. The lock is on the folder, since a file in it may be replaced by another;
    it dies with the process, whatever its end."""
    held = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        who = _holder(held)
        os.close(held)
        raise InputError(f"{folder}: a run is under way in this folder{who}") from None
    except OSError:  # a disk without locks
        pass
    try:
        yield
    finally:
        os.close(held)


def _holder(held: int) -> str:
    """ " (process 12345)": who holds the lock on what is open here, as far as this machine knows."""
    there = os.fstat(held)
    wanted = f"{os.major(there.st_dev):02x}:{os.minor(there.st_dev):02x}:{there.st_ino}"
    with contextlib.suppress(OSError):
        for line in Path("/proc/locks").read_text(encoding="ascii").splitlines():
            words = line.split()  # 1: FLOCK ADVISORY WRITE 12345 fe:01:678 0 EOF
            if words[1] == "FLOCK" and words[5] == wanted:
                return f" (process {words[4]})"
    return ""
