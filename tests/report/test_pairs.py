from dataclasses import replace

import numpy as np
import pytest

from raylora.metrics.classification import weighted_balanced_accuracy
from raylora.metrics.matrix import weighted_mean
from raylora.metrics.panel import Panel
from raylora.report.pairs import Pair, SelfTest, pair_of, worded


@pytest.mark.parametrize(
    ("difference", "ci95", "p_holm", "resolvable", "verdict", "begins"),
    [
        (0.02, (0.01, 0.03), 0.01, 0.015, "A better", "one is better than two by 0.020 in Dice (95 % interval +0.010 to +0.030; p = 0.010"),
        (0.02, (0.01, 0.03), 0.01, None, "A better", "In these runs one is better than two"),
        (0.02, (0.01, 0.03), 0.01, 0.021, "not resolvable", "Not resolvable here: one and two differ by 0.020 in Dice, and base differs"),
        (0.02, (0.01, 0.03), 0.06, None, "no difference shown", "No difference shown between one and two in Dice: one is ahead by 0.020"),
        (0.02, (-0.01, 0.05), 0.01, None, "no difference shown", "No difference shown"),
        (
            0.02,
            None,
            0.01,
            None,
            "no difference shown",
            "No difference shown between one and two in Dice, for want of an interval: one is ahead",
        ),
        (0.02, None, 0.06, None, "no difference shown", "No difference shown between one and two in Dice: one is ahead"),
    ],
)
def test_better_needs_a_corrected_p_an_interval_and_more_than_the_a_a_limit(difference, ci95, p_holm, resolvable, verdict, begins):
    pair = Pair(
        a="one", b="two", n=24, test="Wilcoxon", difference=difference, ci95=ci95, p_value=p_holm, p_holm=p_holm, resolvable=resolvable
    )
    said = worded(pair, "dice", family=3, baseline="base")
    assert said.verdict == verdict and said.sentence.startswith(begins)
    assert said.sentence.endswith("24 patients).") and "after Holm over 3 pairs" in said.sentence


@pytest.mark.parametrize(("differing", "least"), [(2, 0.5), (5, 2**-4)])
def test_few_patients_on_whom_two_models_differ_say_little(differing, least):
    """Where all of them are one way, replicates may not vary at all: no p is below that of as many coins."""
    truth = np.tile([0.0, 0.0, 1.0, 1.0], 8)
    right, wrong = np.where(truth == 1, 0.9, 0.1), np.where(truth == 1, 0.9, 0.1)
    wrong[np.flatnonzero(truth == 1)[:differing]] = 0.2

    def panel(values):
        clients = tuple(f"c{i // 4}" for i in range(32))
        patients = tuple(f"p{i:02d}" for i in range(32))
        return Panel((0,), patients, clients, truth, values[None], np.full((1, 32), 0.5), weighted_balanced_accuracy)

    found = pair_of("right", "wrong", panel(right), panel(wrong), "balanced_accuracy", 0, 2000)
    assert found.difference > 0 and found.p_value == pytest.approx(least)


def panel_of(values, clients, statistic, truth=None):
    n, values = len(clients), np.asarray(values, float)
    truth = np.zeros(n) if truth is None else np.asarray(truth, float)
    return Panel((0,), tuple(f"p{i:02d}" for i in range(n)), tuple(clients), truth, values[None], np.full((1, n), 0.5), statistic)


def test_a_mean_over_clients_and_a_test_over_patients_that_point_apart_show_nothing():
    """A is behind by a little in 60 patients of one hospital, and ahead by much in 3 of each of three others."""
    clients, rng = ["big"] * 60 + ["x"] * 3 + ["y"] * 3 + ["z"] * 3, np.random.default_rng(0)
    behind = rng.uniform(0.8, 0.9, 69)
    ahead = behind + np.where(np.arange(69) < 60, -0.01, 0.1) * rng.uniform(0.9, 1.1, 69)
    pair = pair_of("one", "two", panel_of(ahead, clients, weighted_mean), panel_of(behind, clients, weighted_mean), "dice", 0, 2000)
    assert pair.difference > 0.07 and pair.ci95[0] > 0 and pair.p_value < 0.001 and pair.effect < 0
    said = worded(replace(pair, p_holm=pair.p_value), "dice", family=1, baseline="base")
    assert said.verdict == "no difference shown" and "over all patients alike two is" in said.sentence
    better = panel_of(behind + 0.01 * rng.uniform(0.9, 1.1, 69), clients, weighted_mean)
    same_way = pair_of("one", "two", better, panel_of(behind, clients, weighted_mean), "dice", 0, 2000)
    assert worded(replace(same_way, p_holm=same_way.p_value), "dice", family=1, baseline="base").verdict == "A better"


def test_a_pair_counts_the_patients_of_clients_that_have_a_score():
    """A client whose patients are of one class has no balanced accuracy: what is decided there says nothing of the scores."""
    clients, truth = ["a"] * 8 + ["b"] * 30, [0, 0, 0, 0, 1, 1, 1, 1] + [1] * 30
    right = np.where(np.array(truth) == 1, 0.9, 0.1)
    wrong = np.where(np.arange(38) >= 8, 0.1, right)
    wrong[[4, 5, 0, 1]] = 0.1, 0.1, 0.9, 0.9
    panels = [panel_of(values, clients, weighted_balanced_accuracy, truth) for values in (right, wrong)]
    pair = pair_of("one", "two", *panels, "balanced_accuracy", 0, 2000)
    alone = pair_of("one", "two", *(p.restrict(p.patients[:8]) for p in panels), "balanced_accuracy", 0, 2000)
    assert pair == alone and pair.n == panels[0].counted == 8 and pair.p_value >= 2**-3


def test_a_pair_says_that_clients_are_missing_from_it():
    said = worded(replace(Pair(a="one", b="two", n=3, test="Wilcoxon", difference=0.05, p_value=0.25), clients=(1, 4)), "dice", 1, "base")
    assert said.sentence.endswith("3 patients of 1 of 4 clients).")


def test_a_pair_without_a_score_is_not_tested():
    said = worded(Pair(a="one", b="two", n=24, test="paired bootstrap"), "balanced_accuracy", family=0, baseline="base")
    assert said.sentence == "one and two were not tested: a score is missing." and said.verdict == "not tested"


def test_the_a_a_sentence():
    assert "needs two seeds of the baseline (fedit), there is none" in SelfTest("fedit", {}).sentence
    both = SelfTest("fedit", {0: 0.8, 1: 0.82}, 0.02, 0.254).sentence
    assert "differs from itself by up to 0.020 between 2 seeds" in both and "less than 0.254 are not resolvable" in both
