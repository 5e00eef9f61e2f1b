"""LoRA-FAIR, a corrected mean (Bian et al., ICCV 2025, arXiv 2411.14961)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from raylora.core import lowrank
from raylora.core import tree as trees
from raylora.core.reduce import by_client, shares
from raylora.core.types import ClientUpdate, State, Strategy, Task
from raylora.strategies import options
from raylora.strategies.averaging import EVERYTHING, averaging, in_units


def lora_fair(*, lam: float = 0.01, steps: int = 100, weights: str = "size", head: str = "shared") -> Strategy:
    """A = sum_k p_k A_k, B = sum_k p_k B_k, and what is sent is (A, B + dB) with
    dB = argmin 1 - cos(sum_k p_k s_k B_k A_k, (B + dB) A) + lam ||dB||, by `steps` proximal gradient steps (not the argmin yet where A is
    badly conditioned). B is s B here, s = alpha / r, as the server keeps pairs: beside the paper's, which leaves s out, lam is lam s.
    Traffic as FedIT.
    """
    options.check(weights=weights, head=head)
    options.number("lam", lam, 0.0)
    options.whole("steps", steps, 1)
    uploads = trees.shared_names(head)
    inner = averaging(
        "lora_fair", lambda round: Task(round=round, phases=EVERYTHING, uploads=uploads), uploads, weights=weights, product="inexact"
    )

    def aggregate(state: State, updates: Sequence[ClientUpdate]) -> State:
        updates = by_client(updates)
        after, p = inner.aggregate(state, updates), shares(updates, weights)
        units = [lowrank.pairs(u.adapter) for u in updates]
        means = lowrank.pairs(after.trees["adapter"])
        fair = {m: corrected(lowrank.stack([unit[m] for unit in units], p), pair, lam, steps) for m, pair in means.items()}
        return replace(after, trees={"adapter": trees.freeze({**after.trees["adapter"], **lowrank.named(fair)})})

    return in_units(replace(inner, aggregate=aggregate))


def corrected(target: lowrank.Pair, mean: lowrank.Pair, lam: float, steps: int) -> lowrank.Pair:
    """(A, B + dB). With C = T A^T (out, r) and M = A A^T (r, r): <T, B A> = <C, B> and ||B A||^2 = <B M, B>, so T is never built."""
    (a_t, b_t), (a, b) = lowrank.double(target), lowrank.double(mean)
    c, gram, length = b_t @ (a_t @ a.T), a @ a.T, lowrank.norm(target)
    if length == 0.0 or np.vdot(b @ gram, b) <= 0.0:
        return a, b  # no direction to turn to, or none to turn
    stiffness = np.linalg.eigvalsh(gram)[-1]

    def distance(b_new: np.ndarray) -> float:
        return float(1.0 - np.vdot(c, b_new) / (length * np.sqrt(np.vdot(b_new @ gram, b_new))))

    here, rate = b, np.vdot(b @ gram, b) / stiffness  # 1 / the curvature of the cosine, halved until a step descends
    for _ in range(steps):
        square = np.vdot(here @ gram, here)
        slope = (np.vdot(c, here) / square * (here @ gram) - c) / (length * np.sqrt(square))
        for _ in range(30):
            step = here - rate * slope - b
            shrunk = b + max(0.0, 1.0 - rate * lam / max(float(np.linalg.norm(step)), 1e-300)) * step
            move = shrunk - here
            if np.vdot(shrunk @ gram, shrunk) > 0 and distance(shrunk) <= (
                distance(here) + np.vdot(slope, move) + np.vdot(move, move) / (2 * rate) + 1e-15
            ):
                break
            rate /= 2
        here = shrunk
    return a, here
