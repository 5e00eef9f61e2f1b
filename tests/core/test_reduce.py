"""Reductions by hand and against brute force."""

import itertools
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from raylora.core import lowrank, reduce
from raylora.core.errors import InputError, RunError
from raylora.core.types import ClientUpdate

ROBUST = {
    "median": reduce.median(),
    "trimmed": reduce.trimmed_mean(0.2),
    "krum": reduce.krum(1),
    "multi_krum": reduce.multi_krum(1, 3),
    "geometric": reduce.geometric_median(),
}


def scalars(*values: float) -> list[dict[str, np.ndarray]]:
    return [{"w": np.array([value], np.float32)} for value in values]


def test_mean_by_hand() -> None:
    assert reduce.mean(scalars(1.0, 4.0), [1.0, 2.0])["w"][0] == pytest.approx(3.0)


def test_median_and_trimmed_mean_by_hand() -> None:
    values = scalars(1.0, 2.0, 3.0, 4.0, 1000.0)
    assert reduce.median()(values, [1, 1, 1, 1, 9])["w"][0] == 3.0
    assert reduce.trimmed_mean(0.2)(values, [1, 1, 1, 1, 1])["w"][0] == pytest.approx(3.0)
    assert reduce.trimmed_mean(0.2)(values, [1, 2, 1, 1, 1])["w"][0] == pytest.approx((2 * 2 + 3 + 4) / 4)  # sizes of those that are left
    assert reduce.trimmed_mean(0.4)(values, [1, 1, 1, 1, 1])["w"][0] == 3.0


def test_krum_by_hand() -> None:
    """K = 5, f = 1: the sum over the 2 nearest is 1 + 4 for 0, 1 + 1 for 1, 1 + 4 for 2; 1 is chosen."""
    values = scalars(0.0, 1.0, 2.0, 10.0, -50.0)
    assert reduce.krum(1)(values, [1] * 5)["w"][0] == 1.0
    assert reduce.multi_krum(1, 2)(values, [3, 1, 1, 1, 1])["w"][0] == pytest.approx((3 * 0 + 1) / 4)
    with pytest.raises(InputError, match="expected at least 6 clients for f=1, m=5, found 5"):
        reduce.multi_krum(1, 5)(values, [1] * 5)  # the mean of all: the liar's as well


@pytest.mark.parametrize("count", [3, 4])
def test_krum_needs_its_clients(count: int) -> None:
    with pytest.raises(InputError, match=f"expected at least 5 clients for f=1, m=1, found {count}"):
        reduce.krum(1)(scalars(*range(count)), [1] * count)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10**6), st.integers(5, 7), st.integers(1, 2))
def test_krum_against_brute_force(seed: int, count: int, f: int) -> None:
    if count < 2 * f + 3:
        return
    draw = np.random.default_rng(seed)
    several = [{"a": draw.normal(size=(2, 3)), "b": draw.normal(size=4)} for _ in range(count)]
    flat = [np.concatenate([tree["a"].ravel(), tree["b"]]) for tree in several]
    sums = []
    for k in range(count):
        others = [flat[j] for j in range(count) if j != k]
        sums.append(min(sum(np.sum((flat[k] - u) ** 2) for u in group) for group in itertools.combinations(others, count - f - 2)))
    np.testing.assert_allclose(reduce.krum(f)(several, [1.0] * count)["a"], several[int(np.argmin(sums))]["a"])


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10**6))
def test_geometric_median_minimises_its_sum(seed: int) -> None:
    draw = np.random.default_rng(seed)
    points, p = draw.normal(size=(5, 3)), draw.uniform(0.5, 2.0, 5)
    found = reduce.geometric_median(iterations=300)([{"w": x} for x in points], p.tolist())["w"]

    def total(u: np.ndarray) -> float:
        return float(p @ np.linalg.norm(points - u, axis=1))

    assert all(total(found) <= total(found + step) + 1e-4 for step in 0.01 * draw.normal(size=(50, 3)))


