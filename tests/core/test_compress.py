"""Compression: unbiased or remembered, nothing lost at full precision, sizes by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raylora.core import compress
from raylora.core.errors import InputError
from raylora.core.payload import bytes_of
from raylora.core.types import ClientUpdate


def draw(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def update(tree: dict[str, np.ndarray]) -> ClientUpdate:
    return ClientUpdate(client_id="a", num_examples=1, adapter=tree)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.integers(1, 16))
def test_quantisation_errs_by_less_than_a_step(seed: int, bits: int) -> None:
    tree = {"w": draw(seed).normal(size=(3, 5)), "v": np.full(4, 0.25)}
    decoded, _ = compress.quantise(bits)(tree, draw(seed))
    step = np.ptp(tree["w"]) / (2**bits - 1)
    assert np.abs(decoded["w"] - tree["w"]).max() <= step * (1 + 1e-9)
    np.testing.assert_array_equal(decoded["v"], tree["v"])  # one value: no step at all
    assert len(np.unique(np.round((decoded["w"] - tree["w"].min()) / step))) <= 2**bits


def test_quantisation_is_unbiased() -> None:
    """The mean of n decodings has standard error below step / (2 sqrt(n)); bounds at 5 of them over 12 values."""
    tree, n = {"w": draw().normal(size=12)}, 4000
    mean = np.mean([compress.quantise(2)(tree, draw(seed))[0]["w"] for seed in range(n)], axis=0)
    assert np.abs(mean - tree["w"]).max() < 5 * np.ptp(tree["w"]) / 3 / (2 * np.sqrt(n))


def test_sizes_by_hand() -> None:
    tree = {"a": draw().normal(size=(3, 7)), "b": draw().normal(size=10)}  # 31 elements, 2 arrays
    assert compress.quantise(8)(tree, draw())[1] == 31 + 2 * 16
    assert compress.quantise(4)(tree, draw())[1] == 11 + 5 + 2 * 16  # 21 halves of a byte take 11
    assert compress.top_k(0.1)(tree, draw())[1] == 4 * 8
    assert compress.top_k(0.9)(tree, draw())[1] == 31 * 4  # all of them without indices are less


def test_top_k_keeps_the_largest_over_all_arrays() -> None:
    tree = {"a": np.array([1.0, -9.0]), "b": np.array([[0.5, 3.0]])}
    decoded, _ = compress.top_k(0.5)(tree, draw())
    assert decoded["a"].tolist() == [0.0, -9.0] and decoded["b"].tolist() == [[0.0, 3.0]]


def test_error_feedback_sends_everything_in_the_end() -> None:
    """The same movement every round: what has arrived after n rounds plus what is remembered is n movements."""
    movement, arrived, error = draw().normal(size=20).astype(np.float32), np.zeros(20), {}
    for _ in range(30):
        sent = compress.compressed(update({"w": movement}), {"w": np.zeros(20, np.float32)}, error, compress.top_k(0.1), draw())
        arrived, error = arrived + sent.update.adapter["w"], sent.error
    np.testing.assert_allclose(arrived + error["w"], 30 * movement, rtol=1e-5)
    assert np.abs(error["w"]).max() < 12 * np.abs(movement).max()  # it does not grow without bound


def test_what_was_lost_of_a_factor_waits_for_the_round_that_sends_it() -> None:
    """RoLoRA sends B in one round and A in the next."""
    error: dict[str, np.ndarray] = {}
    for name in ("B", "A", "B"):
        sent = compress.compressed(update({name: np.arange(1.0, 5.0)}), {name: np.zeros(4)}, error, compress.top_k(0.25), draw())
        error = dict(sent.error)
    assert error["A"].tolist() == [1, 2, 3, 0] and error["B"].tolist() == [2, 4, 0, 4]
    assert sent.update.adapter["B"].tolist() == [0, 0, 6, 0], "what was left out two rounds ago went with it"


@pytest.mark.parametrize("scheme", [compress.top_k(1.0), compress.quantise(16)])
def test_full_precision_changes_nothing(scheme: compress.Compress) -> None:
    received = {"w": draw(1).normal(size=(4, 4)).astype(np.float32)}
    trained = {"w": received["w"] + 0.01 * draw(2).normal(size=(4, 4)).astype(np.float32)}
    sent = compress.compressed(update(trained), received, {}, scheme, draw())
    np.testing.assert_allclose(sent.update.adapter["w"], trained["w"], atol=2e-6)
    assert np.abs(sent.error["w"]).max() < 2e-6


def test_the_true_size_is_what_counts() -> None:
    tree = {"w": draw().normal(size=100).astype(np.float32)}
    sent = compress.compressed(update(tree), {"w": np.zeros(100, np.float32)}, {}, compress.quantise(8), draw())
    assert bytes_of(sent.update) == 100 + 16 + 8 and bytes_of(update(tree)) == 400 + 8
    nothing = compress.compressed(update({}), {}, {}, compress.quantise(8), draw())
    assert bytes_of(nothing.update) == 8


@pytest.mark.parametrize("make", [lambda: compress.quantise(0), lambda: compress.quantise(17), lambda: compress.top_k(0.0)])
def test_options_out_of_range(make: object) -> None:
    with pytest.raises(InputError, match="compress."):
        make()  # type: ignore[operator]
