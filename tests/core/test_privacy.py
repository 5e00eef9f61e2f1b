"""The noise has the stated size, epsilon is the published one, and without noise and clipping the mean is left."""

import math

import numpy as np
import pytest

from raylora.core import reduce
from raylora.core.errors import InputError
from raylora.core.privacy import dp_mean, epsilon

# (noise multiplier, rounds, cohort, population, delta, sampling, accountant) -> epsilon, as printed in the test suites of the accountant's
# authors: TensorFlow Privacy, compute_dp_sgd_privacy_test.py (commit 2cd46db), and dp-accounting, rdp_privacy_accountant_test.py
# (commit 0b109e9: the multiplier was chosen to give exactly 1).
PUBLISHED = [
    (1.3, 6000, 150, 60_000, 1e-5, "poisson", "rdp", 0.7242234026109595, 1e-7),
    (1.0, 30_000, 100, 100_000, 1e-7, "poisson", "rdp", 1.4154988495444842, 1e-7),
    (0.7, 120, 1, 100, 1e-5, "poisson", "rdp", 3.2392676, 1e-6),
    (0.7, 120, 1, 100, 1e-5, "poisson", "pld", 2.4612381, 1e-6),
    (0.7, 2, 1, 1, 1e-5, "all", "rdp", 10.8602036, 1e-6),
    (0.7, 2, 1, 1, 1e-5, "all", "pld", 10.1224946, 1e-6),
    (4.530877117, 1, 1, 1, 1e-6, "all", "rdp", 1.0, 1e-5),
]


@pytest.mark.parametrize(("sigma", "rounds", "cohort", "population", "delta", "sampling", "accountant", "expected", "within"), PUBLISHED)
def test_epsilon_as_published(
    sigma: float, rounds: int, cohort: int, population: int, delta: float, sampling: str, accountant: str, expected: float, within: float
) -> None:
    found = epsilon(sigma=sigma, rounds=rounds, cohort=cohort, population=population, delta=delta, sampling=sampling, accountant=accountant)
    assert found == pytest.approx(expected, rel=within)


def test_one_gaussian_release_satisfies_the_exact_condition() -> None:
    """Balle and Wang 2018 (arXiv 1805.06530), theorem 8: delta of one Gaussian release, in closed form; PLD is nearly tight, RDP above."""
    sigma, delta = 2.0, 1e-3

    def exact_delta(eps: float) -> float:
        low, high = (eps * sigma - 0.5 / sigma) / math.sqrt(2), (eps * sigma + 0.5 / sigma) / math.sqrt(2)
        return 0.5 * math.erfc(low) - 0.5 * math.exp(eps) * math.erfc(high)

    tight = epsilon(sigma=sigma, rounds=1, cohort=1, population=1, delta=delta, accountant="pld")
    assert exact_delta(tight) == pytest.approx(delta, rel=1e-2)
    assert exact_delta(epsilon(sigma=sigma, rounds=1, cohort=1, population=1, delta=delta)) < delta


def test_more_rounds_cost_more_and_sampling_helps_only_when_it_happens() -> None:
    def at(rounds: int, cohort: int, sampling: str) -> float:
        return epsilon(sigma=1.5, rounds=rounds, cohort=cohort, population=10, delta=1e-2, sampling=sampling)

    assert 0 == at(0, 5, "all") < at(1, 5, "all") < at(5, 5, "all")
    assert at(5, 1, "poisson") < at(5, 5, "poisson") < at(5, 10, "poisson") == pytest.approx(at(5, 10, "all"))
    assert at(5, 1, "uniform") < at(5, 10, "uniform")
    # replacing one client of all moves the sum by twice the clip
    half = epsilon(sigma=0.75, rounds=5, cohort=10, population=10, delta=1e-2)
    assert at(5, 10, "uniform") == pytest.approx(half)
    assert epsilon(sigma=0.0, rounds=1, cohort=1, population=1, delta=0.1) == math.inf


@pytest.mark.parametrize(
    "wrong", [{"sampling": "size"}, {"accountant": "moments"}, {"sampling": "uniform", "accountant": "pld"}, {"delta": 0.0}, {"cohort": 3}]
)
def test_what_cannot_be_accounted_is_refused(wrong: dict[str, object]) -> None:
    arguments = {"sigma": 1.0, "rounds": 1, "cohort": 1, "population": 2, "delta": 0.1, **wrong}
    with pytest.raises(InputError, match="privacy: expected"):
        epsilon(**arguments)  # type: ignore[arg-type]


def test_noise_has_the_stated_standard_deviation() -> None:
    """n draws of N(0, (z S / K)^2): the sample variance over the stated one is chi^2_n / n, nearly N(1, 2 / n); the mean is
    N(0, 1 / n). Bounds at 4.9 standard errors: a false alarm in 10^6 draws of the seed for each."""
    n, clip, sigma, clients = 200_000, 0.5, 1.7, 4
    still = [{"w": np.zeros(n), "v": np.zeros(2)}] * clients
    noise = dp_mean(clip, sigma, seed=3)(still, [1] * clients)["w"] / (sigma * clip / clients)
    assert abs(np.mean(noise**2) - 1) < 4.9 * math.sqrt(2 / n)
    assert abs(np.mean(noise)) < 4.9 / math.sqrt(n)
    assert abs(np.mean(noise[1:] * noise[:-1])) < 4.9 / math.sqrt(n)


def test_noise_follows_seed_and_round() -> None:
    still = [{"w": np.zeros(5)}]

    def drawn(seed: int, round: int) -> list[float]:
        return dp_mean(1.0, 1.0, seed=seed).at(round)(still, [1])["w"].tolist()

    assert drawn(0, 0) == drawn(0, 0) and drawn(0, 1) != drawn(0, 0) != drawn(1, 0)


def test_clipping_by_hand() -> None:
    """Norms 5 (over both names) and 1 with clip 1: a fifth of the first, the second whole, halved."""
    several = [{"a": np.array([3.0]), "b": np.array([4.0])}, {"a": np.array([0.0]), "b": np.array([1.0])}]
    found = dp_mean(1.0, 0.0)(several, [10, 1])
    assert found["a"][0] == pytest.approx(0.3) and found["b"][0] == pytest.approx(0.9)
    assert dp_mean(1.0, 0.0, cohort=4)(several, [1, 1])["b"][0] == pytest.approx(0.45)


def test_without_noise_and_with_a_huge_clip_it_is_the_mean() -> None:
    draw = np.random.default_rng(0)
    several = [{"w": draw.normal(size=(2, 3))} for _ in range(3)]
    np.testing.assert_allclose(dp_mean(1e9, 0.0)(several, [1, 1, 1])["w"], reduce.mean(several, [1, 1, 1])["w"], rtol=1e-12)


@pytest.mark.parametrize(("clip", "sigma"), [(0.0, 1.0), (1.0, -1.0), (math.nan, 1.0)])
def test_impossible_noise_is_refused(clip: float, sigma: float) -> None:
    with pytest.raises(InputError, match="expected clip > 0 and sigma >= 0"):
        dp_mean(clip, sigma)