@pytest.mark.parametrize("far", [[1e2], [1e6], [1e10], [8e37], [1e2, 1e2], [1e4, 1e4], [1e7, -3e7], [1e12, 2e12]])
def test_geometric_median_is_what_the_others_would_be_pulled_to(far: list[float]) -> None:
    """By its definition in the limit: whoever is far away pulls with a force of its share, however far (those beyond 1e8 with none)."""
    near = np.array([(1, 1), (1, -1), (-1, 1), (-1, -1)], float)
    several = [{"w": x} for x in (*near, *(np.array([x, 0.0]) for x in far))]
    found = reduce.geometric_median()(several, [1] * len(several))["w"]
    pull = np.array([sum(np.sign(x) for x in far if abs(x) < 1e8), 0.0])
    expected = minimize(lambda u: np.linalg.norm(near - u, axis=1).sum() - pull @ u, [0.1, 0.1], tol=1e-10).x
    np.testing.assert_allclose(found, expected, atol=0.02 if min(map(abs, far)) < 1e3 else 1e-3)


@pytest.mark.parametrize("unit", [1e-6, 1.0, 1e6])
def test_geometric_median_leaves_nobody_out_beside_some_who_are_the_same(unit: float) -> None:
    """Three of a third of the weight together, two of a third each elsewhere: the middle of a triangle, in any unit."""
    several = [{"w": unit * np.array(x, float)} for x in ((0, 0), (0, 0), (0, 0), (300, 0), (150, 150 * 3**0.5))]
    found = reduce.geometric_median(eps=1e-9 * unit)(several, [1, 1, 1, 3, 3])["w"]
    np.testing.assert_allclose(found / unit, [150, 50 * 3**0.5], rtol=1e-6)
    assert np.all(reduce.geometric_median()(several[:2], [1, 2])["w"] == 0)


@pytest.mark.parametrize("options", [{"eps": np.nan}, {"eps": 0.0}, {"iterations": 5.0}, {"iterations": 0}])
def test_geometric_median_refuses_what_would_end_later(options: dict[str, float]) -> None:
    with pytest.raises(InputError, match="expected eps > 0 and whole iterations >= 1"):
        reduce.geometric_median(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ROBUST)
def test_identical_updates_give_themselves(name: str) -> None:
    same = [{"w": np.array([[0.3, -7.0]], np.float32)}] * 5
    np.testing.assert_allclose(ROBUST[name](same, [1, 2, 3, 4, 5])["w"], same[0]["w"], rtol=1e-12)


@pytest.mark.parametrize("name", ROBUST)
def test_a_client_of_weight_zero_is_not_there(name: str) -> None:
    draw = np.random.default_rng(0)
    several = [{"w": draw.normal(size=3)} for _ in range(6)]
    without = ROBUST[name](several[:5], [1, 2, 3, 4, 5])["w"]
    np.testing.assert_array_equal(ROBUST[name]([*several[:5], {"w": np.full(3, 99.0)}], [1, 2, 3, 4, 5, 0])["w"], without)


@pytest.mark.parametrize("name", ROBUST)
def test_one_outlier_of_five_does_not_carry_it_away(name: str) -> None:
    draw = np.random.default_rng(0)
    good = [{"w": 1 + 0.1 * draw.normal(size=4)} for _ in range(4)]
    bad = {"w": np.full(4, -1e3)}
    assert np.abs(ROBUST[name]([*good, bad], [1] * 5)["w"] - 1).max() < 0.3
    assert np.abs(reduce.mean([*good, bad], [1] * 5)["w"] - 1).max() > 100


def test_trimmed_mean_with_nothing_trimmed_is_the_mean() -> None:
    draw = np.random.default_rng(0)
    several, sizes = [{"w": draw.normal(size=(3, 2))} for _ in range(4)], [3, 1, 2, 5]
    np.testing.assert_array_equal(reduce.trimmed_mean(0.0)(several, sizes)["w"], reduce.mean(several, sizes)["w"])


@pytest.mark.parametrize("make", [lambda: reduce.trimmed_mean(0.5), lambda: reduce.krum(-1), lambda: reduce.geometric_median(eps=0)])
def test_options_out_of_range(make: object) -> None:
    with pytest.raises(InputError, match="expected"):
        make()  # type: ignore[operator]


