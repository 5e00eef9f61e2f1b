"""Two-class decisions from probabilities: rates, balanced accuracy, ROC-AUC, and the threshold chosen on validation cases.

Arrays are one value a patient: truth 0 (normal) or 1 (diseased), probability of disease. A patient is called diseased if its probability
reaches the threshold. A rate whose class is missing is None ("n/a"), never 0.

Each formula takes optional case weights (..., n), so that a bootstrap is the same formula with the draws' counts as weights.
"""

from collections.abc import Callable

import numpy as np

Statistic = Callable[[np.ndarray, np.ndarray, float, np.ndarray], np.ndarray]
"""(truth (n,), probability (n,), threshold, weights (..., n)) -> values (...); NaN where a class has no weight."""


def _rate(hit: np.ndarray, member: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Share of the members' weight that is hit; NaN without members."""
    total = weights @ member.astype(np.float64)
    return np.divide(weights @ (hit & member).astype(np.float64), total, out=np.full_like(total, np.nan), where=total > 0)


def weighted_sensitivity(truth: np.ndarray, probability: np.ndarray, threshold: float, weights: np.ndarray) -> np.ndarray:
    return _rate(probability >= threshold, truth == 1, weights)


def weighted_specificity(truth: np.ndarray, probability: np.ndarray, threshold: float, weights: np.ndarray) -> np.ndarray:
    return _rate(probability < threshold, truth == 0, weights)


def asked(statistic: Statistic, truth: np.ndarray) -> np.ndarray:
    """Whether each patient is behind a statistic: the diseased alone behind the sensitivity, the normals behind the specificity."""
    one_class = {weighted_sensitivity: 1, weighted_specificity: 0}.get(statistic)  # type: ignore[call-overload]
    return np.ones(len(truth), bool) if one_class is None else np.asarray(truth == one_class)


def weighted_balanced_accuracy(truth: np.ndarray, probability: np.ndarray, threshold: float, weights: np.ndarray) -> np.ndarray:
    """The mean of sensitivity and specificity."""
    return (weighted_sensitivity(truth, probability, threshold, weights) + weighted_specificity(truth, probability, threshold, weights)) / 2


def weighted_auc(truth: np.ndarray, probability: np.ndarray, threshold: float, weights: np.ndarray) -> np.ndarray:
    """The chance that a diseased patient has the higher probability of a random pair, ties half (Mann-Whitney); no threshold is used."""
    above = concordance(probability[truth == 1], probability[truth == 0])  # (diseased, normal)
    diseased, normal = weights[..., truth == 1], weights[..., truth == 0]
    total = diseased.sum(-1) * normal.sum(-1)
    won = ((diseased @ above) * normal).sum(-1)
    return np.divide(won, total, out=np.full_like(total, np.nan), where=total > 0)


def concordance(diseased: np.ndarray, normal: np.ndarray) -> np.ndarray:
    """(m, n): 1 where the diseased patient's probability is the higher one, 1/2 where they are equal, else 0."""
    return (diseased[:, None] > normal).astype(np.float64) + 0.5 * (diseased[:, None] == normal)


STATISTICS: dict[str, Statistic] = {
    "balanced_accuracy": weighted_balanced_accuracy,
    "specificity": weighted_specificity,
    "sensitivity": weighted_sensitivity,
    "auc": weighted_auc,
}


def _plain(statistic: Statistic, truth: np.ndarray, probability: np.ndarray, threshold: float) -> float | None:
    truth, probability = np.asarray(truth), np.asarray(probability, dtype=np.float64)
    value = float(statistic(truth, probability, threshold, np.ones(truth.shape)))
    return value if np.isfinite(value) else None


def sensitivity(truth: np.ndarray, probability: np.ndarray, threshold: float = 0.5) -> float | None:
    """Share of the diseased that are called diseased; None without diseased patients."""
    return _plain(weighted_sensitivity, truth, probability, threshold)


def specificity(truth: np.ndarray, probability: np.ndarray, threshold: float = 0.5) -> float | None:
    """Share of the normal that are called normal; None without normal patients."""
    return _plain(weighted_specificity, truth, probability, threshold)


def balanced_accuracy(truth: np.ndarray, probability: np.ndarray, threshold: float = 0.5) -> float | None:
    """The mean of sensitivity and specificity; None if either class is missing."""
    return _plain(weighted_balanced_accuracy, truth, probability, threshold)


def auc(truth: np.ndarray, probability: np.ndarray) -> float | None:
    """Area under the ROC curve; None if either class is missing."""
    return _plain(weighted_auc, truth, probability, 0.5)


def choose_threshold(truth: np.ndarray, probability: np.ndarray) -> float | None:
    """The threshold with the best balanced accuracy on (validation) patients, of those that tell some of them apart.

    Candidates are 0.5 and the midpoints between neighbouring probabilities; of equally good ones the nearest to 0.5 is taken, then the
    smaller. None if a class is missing: nothing can be learned about a trade-off then.
    """
    truth, probability = np.asarray(truth), np.asarray(probability, dtype=np.float64)
    if len(np.unique(truth)) < 2:
        return None
    levels = np.unique(probability)  # ascending
    middle = (levels[:-1] + levels[1:]) / 2
    middle = np.where(middle > levels[:-1], middle, levels[1:])  # neighbouring floats have no midpoint
    candidates = [0.5, *middle.tolist()]
    weights = np.ones(truth.shape)
    score = {c: float(weighted_balanced_accuracy(truth, probability, c, weights)) for c in candidates}
    return min(score, key=lambda c: (-score[c], abs(c - 0.5), c))
