"""Algebra of low-rank pairs: the dense product B @ A is not built where the stacked rank is smaller than the sides.

A pair is (A, B) with A (r, in) and B (out, r). A pair of a client adds scaling * B @ A; a *unit* pair adds B @ A.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from raylora.core import tree as trees
from raylora.core.errors import InputError, RunError
from raylora.core.types import Tree

Pair = tuple[np.ndarray, np.ndarray]
Pairs = Mapping[str, Pair]

TOLERANCE = 1e-9
"""Singular values below this share of the largest are rounding: the factors are stored in float32."""


def pairs(tree: Tree, adapter: str = "") -> dict[str, Pair]:
    """{module: (A, B)} of one adapter of a tree ("" is the global one); names that belong to no pair are left out.
    Raises RunError if a module has one factor only or the ranks of its factors differ."""
    prefix = f"{adapter}." if adapter else ""
    others = (*(f"{other}." for other in trees.ADAPTERS[1:]), "router.")
    found: dict[str, Pair] = {}
    for name in tree:
        if not name.endswith((".lora_A", ".lora_B")) or not name.startswith(prefix) or (not adapter and name.startswith(others)):
            continue
        module = name.removeprefix(prefix)[: -len(".lora_A")]
        key_a, key_b = f"{prefix}{module}.lora_A", f"{prefix}{module}.lora_B"
        if key_a not in tree or key_b not in tree:
            raise RunError(f"adapter: {module} has {name} only, expected both factors")
        if tree[key_a].shape[0] != tree[key_b].shape[1]:
            raise RunError(f"adapter: {module} has A {tree[key_a].shape} and B {tree[key_b].shape}, expected one rank")
        found[module] = (tree[key_a], tree[key_b])
    return found


def named(pairs: Pairs, adapter: str = "") -> Tree:
    """The tree of {module: (A, B)}: the opposite of `pairs`."""
    prefix = f"{adapter}." if adapter else ""
    return {f"{prefix}{module}.lora_{side}": factor for module, pair in pairs.items() for side, factor in zip("AB", pair, strict=True)}


def double(pair: Pair) -> Pair:
    """The pair in float64."""
    return np.asarray(pair[0], dtype=np.float64), np.asarray(pair[1], dtype=np.float64)


def product(pair: Pair) -> np.ndarray:
    """B @ A, dense, in float64."""
    a, b = double(pair)
    return np.asarray(b @ a)


def stack(several: Sequence[Pair], weights: Sequence[float]) -> Pair:
    """One pair whose product is sum_k weights[k] * B_k @ A_k: B = [B_1 ... B_K], A = [w_1 A_1; ...; w_K A_K], in float64
    (FLoRA, arXiv 2409.05976, eq. 6). Pairs of weight 0 are left out; if all are, one of them stays, as zeros."""
    kept = [(w, double(pair)) for w, pair in zip(weights, several, strict=True) if w != 0.0] or [(0.0, double(several[0]))]
    return np.concatenate([w * a for w, (a, _) in kept]), np.concatenate([b for _, (_, b) in kept], axis=1)


def svd(pair: Pair) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """U (out, q), s (q,), Vt (q, in) of B @ A with q = min(r, in, out), by QR of both factors and the SVD of an (r, r) core.
    All columns of U and rows of Vt are orthonormal, also where s is 0."""
    a, b = double(pair)
    q_b, r_b = np.linalg.qr(b)  # (out, min(out, r)), (min(out, r), r)
    q_a, r_a = np.linalg.qr(a.T)  # (in, min(in, r)), (min(in, r), r)
    u, s, vt = np.linalg.svd(r_b @ r_a.T, full_matrices=False)
    return q_b @ u, s, vt @ q_a.T


def truncate(pair: Pair, rank: int) -> Pair:
    """The best approximation of B @ A of the given rank (Eckart-Young), B = U S and A = Vt. Its first r columns and rows are the best
    approximation of rank r. A direction without weight keeps a unit row in A, so that training can use it."""
    u, s, vt = svd(pair)
    rank = min(rank, len(s))
    return vt[:rank], u[:, :rank] * s[:rank]


def compress(pair: Pair, tolerance: float = TOLERANCE) -> Pair:
    """The same product at its numerical rank (1 at least)."""
    u, s, vt = svd(pair)
    rounding = 1e-13 * np.linalg.norm(pair[0]) * np.linalg.norm(pair[1])  # of float64, where factors cancel
    rank = max(1, int(np.count_nonzero(s > max(tolerance * s[0], rounding))))
    return vt[:rank], u[:, :rank] * s[:rank]


def thin(pair: Pair) -> Pair:
    """The same product at a rank of at most its smaller side; a pair that is thin already comes back as it is."""
    return compress(pair) if pair[0].shape[0] > min(pair[0].shape[1], pair[1].shape[0]) else pair


def refactor(several: Sequence[Pair], weights: Sequence[float]) -> Pair:
    """sum_k weights[k] * B_k @ A_k exactly, as one pair of its numerical rank."""
    return compress(stack(several, weights))


def inner(pair: Pair, other: Pair) -> float:
    """<B @ A, B' @ A'> (Frobenius) from (r, r') matrices."""
    (a, b), (a2, b2) = double(pair), double(other)
    return float(np.sum((b.T @ b2) * (a @ a2.T)))


def norm(pair: Pair) -> float:
    """||B @ A|| (Frobenius), by the singular values: accurate also where the product nearly cancels."""
    return float(np.linalg.norm(svd(pair)[1]))


def rank_of(tree: Tree) -> int:
    """The largest rank of the global factors of a tree; 0 without any."""
    names = trees.match(tree, trees.GLOBAL)
    return max((tree[name].shape[0 if name.endswith("A") else 1] for name in names), default=0)


def cut(tree: Tree, rank: int) -> Tree:
    """Every pair cut to its first `rank` rows of A and columns of B; other names as they are. Raises InputError if a pair has fewer."""
    if 0 < rank_of(tree) < rank:
        raise InputError(f"lora.rank: expected at most {rank_of(tree)}, the rank of the initial adapter, found {rank}")
    return {
        name: array[:rank] if name.endswith(".lora_A") else array[:, :rank] if name.endswith(".lora_B") else array
        for name, array in tree.items()
    }


def pad(pair: Pair, rank: int) -> Pair:
    """The same product with zero rows of A and zero columns of B up to `rank` (HetLoRA's zero-padding)."""
    a, b = double(pair)
    missing = max(0, rank - a.shape[0])
    return np.pad(a, ((0, missing), (0, 0))), np.pad(b, ((0, 0), (0, missing)))


def to_unit(tree: Tree, scaling: float) -> Tree:
    """A client's factors as unit pairs: B times its scaling."""
    return tree if scaling == 1.0 else {n: trees.scale({n: x}, scaling)[n] if n.endswith(".lora_B") else x for n, x in tree.items()}


def from_unit(tree: Tree, scaling: float) -> Tree:
    """Unit pairs as a client with this scaling holds them: B divided by it."""
    return to_unit(tree, 1.0 / scaling)


def restart(tree: Tree, generator: np.random.Generator) -> Tree:
    """A fresh pair for every pair of an initial tree: B zero; the columns of A in a new order with new signs, which keeps the
    distribution of its entries and the products of its rows whatever initialisation made it."""
    fresh: dict[str, np.ndarray] = {}
    for name in sorted(tree):
        array = tree[name]
        if name.endswith(".lora_A"):
            order, signs = generator.permutation(array.shape[1]), generator.choice((-1.0, 1.0), array.shape[1])
            fresh[name] = array[:, order] * signs
        elif name.endswith(".lora_B"):
            fresh[name] = np.zeros_like(array)
    return trees.freeze(fresh)


def require_rank(tree: Tree, client_id: str, rank: int, method: str) -> None:
    """Raise InputError if a client's rank is not that of the pairs of the tree: the method needs one rank everywhere."""
    if rank_of(tree) not in (0, rank):
        raise InputError(f"strategy.name {method}: expected one lora.rank for all clients, found {rank} at {client_id} and {rank_of(tree)}")
