import numpy as np
import pytest

from raylora.core.seeds import generator
from raylora.metrics.bootstrap import degrees_of_freedom, draws, interval
from raylora.metrics.classification import STATISTICS
from raylora.metrics.matrix import Sample, entry, weighted_mean


def test_draws_stay_within_strata_and_leave_one_out():
    weights = draws(["a", "a", "a", "b", "b", "c"], 200, generator(0, "test"))
    assert weights.shape == (200, 6)
    assert (weights[:, :3].sum(1) == 2).all() and (weights[:, 3:5].sum(1) == 1).all() and (weights[:, 5] == 1).all()


def test_variance_of_a_mean_is_unbiased():
    """Drawing m - 1 of m gives the textbook variance of a mean, s^2 / m, where drawing m would give 4/5 of it here."""
    values = np.array([0.1, 0.5, 0.6, 0.7, 0.9])
    weights = draws(["a"] * 5, 40_000, generator(1, "test"))
    replicates = weights @ values / weights.sum(1)
    assert replicates.var() == pytest.approx(values.var(ddof=1) / 5, rel=0.03)


def test_interval_of_normal_replicates_is_the_t_interval():
    replicates = generator(2, "test").normal(10.0, 2.0, 400_000)
    low, high = interval(replicates, degrees=5)
    assert low == pytest.approx(10 - 2.5706 * 2, abs=0.03) and high == pytest.approx(10 + 2.5706 * 2, abs=0.03)  # t(5), 97.5 %


def test_interval_that_does_not_exist():
    assert interval(np.array([1.0, 2.0]), degrees=0) is None
    assert interval(np.array([np.nan, np.nan]), degrees=4) is None
    assert degrees_of_freedom(["a", "a", "b", "b", "b"]) == 3
    assert degrees_of_freedom(["a", "a", "b"]) == 0 and degrees_of_freedom(["a", "b"]) == 0, "one case shows no spread"


def test_an_interval_without_the_spread_of_one_client_would_miss_the_truth():
    """Why there is none: three patients at each of two clients and one at a third, whose spread is the largest."""
    means, spread, strata = np.array([0.9, 0.9, 0.7]), np.array([0.01, 0.01, 0.15]), np.array([0, 0, 0, 1, 1, 1, 2])
    covered = 0
    for number in range(200):
        rng = generator(number, "lonely")
        values = rng.normal(means[strata], spread[strata])
        weights = draws(strata, 200, generator(number, "bootstrap"))
        by_client = [(weights[:, strata == c] @ values[strata == c]) / weights[:, strata == c].sum(1) for c in range(3)]
        low, high = interval(np.mean(by_client, axis=0), degrees=len(strata) - 3)
        covered += low <= means.mean() <= high
    assert covered / 200 < 0.8 and interval(np.mean(by_client, axis=0), degrees_of_freedom(strata)) is None


@pytest.mark.slow
@pytest.mark.parametrize(("per_client", "clients", "tolerance"), [(10, 5, 0.02), (5, 2, 0.04)])
def test_coverage_over_patients_within_clients(per_client, clients, tolerance):
    """95 % intervals of `final`, of a mean over clients of skewed (beta) Dice scores; at n = 10 they are known to be a little narrow (about
    92 %)."""
    means = np.linspace(0.8, 0.9, clients)
    patients, nobody = tuple(map(str, range(per_client))), np.zeros(per_client)
    simulations, covered = 600, 0
    for number in range(simulations):
        rng = generator(number, "simulated cohort")
        own = {
            str(c): Sample(patients, rng.beta(20 * m, 20 * (1 - m), per_client), nobody, nobody, weighted_mean) for c, m in enumerate(means)
        }
        low, high = entry(own, own, seed=number, replicates=400)["ci95"]
        covered += low <= means.mean() <= high
    assert abs(covered / simulations - 0.95) <= tolerance


@pytest.mark.slow
def test_coverage_of_a_balanced_accuracy_over_clients():
    """Right with a probability of 0.9 for the 8 diseased and 0.7 for the 12 normal patients of each of four clients: 0.8."""
    truth = np.repeat([1.0, 0.0], [8, 12])
    patients, half = tuple(map(str, range(20))), np.full(20, 0.5)
    simulations, covered = 400, 0
    for number in range(simulations):
        rng = generator(number, "simulated decisions")
        right = [rng.random(20) < np.where(truth == 1, 0.9, 0.7) for _ in range(4)]
        own = {
            str(c): Sample(patients, np.where(r, truth, 1 - truth), truth, half, STATISTICS["balanced_accuracy"])
            for c, r in enumerate(right)
        }
        low, high = entry(own, own, seed=number, replicates=400)["ci95"]
        covered += low <= 0.8 <= high
    assert abs(covered / simulations - 0.95) <= 0.03
