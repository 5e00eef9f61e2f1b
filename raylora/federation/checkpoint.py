"""What resume needs, after a round: safetensors and JSON with checksums, written beside and renamed, never a pickle."""

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

from raylora.core.types import ClientState, State, Tree
from raylora.federation.rounds import Progress

SEPARATOR = "|"  # between a tree's path and a tensor's name; in no name
UNDER_WAY = "under way/"  # before the keys of answers that have not arrived yet; in no key of a server


def save(folder: Path, progress: Progress, rows: int) -> Path:
    """Write `folder`/round_NNNN for the rounds done so far; `rows` is the length of the record then."""
    final = folder / f"round_{progress.round:04d}"
    partial = folder / f".round_{progress.round:04d}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    arrays: dict[str, dict[str, np.ndarray]] = {"server": {}, "clients": {}, "base": {}}
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
    sums = {}
    for name, content in arrays.items():
        path = partial / f"{name}.safetensors"
        safetensors.numpy.save_file(content, path)
        sums[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
        _sync(path)
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
        "sha256": sums,
    }
    text = json.dumps(about, indent=1, allow_nan=True)
    body = partial / "state.json"
    body.write_text(json.dumps({"sha256": hashlib.sha256(text.encode()).hexdigest(), "state": text}))
    _sync(body)
    shutil.rmtree(final, ignore_errors=True)
    os.replace(partial, final)
    _sync(folder)
    return final


def prune(folder: Path, keep: int | str) -> None:
    """Remove all but the newest `keep` checkpoints."""
    if keep != "all":
        for path in sorted(folder.glob("round_*"))[: -int(keep)]:
            shutil.rmtree(path, ignore_errors=True)


def latest(folder: Path) -> tuple[tuple[Progress, int] | None, list[str]]:
    """(progress, rows of the record) of the newest whole checkpoint, or None; and words about those that were skipped."""
    words = []
    for path in sorted(folder.glob("round_*"), reverse=True):
        try:
            progress, rows = load(path)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, safetensors.SafetensorError) as error:
            words.append(f"{path}: torn or altered ({error}); the one before it is used")
            continue
        return (progress, rows), words
    return None, words


def load(path: Path) -> tuple[Progress, int]:
    """Read one checkpoint. Raises ValueError if a checksum does not hold."""
    outer = json.loads((path / "state.json").read_text())
    text = outer["state"]
    if hashlib.sha256(text.encode()).hexdigest() != outer["sha256"]:
        raise ValueError("state.json does not match its checksum")
    about: Mapping[str, Any] = json.loads(text)
    arrays = {}
    for name, expected in about["sha256"].items():
        data = (path / name).read_bytes()
        if hashlib.sha256(data).hexdigest() != expected:
            raise ValueError(f"{name} does not match its checksum")
        arrays[name.removesuffix(".safetensors")] = safetensors.numpy.load(data)
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
        deltas={int(key[5:].split(SEPARATOR)[0]): _get(base, key.split(SEPARATOR)[0]) for key in base if key.startswith("delta")},
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
        arrays[f"{key}{SEPARATOR}{name}"] = np.ascontiguousarray(value)


def _get(arrays: Mapping[str, np.ndarray], key: str) -> dict[str, np.ndarray]:
    prefix = key + SEPARATOR
    return {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
