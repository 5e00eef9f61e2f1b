import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as reference

from raylora.metrics.classification import auc, balanced_accuracy, choose_threshold, sensitivity, specificity

TRUTH = np.array([0, 0, 0, 1, 1, 1, 1])
PROBABILITY = np.array([0.1, 0.6, 0.2, 0.9, 0.5, 0.4, 0.8])


def test_rates_by_hand():
    assert sensitivity(TRUTH, PROBABILITY) == pytest.approx(3 / 4)  # 0.5 reaches the threshold
    assert specificity(TRUTH, PROBABILITY) == pytest.approx(2 / 3)
    assert balanced_accuracy(TRUTH, PROBABILITY) == pytest.approx((3 / 4 + 2 / 3) / 2)
    assert auc(TRUTH, PROBABILITY) == pytest.approx(10 / 12)  # 0.6 is above 0.5 and 0.4


def test_a_missing_class_is_none_and_never_zero():
    normal, diseased = np.zeros(3), np.ones(3)
    p = np.array([0.2, 0.6, 0.7])
    assert sensitivity(normal, p) is None and specificity(normal, p) == pytest.approx(1 / 3)
    assert specificity(diseased, p) is None and sensitivity(diseased, p) == pytest.approx(2 / 3)
    assert balanced_accuracy(normal, p) is None and auc(diseased, p) is None


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 10)), min_size=2, max_size=30))
def test_agrees_with_sklearn(cases):
    truth, probability = np.array([int(t) for t, _ in cases]), np.array([p / 10 for _, p in cases])
    if len(set(truth)) < 2:
        return
    assert auc(truth, probability) == pytest.approx(reference.roc_auc_score(truth, probability))
    decided = (probability >= 0.3).astype(int)
    assert balanced_accuracy(truth, probability, 0.3) == pytest.approx(reference.balanced_accuracy_score(truth, decided))


def test_threshold_is_the_midpoint_with_the_best_balanced_accuracy():
    assert choose_threshold(np.array([0, 0, 1, 1]), np.array([0.1, 0.2, 0.3, 0.4])) == pytest.approx(0.25)


def test_threshold_of_equal_candidates_is_the_nearest_to_one_half_then_the_smaller():
    assert choose_threshold(np.array([0, 1]), np.array([0.2, 0.9])) == 0.5  # any threshold between them is perfect
    # 0.2 and 0.625 both reach 3/4
    assert choose_threshold(np.array([0, 1, 0, 1]), np.array([0.1, 0.3, 0.6, 0.65])) == pytest.approx(0.625)
    # 0.25 and 0.75 both reach 3/4, 0.5 only 1/2
    assert choose_threshold(np.array([0, 1, 0, 1]), np.array([0.2, 0.3, 0.7, 0.8])) == pytest.approx(0.25)


@pytest.mark.parametrize("label", [0, 1])
def test_without_a_class_there_is_no_threshold(label):
    assert choose_threshold(np.full(4, label), np.array([0.1, 0.2, 0.3, 0.4])) is None


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.booleans(), st.floats(0, 1)), min_size=2, max_size=20), st.randoms(use_true_random=False))
def test_threshold_does_not_depend_on_order_and_is_never_worse_than_one_half(cases, shuffle):
    mixed = list(cases)
    shuffle.shuffle(mixed)
    truth, probability = np.array([t for t, _ in cases], float), np.array([p for _, p in cases])
    threshold = choose_threshold(truth, probability)
    assert threshold == choose_threshold(np.array([t for t, _ in mixed], float), np.array([p for _, p in mixed]))
    if len(set(truth)) == 2:
        assert balanced_accuracy(truth, probability, threshold) >= balanced_accuracy(truth, probability, 0.5)
