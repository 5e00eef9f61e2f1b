"""Med-DualLoRA (Perramon-Llussa et al. 2026, arXiv 2603.10967): a shared and a private adapter in every client."""

from __future__ import annotations

from raylora.core import tree as trees
from raylora.core.errors import InputError
from raylora.core.reduce import Reduce, mean
from raylora.core.types import Phase, Strategy, Task
from raylora.strategies import options
from raylora.strategies.averaging import EVERYTHING, averaging


def med_duallora(
    *,
    global_rank: int | None = None,
    local_rank: int | None = None,
    mode: str = "joint",
    stage_rounds: int = 1,
    head: str = "shared",
    weights: str = "size",
    reduce: Reduce = mean,
) -> Strategy:
    """W_c = W_0 + s_g B_g A_g + s_l B_{l,c} A_{l,c}, minimise sum_c (n_c / N) L_c(W_c);
    (B_g, A_g) = sum_c (n_c / N) (B_{g,c}, A_{g,c}); (B_{l,c}, A_{l,c}) never leave and are never reset.

    global_rank, local_rank: None for lora.rank, 0 for none (local 0: `fedit`; global 0 with a private head: `local`).
    mode: the order of training is a default of ours. joint: both at once; alternating: in each round the private adapter for half of the
    steps, then the global one; staged: the global one for `stage_rounds` rounds, then the private one. A shared head trains with the
    global adapter, a private one with the private adapter.
    """
    options.check(weights=weights, head=head)
    options.one_of("mode", mode, ("joint", "alternating", "staged"))
    options.whole("stage_rounds", stage_rounds, 1)
    ranks = {"": global_rank, "local": local_rank}
    for key, rank in zip(("global_rank", "local_rank"), ranks.values(), strict=True):
        options.rank(key, rank, 0)
    adapters = {adapter: rank for adapter, rank in ranks.items() if rank != 0}
    if not adapters:
        raise InputError("strategy.global_rank, strategy.local_rank: expected one above 0 at least, found 0 and 0")
    shared, private = trees.shared_names(head), trees.private_names(head)

    def task(round: int) -> Task:
        if mode == "joint" or len(adapters) == 1:
            return Task(round=round, phases=EVERYTHING, uploads=shared)
        if mode == "alternating":
            return Task(round=round, phases=(Phase(trains=private, share=0.5), Phase(trains=shared, share=0.5)), uploads=shared)
        if round < stage_rounds:
            return Task(round=round, phases=(Phase(trains=shared),), uploads=shared)
        return Task(round=round, phases=(Phase(trains=private),))

    first = stage_rounds if mode == "staged" and len(adapters) > 1 else 0
    return averaging("med_duallora", task, shared, weights=weights, reduce=reduce, adapters=adapters, stage_rounds=first)
