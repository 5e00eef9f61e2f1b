"""What resume needs, after a round: safetensors and JSON with checksums, written beside and renamed, never a pickle.

Five files for any number of clients. `checksums.json` names the SHA-256 of the four others and is compared as text with what they give, so
that no byte of any of the five can change unnoticed.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from raylora.core.errors import one_line
from raylora.core.types import ClientState, State, Tree
from raylora.federation.rounds import Progress

SEPARATOR = "|"  # between a tree's path and a tensor's name; in no name
ARRAYS = ("server", "clients", "base")
CHECKSUMS = "checksums.json"
UNDER_WAY = "under way/"  # before the keys of answers that have not arrived yet; in no key of a server


def save(folder: Path, progress: Progress, rows: int) -> Path:
    """Write `folder`/round_NNNN for the rounds done so far; `rows` is the length of the record then.

    It is there whole or not at all. What a failed attempt has written is removed again; raises the OSError that ended it.
    """
    final = folder / f"round_{progress.round:04d}"
    partial = folder / f".round_{progress.round:04d}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        sums = {name: _write(partial / name, data) for name, data in _files(progress, rows).items()}
        _write(partial / CHECKSUMS, _listed(sums))
        shutil.rmtree(final, ignore_errors=True)  # a torn one, if any: rounds are saved once
        os.replace(partial, final)
    except OSError:
        shutil.rmtree(partial, ignore_errors=True)  # a full disk needs its space back
        raise
    descriptor = os.open(folder, os.O_RDONLY)  # the rename too
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return final


def _files(progress: Progress, rows: int) -> dict[str, bytes]:
    """Name -> content."""
    arrays: dict[str, dict[str, np.ndarray]] = {name: {} for name in ARRAYS}
    for key, tree in progress.server.trees.items():
        _put(arrays["server"], key, tree)
    for client, state in progress.states.items():
        for key, tree in state.trees.items():
            _put(arrays["clients"], f"{client}{SEPARATOR}{key}", tree)
    for key, tree in progress.under_way.trees.items():
        _put(arrays["server"], f"{UNDER_WAY}{key}", tree)
    _put(arrays["base"], "weights", progress.base)
    _put(arrays["base"], "folded", progress.folded)
    for version, delta in progress.deltas.items():
        _put(arrays["base"], f"delta{version}", delta)
    about = {
        "round": progress.round,
        "values": progress.server.values,
        "server_trees": sorted(progress.server.trees),
        "states": {
            c: {"round": s.round, "base_version": s.base_version, "trees": sorted(s.trees)} for c, s in sorted(progress.states.items())
        },
        "base_version": progress.base_version,
        "versions": dict(progress.versions),
        "bytes_up": progress.bytes_up,
        "bytes_down": progress.bytes_down,
        "virtual_s": progress.virtual_s,
        "under_way": {"values": progress.under_way.values, "trees": sorted(progress.under_way.trees)},
        "rows": rows,
    }
    text = json.dumps(about, indent=1, allow_nan=True)
    return {**{f"{name}.safetensors": safetensors.numpy.save(content) for name, content in arrays.items()}, "state.json": text.encode()}


def prune(folder: Path, keep: int | str) -> None:
    """Remove all but the newest `keep` checkpoints."""
    if keep != "all":
        for path in written(folder)[: -int(keep)]:
            shutil.rmtree(path, ignore_errors=True)


def discard_after(folder: Path, round: int) -> None:
    """Remove the checkpoints of later rounds, which a run that goes on from here writes anew."""
    for path in written(folder):
        if int(path.name.removeprefix("round_")) > round:
            shutil.rmtree(path, ignore_errors=True)


def written(folder: Path) -> list[Path]:
    """The folders of the checkpoints, whole or not, oldest first."""
    found = [path for path in folder.glob("round_*") if path.name.removeprefix("round_").isdecimal()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("round_")))


def latest(folder: Path) -> tuple[tuple[Progress, int] | None, list[str]]:
    """(progress, rows of the record) of the newest whole checkpoint, or None; and words about those that were skipped."""
    words: list[str] = []
    for path in reversed(written(folder)):
        try:
            return load(path), words
        except (OSError, ValueError, KeyError, TypeError, AttributeError, safetensors.SafetensorError) as error:
            words.append(f"{path}: torn or altered ({one_line(error)}): passed over")
    return None, words


def load(path: Path) -> tuple[Progress, int]:
    """Read one checkpoint. Raises ValueError if a checksum does not hold, OSError if a file is missing."""
    files = {name: (path / name).read_bytes() for name in (*(f"{name}.safetensors" for name in ARRAYS), "state.json")}
    if (path / CHECKSUMS).read_bytes() != _listed({name: hashlib.sha256(data).hexdigest() for name, data in files.items()}):
        raise ValueError(f"its files do not match {CHECKSUMS}")
    about: Mapping[str, Any] = json.loads(files["state.json"])
    arrays = {name: safetensors.numpy.load(files[f"{name}.safetensors"]) for name in ARRAYS}
    base = arrays["base"]
    progress = Progress(
        round=about["round"],
        server=State(trees={key: _get(arrays["server"], key) for key in about["server_trees"]}, values=about["values"]),
        states={
            client: ClientState(
                trees={key: _get(arrays["clients"], f"{client}{SEPARATOR}{key}") for key in state["trees"]},
                base_version=state["base_version"],
                round=state["round"],
            )
            for client, state in about["states"].items()
        },
        base=_get(base, "weights"),
        base_version=about["base_version"],
        folded=_get(base, "folded"),
        deltas={int(key[5:]): _get(base, key) for key in dict.fromkeys(k.split(SEPARATOR)[0] for k in base) if key.startswith("delta")},
        versions=about["versions"],
        bytes_up=about["bytes_up"],
        bytes_down=about["bytes_down"],
        virtual_s=about["virtual_s"],
        under_way=State(
            trees={key: _get(arrays["server"], f"{UNDER_WAY}{key}") for key in about["under_way"]["trees"]},
            values=about["under_way"]["values"],
        ),
    )
    return progress, about["rows"]


def _put(arrays: dict[str, np.ndarray], key: str, tree: Tree) -> None:
    for name, value in tree.items():
        arrays[f"{key}{SEPARATOR}{name}"] = np.asarray(value, order="C")


def _get(arrays: Mapping[str, np.ndarray], key: str) -> dict[str, np.ndarray]:
    prefix = key + SEPARATOR
    return {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}


def _listed(sums: Mapping[str, str]) -> bytes:
    return (json.dumps(sums, indent=1, sort_keys=True) + "\n").encode()


def _write(path: Path, data: bytes) -> str:
    """The data as a file that outlives a power cut; their SHA-256."""
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return hashlib.sha256(data).hexdigest()
