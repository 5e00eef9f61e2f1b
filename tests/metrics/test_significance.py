from itertools import pairwise

import numpy as np
import pytest
from scipy import stats

from raylora.core.seeds import generator
from raylora.metrics.classification import weighted_auc, weighted_balanced_accuracy
from raylora.metrics.matrix import Sample, weighted_mean
from raylora.metrics.panel import Panel, bootstrap, panel, panel_interval, seed_draws
from raylora.metrics.significance import (
    delong,
    holm,
    mcnemar,
    paired_bootstrap,
    rank_biserial,
    resolvable_difference,
    wilcoxon,
)


def _panel(values, *, clients=None, truth=None, threshold=0.5, statistic=weighted_mean, seeds=None) -> Panel:
    values = np.atleast_2d(np.asarray(values, dtype=float))
    n = values.shape[1]
    return Panel(
        seeds=tuple(seeds or range(len(values))),
        patients=tuple(f"p{i:03d}" for i in range(n)),
        clients=tuple(clients or ["A"] * n),
        truth=np.zeros(n) if truth is None else np.asarray(truth, float),
        values=values,
        threshold=np.full(values.shape, threshold),
        statistic=statistic,
    )


# DeLong, DeLong and Clarke-Pearson (1988), the ovarian cancer data: albumin, total protein, K-G score, 1 if the operation helped
OVARIAN = """
3.0 5.8 10 0  3.2 6.3 5 1  3.9 6.8 3 1  2.8 4.8 6 0  3.2 5.8 3 1  0.9 4.0 5 0  2.5 5.7 8 0  1.6 5.6 5 1  3.8 5.7 5 1  3.7 6.7 6 1
3.2 5.4  4 1  3.8 6.6 6 1  4.1 6.6 5 1  3.6 5.7 5 1  4.3 7.0 4 1  3.6 6.7 4 0  2.3 4.4 6 1  4.2 7.6 4 0  4.0 6.6 6 0  3.5 5.8 6 1
3.8 6.8  7 1  3.0 4.7 8 0  4.5 7.4 5 1  3.7 7.4 5 1  3.1 6.6 6 1  4.1 8.2 6 1  4.3 7.0 5 1  4.3 6.5 4 1  3.2 5.1 5 1  2.6 4.7 6 1
3.3 6.8  6 0  1.7 4.0 7 0  3.7 6.1 5 1  3.3 6.3 7 1  4.2 7.7 6 1  3.5 6.2 5 1  2.9 5.7 9 0  2.1 4.8 7 1  2.8 6.2 8 0  4.0 7.0 7 1
3.3 5.7  6 1  3.7 6.9 5 1  3.6 6.6 5 1
"""


def test_delong_of_the_worked_example():
    """The figures are those of the SAS/STAT documentation (PROC LOGISTIC, "Comparing Receiver Operating Characteristic Curves")."""
    albumin, protein, score, truth = np.array(OVARIAN.split(), float).reshape(-1, 4).T
    tests = {"albumin": albumin, "protein": protein, "K-G": 10 - score}
    panels = {name: _panel(v, truth=truth, statistic=weighted_auc) for name, v in tests.items()}
    assert {name: round(p.point, 4) for name, p in panels.items()} == {"albumin": 0.7366, "protein": 0.6478, "K-G": 0.7258}
    for name, difference, error, p in [("albumin", 0.0108, 0.0953, 0.9102), ("protein", -0.0780, 0.1046, 0.4561)]:
        found = delong(panels[name], panels["K-G"])
        assert found.difference == pytest.approx(difference, abs=5e-5)
        assert found.p_value == pytest.approx(p, abs=5e-5)
        assert (found.ci95[1] - found.difference) / 1.959964 == pytest.approx(error, abs=5e-5)


def test_delong_adds_variances_of_clients_and_averages_seeds():
    rng = generator(0, "delong")
    truth = np.tile([0, 1], 20)
    a, b = rng.random(40) + 0.3 * truth, rng.random(40)
    once = delong(_panel(a, truth=truth, statistic=weighted_auc), _panel(b, truth=truth, statistic=weighted_auc))
    twice = [_panel(np.tile(v, 2), truth=np.tile(truth, 2), clients=["A"] * 40 + ["B"] * 40, statistic=weighted_auc) for v in (a, b)]
    both = delong(*twice)
    assert both.difference == pytest.approx(once.difference)
    assert both.ci95[1] - both.difference == pytest.approx((once.ci95[1] - once.difference) / np.sqrt(2))
    repeated = delong(_panel([a, a, a], truth=truth, statistic=weighted_auc), _panel([b, b], truth=truth, statistic=weighted_auc))
    assert repeated.p_value == pytest.approx(once.p_value)


