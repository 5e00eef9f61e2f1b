"""What each trial needs of the machine: found by planning it, before anything is started."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from raylora import config as configuration
from raylora.config import Config
from raylora.sweep.space import Trial


class Needs:
    """Plans trials as `run` would, each once: with its seed, which may draw what makes it impossible."""

    def __init__(self, configured: Callable[[Any], Config], has: Any, mapper: Any, concurrent: int | None = None) -> None:
        """`has`: the machine or cluster, of which a trial may fill its part (see `cluster.sweep.share`); `mapper` spreads what planning prepares."""
        self.configured, self.has, self.mapper, self.concurrent = configured, has, mapper, concurrent
        self.backbones: dict[str, Mapping[str, np.ndarray]] = {}  # by hash
        self.data: dict[int, str] = {}  # trial -> data_sha256
        self._known: dict[str, tuple[Any, str]] = {}

    def __call__(self, trial: Trial) -> tuple[Config, Any]:
        """Configuration and actors of a trial. Raises InputError."""
        from raylora import planning
        from raylora.cluster import driver, sweep
        from raylora.models.peft import hash_of

        config = self.configured(trial)
        key = configuration.dump(config.model_copy(update={"name": "trial"}))
        if key not in self._known:
            plan = planning.make_plan(config, lambda what, done, total: None, self.mapper)
            request = driver.request_of(plan, sweep.share(config, self.has, self.concurrent))
            self.backbones.setdefault(hash_of(plan.weights), plan.weights)
            self._known[key] = request, plan.data_sha256
        request, self.data[trial.number] = self._known[key]
        return config, request
