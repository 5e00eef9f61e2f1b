"""Runs read back from MLflow as folders, for whatever reads run folders."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from raylora.core.errors import InputError
from raylora.core.files import write_json
from raylora.tracking.mlflow import record_sha256
from raylora.tracking.store import FOLDER, RECORD, quiet

FILES = ("summary.json", "config.yaml", "cases.parquet", "rounds.jsonl")
STOPPED = {"FAILED": "failed", "KILLED": "failed"}


def fetch(
    uri: str, experiment: str, into: Path, progress: Callable[[str, int, int], None] = lambda what, done, total: None
) -> dict[Path, str]:
    """The runs of an experiment as {folder: what to call it}, oldest first.

    A finished run is its own folder where that still exists and holds the same summary, else a new folder in `into` with what a comparison
    needs. Of a run that was pruned or failed only its configuration and its end are told. Runs that go on, and those of sweeps and clients,
    are left out. Raises InputError where there is no such database or experiment, where no run of it has ended, and for a run whose artifacts
    lack a file; otherwise whatever MLflow raises.
    """
    quiet()
    from mlflow import MlflowClient

    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).is_file():
        raise InputError(f"--uri {uri}: no such database (expected one that runs were tracked in)")
    client = MlflowClient(tracking_uri=uri)
    found = client.get_experiment_by_name(experiment)
    if found is None:
        names = ", ".join(sorted(e.name for e in client.search_experiments()))
        raise InputError(f"--experiment {experiment}: not in {uri} (it has {names or 'none'})")
    runs = [run for run in _every(client, found.experiment_id) if run.info.status in ("FINISHED", *STOPPED)]
    folders: dict[Path, str] = {}
    for number, run in enumerate(runs):
        progress("reading runs from MLflow", number, len(runs))
        name = f"MLflow run {run.info.run_id[:8]} ({run.info.run_name})"
        if run.info.status == "FINISHED":
            folders[_here(run) or _downloaded(client, run, into / run.info.run_id)] = name
        else:
            folders[_told(run, into / run.info.run_id)] = name
    if not folders:
        raise InputError(f"--experiment {experiment}: no run in {uri} has ended")
    return folders


def _every(client: Any, experiment_id: str) -> Iterator[Any]:
    """The runs of experiments, a page at a time; those of sweeps and of clients have no strategy."""
    token = None
    while True:
        page = client.search_runs([experiment_id], "tags.strategy LIKE '%'", order_by=["attributes.start_time ASC"], page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def _here(run: Any) -> Path | None:
    """The run's own folder, if it is on this machine and still holds that run."""
    if FOLDER not in run.data.tags:
        return None
    folder = Path(run.data.tags[FOLDER])
    try:
        same = record_sha256(json.loads((folder / "summary.json").read_text(encoding="utf-8"))) == run.data.tags.get(RECORD)
        return folder if same and all((folder / name).is_file() for name in FILES) else None
    except (OSError, ValueError):
        return None


def _downloaded(client: Any, run: Any, folder: Path) -> Path:
    folder.mkdir(parents=True)
    there = {item.path for item in client.list_artifacts(run.info.run_id)}
    if missing := [name for name in FILES[:3] if name not in there]:
        raise InputError(
            f"MLflow run {run.info.run_id}: its artifacts lack {missing[0]} (`raylora upload DIR` brings a record that is incomplete)"
        )
    for name in FILES:
        if name in there:
            client.download_artifacts(run.info.run_id, name, str(folder))
    return folder


def _told(run: Any, folder: Path) -> Path:
    """A folder for a run that did not come to its end, from its parameters and tags."""
    folder.mkdir(parents=True)
    tags = run.data.tags
    (folder / "config.yaml").write_text(yaml.safe_dump(nested(run.data.params)), encoding="utf-8")
    status = "pruned" if tags.get("pruned") == "true" else STOPPED[run.info.status]
    known = {"task": tags.get("task", ""), "strategy": tags["strategy"], "seed": int(tags.get("seed", 0))}
    hashes = {name: tags.get(name, "") for name in ("data_sha256", "config_sha256")}
    write_json(folder / "summary.json", {"schema": 1, "status": status, "clients": [], **known, **hashes})
    return folder


def nested(params: Mapping[str, str]) -> dict[str, Any]:
    """Dotted parameters as the mapping that they were made of, their texts as values."""
    values: dict[str, Any] = {}
    for key, text in params.items():
        *sections, last = key.split(".")
        section = values
        for name in sections:
            section = section.setdefault(name, {})
        section[last] = _value(text)
    return values


def _value(text: str) -> Any:
    """What `str` made the text of, for the values that a configuration holds."""
    if text in ("None", "True", "False"):
        return {"None": None, "True": True, "False": False}[text]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    try:
        return json.loads(text.replace("'", '"').replace("(", "[").replace(")", "]")) if text[:1] in "[(" else text
    except ValueError:
        return text