def test_delong_without_a_variance():
    assert delong(_panel([0.1, 0.2, 0.9], truth=[0, 0, 1]), _panel([0.1, 0.3, 0.8], truth=[0, 0, 1])) is None
    assert delong(_panel([0.1, 0.2], truth=[0, 0]), _panel([0.1, 0.3], truth=[0, 0])) is None
    same = _panel([0.1, 0.2, 0.8, 0.9], truth=[0, 0, 1, 1])
    assert delong(same, same).p_value == 1.0


def test_wilcoxon_is_scipys_and_survives_no_difference():
    d = np.array([0.01, -0.02, 0.03, 0.05, 0.04, 0.07])
    # ranks of |d| 1..6, the negative one has rank 2: of 64 sign patterns those with a smaller rank sum of at most 2 are {}, {1}, {2}
    assert wilcoxon(d) == pytest.approx(2 * 3 / 64)
    assert wilcoxon(d) == pytest.approx(stats.wilcoxon(d).pvalue)
    assert wilcoxon(np.zeros(5)) == 1.0


def test_rank_biserial_by_hand():
    assert rank_biserial(np.array([1.0, 2.0, -3.0, 0.0])) == pytest.approx((1 + 2 - 3) / 6)
    assert rank_biserial(np.array([1.0, 2.0])) == 1.0
    assert rank_biserial(np.zeros(3)) == 0.0


def test_mcnemar_by_hand():
    a = np.array([1, 1, 1, 1, 1, 0, 1, 0])
    b = np.array([0, 0, 0, 0, 0, 1, 1, 0])  # 5 against 1
    assert mcnemar(a, b) == pytest.approx(2 * (1 + 6) / 2**6)
    assert mcnemar(a, a) == 1.0


@pytest.mark.slow
def test_mcnemar_and_holm_agree_with_statsmodels():
    from statsmodels.stats.contingency_tables import mcnemar as reference
    from statsmodels.stats.multitest import multipletests

    rng = generator(3, "statsmodels")
    a, b = rng.random(40) < 0.8, rng.random(40) < 0.6
    table = [[int((a & b).sum()), int((a & ~b).sum())], [int((b & ~a).sum()), int((~a & ~b).sum())]]
    assert mcnemar(a, b) == pytest.approx(reference(table, exact=True).pvalue)
    p = rng.random(7) ** 3
    assert holm(p.tolist()) == pytest.approx(multipletests(p, method="holm")[1].tolist())


def test_holm_by_hand():
    assert holm([0.01, 0.04, None, 0.03]) == [pytest.approx(0.03), pytest.approx(0.06), None, pytest.approx(0.06)]
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_paired_bootstrap_sees_what_unpaired_intervals_hide():
    rng = generator(4, "pairs")
    patient = rng.normal(0.8, 0.1, 40)  # patients differ by far more than models
    a, b = _panel(patient + 0.01 + rng.normal(0, 0.005, 40)), _panel(patient)
    found = paired_bootstrap(a, b)
    assert found.difference == pytest.approx(a.point - b.point)
    assert found.ci95[0] > 0 and found.p_value < 0.01
    low, high = panel_interval(a)
    assert low < b.point < high


def test_paired_bootstrap_agrees_with_its_interval_and_with_no_difference():
    rng = generator(5, "pairs")
    base = rng.normal(0.8, 0.1, 30)
    for shift in np.linspace(-0.05, 0.05, 21):
        found = paired_bootstrap(_panel(base + rng.normal(shift, 0.07, 30)), _panel(base))
        excludes_zero = found.ci95[0] > 0 or found.ci95[1] < 0
        assert excludes_zero == (found.p_value < 0.05)
    same = paired_bootstrap(_panel(base), _panel(base))
    assert same.difference == 0 and same.p_value == 1.0


def test_paired_bootstrap_of_decisions():
    truth = np.tile([0, 1], 12)
    right, wrong = np.where(truth == 1, 0.9, 0.1), np.where(truth == 1, 0.4, 0.1)
    clients = ["A"] * 12 + ["B"] * 12
    a, b = (_panel(v, truth=truth, clients=clients, statistic=weighted_balanced_accuracy) for v in (right, wrong))
    assert (a.point, b.point) == (1.0, 0.5)
    assert paired_bootstrap(a, b).ci95 == (0.5, 0.5)
    one_class = _panel(right, truth=np.ones(24), clients=clients, statistic=weighted_balanced_accuracy)
    assert one_class.point is None and paired_bootstrap(one_class, one_class) is None and panel_interval(one_class) is None


def test_a_clear_difference_survives_a_correction_over_many_pairs():
    """Counted among 2,000 replicates its p could not be below 0.0016, times 66 pairs 0.1."""
    rng = generator(9, "clear")
    base = rng.normal(0.8, 0.02, 40)
    found = paired_bootstrap(_panel(base + rng.normal(0.05, 0.01, 40)), _panel(base))
    assert found.p_value * 500 < 0.05
    one = paired_bootstrap(_panel(base + 0.1), _panel(base)), paired_bootstrap(_panel(base[:5] + 0.1), _panel(base[:5]))
    assert [each.p_value for each in one] == [pytest.approx(2.0**-39, rel=0.5), 2.0**-4], "five patients can say no more than five coins"


