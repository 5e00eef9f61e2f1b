"""What a run that goes on must find again: studies and their division, base weights, and the values that decide its numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raylora.config import Config, StrategyConfig, decisive
from raylora.core.errors import InputError
from raylora.core.values import flat
from raylora.models import peft
from raylora.plan import Plan
from raylora.provenance import code_sha256
from raylora.strategies import default_options

STACK = "training.stack"
DECIDES_NOTHING = {"training.cache_gb", "evaluation.every", "evaluation.overlays", "evaluation.bootstrap"}  # of a model


def began(plan: Plan) -> dict[str, Any]:
    """What is written down as a run begins."""
    return {"config": settled(plan.config), "code_sha256": code_sha256(), "features": features(plan)}


def features(plan: Plan) -> dict[str, Any] | None:
    """What of the passes is computed once; None if nothing is. Runs that agree in it agree in their bits, whoever computes the features."""
    cache = plan.spec.cache
    return None if cache is None else {"stage": cache.stage, "dtype": cache.dtype, "views": cache.views, "batch": 1}


def hashes(plan: Plan) -> dict[str, str]:
    """Of the prepared studies, and of the base weights."""
    return {"data_sha256": plan.data_sha256, "base_sha256": peft.hash_of(plan.weights)}


def settled(config: Config) -> dict[str, str]:
    """Dotted key -> value of what decides a run's numbers, but where data and weights lie: they may move, and their hashes are kept."""
    values = decisive(config.as_dict())
    sets = [source.model_dump(exclude={"root"}) for source in config.data.sources]
    values["data"] = {**values["data"], "root": None, "cache": None, "dataset": sets}
    values["model"] = {**values["model"], "weights": None, "weights_folder": None}
    values["strategy"] = {**default_options(config.strategy.name), **values["strategy"]}
    return {key: json.dumps(value, default=str) for key, value in flat(values).items() if key not in DECIDES_NOTHING}


def require_same(out: Path, plan: Plan, before: Mapping[str, Any]) -> list[str]:
    """Raise InputError if the studies, their division, the base weights or the values are not those that the run in this folder began with
    (`before`: its patients.json): who was trained on could be tested on, and the end would be that of no configuration. Words about what may
    differ."""
    began = before.get("began") or {}
    for key, now in hashes(plan).items():
        if before.get(key, now) != now:
            what = "studies of data.root" if key == "data_sha256" else "weights of model.weights"
            raise InputError(f"{out}: the {what} are not those that this run began with: bring them back, or start a new run")
    if "config" in began:
        _require_same_values(out / "config.yaml", plan.config, began["config"])
    if began.get("features", features(plan)) != features(plan):
        then, now = (f"up to {each['stage']}" if each else "none" for each in (began["features"], features(plan)))
        raise InputError(
            f"{out / 'config.yaml'}: training.cache_gb: expected room for the features that this run began with ({then}), found {now}; "
            "or start a new run"
        )
    dealt, was = (
        {one["id"]: (one["client"], one["part"]) for one in found} for found in (plan.cohort.patients(), before.get("patients", []))
    )
    for id in [id for id in was if was[id] != dealt.get(id)]:
        client, part = was[id]
        raise InputError(f"{out}: patient {id} is no longer in the {part} part of {client}, as when this run began: start a new run")
    other = began.get("code_sha256", code_sha256()) != code_sha256()
    return ["raylora's code is not the one that this run began with: what follows may have other bits"] if other else []


def _require_same_values(file: Path, config: Config, then: Mapping[str, str]) -> None:
    """Raise InputError, naming the key, for other values than a run began with. A key that one of the two lacks has its default."""
    now, default = settled(config), settled(Config(strategy=StrategyConfig(name=config.strategy.name)))
    if then.get(STACK) == json.dumps("auto"):  # ended while it was measured
        then = {**then, STACK: now[STACK]}
    for key in sorted(now.keys() | then.keys(), key=lambda key: (key != "strategy.name", key)):
        before, found = (values.get(key, default.get(key, "nothing")) for values in (then, now))
        if before != found:
            raise InputError(f"{file}: {key}: expected {before}, with which this run began, found {found}; or start a new run")
