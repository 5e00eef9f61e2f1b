"""What each trial needs of the machine: found by planning it, before anything is started."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from raylora import config as configuration
from raylora.config import Config
from raylora.sweep.space import Trial

if TYPE_CHECKING:
    from raylora.cluster.resources import Request
    from raylora.plan import Plan


class Needs:
    """Plans trials as `run` would, each once: with its seed, which may draw what makes it impossible. Equal backbones are the same arrays."""

    def __init__(self, configured: Callable[[Any], Config], has: Any, concurrent: int | None = None) -> None:
        """`has`: the machine or cluster, of which a trial may fill its part (see `cluster.sweep.share`)."""
        self.configured, self.has, self.concurrent = configured, has, concurrent
        self._backbones: dict[str, Mapping[str, np.ndarray]] = {}  # by hash
        self._known: dict[str, tuple[Plan, Request]] = {}

    def __call__(self, trial: Trial) -> tuple[Plan, Request]:
        """Plan and actors of a trial. Raises InputError."""
        from raylora import planning
        from raylora.cluster import resources, sweep
        from raylora.models.peft import hash_of

        config = self.configured(trial)
        key = configuration.dump(config.model_copy(update={"name": "trial"}))
        if key not in self._known:
            plan = planning.plan_to_run(config)
            request = resources.request_of(plan, sweep.share(config, self.has, self.concurrent))
            self._known[key] = plan.with_weights(self._backbones.setdefault(hash_of(plan.weights), plan.weights)), request
        plan, request = self._known[key]
        return replace(plan, config=config), request
