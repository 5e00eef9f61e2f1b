"""FedDPA, dual adapters (Yang et al., NeurIPS 2024, arXiv 2403.19211)."""

from __future__ import annotations

from raylora.core import tree as trees
from raylora.core.reduce import Reduce, mean
from raylora.core.types import Phase, Strategy, Task
from raylora.strategies import options
from raylora.strategies.averaging import averaging


def feddpa(
    *,
    a: float = 0.5,
    mix: float = 0.5,
    schedule: str = "T",
    stage_rounds: int = 1,
    local_rank: int | None = None,
    weights: str = "size",
    head: str = "shared",
    reduce: Reduce = mean,
) -> Strategy:
    """Output W_0 x + a active(x) + (1 - a) stopgrad(other(x)). schedule T: in each round the private adapter is active for half of the
    steps, then the global one, which is averaged; F: `stage_rounds` rounds of the global adapter alone, then the private one.

    mix: the global adapter's weight when the client's model is used, also in the first stage of F, when the private one adds nothing yet
    (the paper weighs each instance by its likeness to reference samples: not done here). A head trains with the adapter that shares its
    fate. The published code has uniform weights. Traffic as FedIT.
    """
    options.check(weights=weights, head=head)
    options.number("a", a, 0.0, 1.0)
    options.number("mix", mix, 0.0, 1.0)
    options.one_of("schedule", schedule, ("T", "F"))
    options.whole("stage_rounds", stage_rounds, 1)
    options.rank("local_rank", local_rank)
    shared, private = trees.shared_names(head), trees.private_names(head)

    def task(round: int) -> Task:
        share = 0.5 if schedule == "T" else 1.0
        own = Phase(trains=private, share=share, gates={"local": a, "": 1 - a}, detached=("",))
        common = Phase(trains=shared, share=share, gates={"": a, "local": 1 - a}, detached=("local",))
        alone = Phase(trains=shared, gates={"": 1.0, "local": 0.0})
        if schedule == "T":
            return Task(round=round, phases=(own, common), uploads=shared)
        return Task(round=round, phases=(alone,), uploads=shared) if round < stage_rounds else Task(round=round, phases=(own,))

    return averaging(
        "feddpa",
        task,
        shared,
        weights=weights,
        reduce=reduce,
        adapters={"": None, "local": local_rank},
        gates={"": mix, "local": 1 - mix},
        stage_rounds=stage_rounds if schedule == "F" else 0,
    )
