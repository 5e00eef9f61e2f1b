"""Low-rank algebra against the dense product."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raylora.core import lowrank
from raylora.core.errors import InputError, RunError

SIDES = st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 12), st.integers(0, 2**31))  # out, in, rank, seed
quick = settings(deadline=None, max_examples=40)


def pair(out: int, inputs: int, rank: int, seed: int) -> lowrank.Pair:
    draw = np.random.default_rng(seed)
    return draw.normal(size=(rank, inputs)), draw.normal(size=(out, rank))


@quick
@given(SIDES)
def test_svd_is_that_of_the_product(sides: tuple[int, int, int, int]) -> None:
    out, inputs, rank, _ = sides
    p = pair(*sides)
    u, s, vt = lowrank.svd(p)
    assert len(s) == min(out, inputs, rank)
    np.testing.assert_allclose((u * s) @ vt, lowrank.product(p), atol=1e-10)
    np.testing.assert_allclose(u.T @ u, np.eye(len(s)), atol=1e-10)
    np.testing.assert_allclose(vt @ vt.T, np.eye(len(s)), atol=1e-10)
    np.testing.assert_allclose(s, np.linalg.svd(lowrank.product(p), compute_uv=False)[: len(s)], atol=1e-10)


@quick
@given(SIDES, st.integers(1, 9))
def test_truncation_is_the_best_of_its_rank(sides: tuple[int, int, int, int], rank: int) -> None:
    p = pair(*sides)
    cut = lowrank.truncate(p, rank)
    missed = np.linalg.svd(lowrank.product(p), compute_uv=False)[rank:]
    assert cut[0].shape[0] <= rank
    np.testing.assert_allclose(np.linalg.norm(lowrank.product(p) - lowrank.product(cut)), np.linalg.norm(missed), atol=1e-9)
    np.testing.assert_allclose(lowrank.product(lowrank.truncate(cut, 1)), lowrank.product((cut[0][:1], cut[1][:, :1])), atol=1e-9)


@quick
@given(SIDES, st.lists(st.floats(-2, 2), min_size=3, max_size=3))
def test_stack_and_refactor_add_the_products(sides: tuple[int, int, int, int], weights: list[float]) -> None:
    out, inputs, rank, seed = sides
    several = [pair(out, inputs, rank + k, seed + k) for k in range(3)]
    expected = sum(w * lowrank.product(p) for w, p in zip(weights, several, strict=True))
    np.testing.assert_allclose(lowrank.product(lowrank.stack(several, weights)), expected, atol=1e-9)
    exact = lowrank.refactor(several, weights)
    np.testing.assert_allclose(lowrank.product(exact), expected, atol=1e-7 * max(1.0, np.abs(expected).max()))
    assert exact[0].shape[0] <= min(out, inputs)


def test_stack_leaves_out_weight_zero() -> None:
    one, two = pair(4, 5, 2, 0), pair(4, 5, 3, 1)
    assert lowrank.stack([one, two], [0.0, 1.0])[0].shape == (3, 5)
    assert lowrank.product(lowrank.stack([one, two], [0.0, 0.0])).tolist() == np.zeros((4, 5)).tolist()


def test_compress_finds_the_numerical_rank() -> None:
    a, b = pair(8, 7, 2, 0)
    doubled = np.concatenate([a, a]).astype(np.float32), np.concatenate([b, 3 * b], axis=1).astype(np.float32)
    assert lowrank.compress(doubled)[0].shape == (2, 7)
    np.testing.assert_allclose(lowrank.product(lowrank.compress(doubled)), lowrank.product(doubled), rtol=1e-9)
    zero = np.zeros((2, 7)), np.zeros((8, 2))
    assert lowrank.compress(zero)[0].shape == (1, 7)


def test_thin_only_touches_what_is_thicker_than_its_sides() -> None:
    slim, thick = pair(4, 5, 4, 0), pair(4, 5, 6, 0)
    assert lowrank.thin(slim) is slim
    assert lowrank.thin(thick)[0].shape == (4, 5)
    np.testing.assert_allclose(lowrank.product(lowrank.thin(thick)), lowrank.product(thick), atol=1e-9)


@quick
@given(SIDES)
def test_inner_and_norm(sides: tuple[int, int, int, int]) -> None:
    out, inputs, rank, seed = sides
    p, q = pair(out, inputs, rank, seed), pair(out, inputs, rank + 1, seed + 1)
    np.testing.assert_allclose(lowrank.inner(p, q), np.vdot(lowrank.product(p), lowrank.product(q)), atol=1e-9)
    np.testing.assert_allclose(lowrank.norm(p), np.linalg.norm(lowrank.product(p)), atol=1e-9)


def test_the_dense_product_is_never_built() -> None:
    """A (1, 10^6) and a (10^6, 1) factor: their product would need 8 TB."""
    wide = np.ones((1, 10**6)), np.ones((10**6, 1))
    stacked = lowrank.stack([wide, wide], [0.5, 0.25])
    assert lowrank.svd(stacked)[1][0] == pytest.approx(0.75e6)
    assert lowrank.norm(lowrank.truncate(stacked, 1)) == pytest.approx(0.75e6)
    assert lowrank.inner(wide, stacked) == pytest.approx(0.75e12)
    assert lowrank.refactor([wide, wide], [1.0, -1.0])[0].shape == (1, 10**6)


def test_pairs_by_adapter_and_back() -> None:
    tree = {"m.q.lora_A": np.zeros((2, 3)), "m.q.lora_B": np.ones((4, 2)), "head": np.zeros(1), "router.m.q.weight": np.zeros((2, 3))}
    tree |= {f"local.{name}": array + 1 for name, array in tree.items() if "lora" in name}
    assert list(lowrank.pairs(tree)) == ["m.q"] and list(lowrank.pairs(tree, "local")) == ["m.q"]
    assert lowrank.pairs(tree, "local")["m.q"][0][0, 0] == 1 and lowrank.pairs(tree)["m.q"][0][0, 0] == 0
    both = {**lowrank.named(lowrank.pairs(tree)), **lowrank.named(lowrank.pairs(tree, "local"), "local")}
    assert both.keys() == {name for name in tree if "lora" in name}
    assert all(both[name] is tree[name] for name in both)
    assert (
        lowrank.rank_of(tree) == 2 and lowrank.rank_of({"q.lora_B": np.zeros((9, 5))}) == 5 and lowrank.rank_of({"head": np.zeros(3)}) == 0
    )


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"q.lora_A": np.zeros((2, 3))}, "q has q.lora_A only"),
        ({"q.lora_A": np.zeros((2, 3)), "q.lora_B": np.zeros((4, 1))}, "expected one rank"),
    ],
)
def test_half_a_pair_is_refused(tree: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(RunError, match=message):
        lowrank.pairs(tree)


def test_cut_and_pad() -> None:
    a, b = pair(4, 5, 3, 0)
    tree = {"q.lora_A": a, "q.lora_B": b, "head": np.ones(2)}
    small = lowrank.cut(tree, 2)
    assert small["q.lora_A"].shape == (2, 5) and small["q.lora_B"].shape == (4, 2) and small["head"].shape == (2,)
    wide = lowrank.pad((a, b), 5)
    assert wide[0].shape == (5, 5) and wide[1].shape == (4, 5)
    np.testing.assert_array_equal(lowrank.product(wide), lowrank.product((a, b)))
    with pytest.raises(InputError, match=r"lora.rank: expected at most 3, the rank of the initial adapter, found 4"):
        lowrank.cut(tree, 4)
    with pytest.raises(InputError, match=r"fedit: expected one lora.rank for all clients, found 2 at x and 3"):
        lowrank.require_rank(tree, "x", 2, "fedit")


def test_units_carry_the_scaling() -> None:
    a, b = pair(4, 5, 3, 0)
    tree = {"q.lora_A": a, "q.lora_B": b, "head": np.ones(2)}
    unit = lowrank.to_unit(tree, 0.7)
    np.testing.assert_allclose(lowrank.product(lowrank.pairs(unit)["q"]), 0.7 * lowrank.product((a, b)))
    np.testing.assert_allclose(lowrank.from_unit(unit, 0.7)["q.lora_B"], b)
    assert unit["head"] is tree["head"]


def test_restart_keeps_the_distribution_and_reaches_new_directions() -> None:
    a, b = pair(4, 6, 2, 0)
    tree = {"q.lora_A": a.astype(np.float32), "q.lora_B": b.astype(np.float32)}
    fresh = [lowrank.restart(tree, np.random.default_rng(seed)) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(fresh[0]["q.lora_A"], fresh[1]["q.lora_A"])
    assert not np.array_equal(fresh[0]["q.lora_A"], fresh[2]["q.lora_A"])
    np.testing.assert_allclose(np.sort(np.abs(fresh[0]["q.lora_A"])), np.sort(np.abs(tree["q.lora_A"])))
    np.testing.assert_allclose(fresh[2]["q.lora_A"] @ fresh[2]["q.lora_A"].T, a @ a.T, rtol=1e-5)
    assert not fresh[0]["q.lora_B"].any()
    assert np.linalg.matrix_rank(np.concatenate([tree["q.lora_A"], fresh[0]["q.lora_A"], fresh[2]["q.lora_A"]])) == 6