def test_products_are_weighed_by_their_own_distances() -> None:
    """One product in five different factorisations and an outlier: on factors they are far apart, on products they are one."""
    draw = np.random.default_rng(0)
    a, b = draw.normal(size=(2, 6)), draw.normal(size=(5, 2))
    turned = [draw.normal(size=(2, 2)) for _ in range(4)]
    same = [{"q": (np.linalg.inv(t) @ a, b @ t)} for t in turned]
    weights = reduce.weigh_products(reduce.krum(1), [*same, {"q": (9 * a, b)}], [1.0] * 5)
    assert weights[4] == 0.0 and sum(weights) == pytest.approx(1.0)
    weights = reduce.weigh_products(reduce.geometric_median(iterations=50), [*same, {"q": (9 * a, b)}], [1.0] * 5)
    assert weights[4] < 1e-3
    assert reduce.weigh_products(reduce.mean, same, [0.1, 0.2, 0.3, 0.4]) == [0.1, 0.2, 0.3, 0.4]
    assert reduce.weigh_products(reduce.krum(1), [*same, same[0], same[0]], [1.0] * 5 + [0.0])[5] == 0.0
    assert lowrank.norm(same[0]["q"]) == pytest.approx(lowrank.norm(same[3]["q"]))


@pytest.mark.parametrize("refused", [reduce.median(), reduce.trimmed_mean(0.1)])
def test_coordinates_of_products_are_refused(refused: reduce.Reduce) -> None:
    with pytest.raises(InputError, match="flora adds products, which are never built"):
        reduce.require_weighing(refused, "flora")


def update(client: str, size: int) -> ClientUpdate:
    return ClientUpdate(client_id=client, num_examples=size, adapter={})


def test_shares_and_order() -> None:
    updates = reduce.by_client([update("b", 3), update("a", 1)])
    assert [u.client_id for u in updates] == ["a", "b"]
    assert reduce.shares(updates, "size") == [0.25, 0.75] and reduce.shares(updates, "uniform") == [0.5, 0.5]
    with pytest.raises(InputError, match="expected size or uniform, found big"):
        reduce.shares(updates, "big")
    with pytest.raises(RunError, match="no training patient"):
        reduce.shares([update("a", 0)], "size")
    with pytest.raises(RunError, match="no client update"):
        reduce.by_client([])


def test_the_mean_of_movements_holds_one_of_them_at_a_time() -> None:
    names = [f"head.{i}" for i in range(5)]
    received = {name: np.full(10_000, 0.5, np.float32) for name in names}
    sent = [{name: np.full(10_000, k, np.float32) for name in names} for k in range(100)]
    tracemalloc.start()
    found = reduce.movement(received, sent, [1.0] * 100, reduce.mean, 0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert all(np.array_equal(array, np.full(10_000, 49.0)) and array.dtype == np.float64 for array in found.values())
    assert peak < (2 * len(names) + 4) * found["head.0"].nbytes, "what was received and the sum, each as float64, and one name's movement"
    moved = reduce.Movements(received, sent)
    assert len(moved) == 100 and [tree["head.0"][0] for tree in moved[1:3]] == [0.5, 1.5]


def test_the_mean_of_movements_has_the_bits_of_a_sum_client_by_client() -> None:
    rng = np.random.default_rng(0)
    shapes = {"a": (3, 4), "b": (), "c": (5,)}
    tree = lambda: {name: np.asarray(rng.normal(size=shape), np.float32) for name, shape in shapes.items()}  # noqa: E731
    received, sent, weights = tree(), [tree() for _ in range(5)], [0.1, 0.2, 0.3, 0.15, 0.25]
    received["c"], sent = (
        np.float32(-0.0) * np.ones(5, np.float32),
        [{**one, "c": np.zeros(5, np.float32) * np.float32(-1)} for one in sent],
    )
    total = {name: np.zeros(shape) for name, shape in shapes.items()}
    for one, weight in zip(sent, np.array(weights) / np.sum(weights), strict=True):
        for name in total:
            total[name] = total[name] + (one[name].astype(np.float64) - received[name].astype(np.float64)) * weight
    found = reduce.movement(received, sent, weights, reduce.mean, 0)
    assert {name: array.tobytes() for name, array in found.items()} == {name: np.asarray(array).tobytes() for name, array in total.items()}