def test_the_normal_tail_goes_on_where_counting_ends():
    """The p of ever larger shifts falls without a step where the last replicate leaves zero."""
    base = generator(10, "tail").normal(0.0, 1.0, 60)
    p = [paired_bootstrap(_panel(base + shift), _panel(np.zeros(60))).p_value for shift in np.linspace(0.3, 0.8, 26)]
    assert all(a >= b for a, b in pairwise(p)) and p[-1] < 1e-4
    assert max(a / b for a, b in pairwise(p) if a > 2e-3) < 5


def test_seeds_widen_an_interval():
    rng = generator(6, "seeds")
    patient = rng.normal(0.8, 0.02, 60)
    still = _panel([patient, patient, patient])
    moving = _panel([patient - 0.05, patient, patient + 0.05])
    assert bootstrap(moving).std() > 3 * bootstrap(still).std()


def test_panel_averages_what_every_seed_scored():
    def sample(values):
        zeros = np.zeros(len(values))
        return Sample(tuple(values), np.array(list(values.values())), zeros, zeros, weighted_mean)

    rows = [(0, {"A": sample({"x": 0.2, "y": 0.4}), "B": sample({"z": 0.9})}), (7, {"A": sample({"x": 0.4}), "B": sample({"z": 0.7})})]
    one = panel(rows)
    assert one.patients == ("x", "z") and one.clients == ("A", "B")
    assert one.seed_scores == {0: pytest.approx(0.55), 7: pytest.approx(0.55)}
    assert one.restrict(["z"]).point == pytest.approx(0.8)
    assert one.client_scores == {"A": pytest.approx(0.3), "B": pytest.approx(0.8)}
    weighted = panel([*rows, rows[0]])  # two rows of seed 0: the seed still counts once
    assert weighted.seed_scores == one.seed_scores and weighted.point == one.point
    assert (seed_draws(weighted.seeds, 50, 0)[:, 0] == seed_draws(weighted.seeds, 50, 0)[:, 2]).all()


def test_resolvable_difference_by_hand():
    # sd of (0.80, 0.82) is 0.01414, t(1) at 97.5 % is 12.706, two single runs: sqrt(2)
    assert resolvable_difference([0.80, 0.82], 1, 1) == pytest.approx(12.706 * 0.02, rel=1e-4)
    assert resolvable_difference([0.8], 1, 1) is None


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_a_baseline_differs_from_itself_at_the_stated_rate(seeds):
    rng = generator(seeds, "A/A")
    trials, rejected = 4000, 0
    for _ in range(trials):
        baseline, other = rng.normal(0.8, 0.01, seeds), rng.normal(0.8, 0.01, seeds)
        rejected += abs(baseline.mean() - other.mean()) > resolvable_difference(baseline, seeds, seeds)
    assert rejected / trials == pytest.approx(0.05, abs=0.011)  # three standard errors of a rate of 5 % in 4000


def test_a_panel_of_the_baseline_is_told_from_itself_at_the_stated_rate():
    """Whole panels: the same patients, other seeds that move all of them together and each one a little."""
    trials, seeds, rejected, rng = 800, 3, 0, generator(8, "A/A panels")
    patient = rng.normal(0.8, 0.1, 40)
    clients = ["A"] * 10 + ["B"] * 30

    def draw() -> Panel:
        return _panel([patient + rng.normal(0, 0.01) + rng.normal(0, 0.03, 40) for _ in range(seeds)], clients=clients)

    for _ in range(trials):
        one, other = draw(), draw()
        rejected += abs(one.point - other.point) > resolvable_difference(list(one.seed_scores.values()), seeds, seeds)
    assert rejected / trials == pytest.approx(0.05, abs=0.024)  # three standard errors


@pytest.mark.slow
def test_coverage_with_seeds_that_differ():
    """Nominal 95 %: patients within clients, then three seeds, whose effects spread about as much as the mean over patients does."""
    means, strata, covered, simulations = np.linspace(0.8, 0.9, 5), np.repeat(np.arange(5), 10), 0, 250
    for number in range(simulations):
        rng = generator(number, "simulated cohort with seeds")
        patient = rng.beta(20 * means[strata], 20 * (1 - means[strata]))
        values = [patient + rng.normal(0, 0.01) + rng.normal(0, 0.01, 50) for _ in range(3)]
        low, high = panel_interval(_panel(values, clients=[f"c{i}" for i in strata]), number, 400)
        covered += low <= means.mean() <= high
    assert 0.89 <= covered / simulations <= 0.97
