"""What byzantine clients send, against its definition, and always in a shape that the server's checks let through."""

import numpy as np
import pytest

from raylora.core import lowrank
from raylora.core.byzantine import KINDS, Attack

RNG = np.random.default_rng(5)


@pytest.fixture(autouse=True)
def _alone():
    """What a test draws does not depend on those that ran before it."""
    RNG.bit_generator.state = np.random.default_rng(5).bit_generator.state


def tree(rank: int = 2, scale: float = 1.0) -> dict[str, np.ndarray]:
    arrays = {"q.lora_A": (rank, 7), "q.lora_B": (6, rank), "head.bias": (3,)}
    return {name: (scale * RNG.normal(size=shape)).astype(np.float32) for name, shape in arrays.items()}


def moved(received, step: float = 0.1) -> dict[str, np.ndarray]:
    return {name: value + np.float32(step) * RNG.normal(size=value.shape).astype(np.float32) for name, value in received.items()}


def product(of) -> np.ndarray:
    return lowrank.product((of["q.lora_A"], of["q.lora_B"]))


def lie(kind: str, honest, received, strength=1.0, first=None, round=0, client="GE"):
    return Attack(kind=kind, strength=strength, seed=1).sent(honest, received, first or honest, round, client)


def test_the_product_moves_the_other_way_exactly_where_the_pair_starts_anew():
    received = {**tree(), "q.lora_B": np.zeros((6, 2), np.float32)}
    honest = moved(received)
    sent = lie("negate", honest, received, 10.0)
    np.testing.assert_allclose(product(sent), -10 * product(honest), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(sent["head.bias"], received["head.bias"] - 10 * (honest["head.bias"] - received["head.bias"]), rtol=1e-5)


@pytest.mark.parametrize("alone", ["q.lora_A", "q.lora_B"])
def test_the_product_moves_the_other_way_exactly_where_one_factor_is_sent(alone):
    received = tree()
    honest = moved(received)
    sent = {**received, **lie("negate", {alone: honest[alone]}, {alone: received[alone]}, 3.0)}
    honestly = {**received, alone: honest[alone]}
    np.testing.assert_allclose(product(sent) - product(received), -3 * (product(honestly) - product(received)), rtol=1e-4, atol=1e-5)


def test_of_both_factors_it_is_the_closest_product_in_the_rows_of_a():
    """The rest, target minus product, is orthogonal to the rows of A (normal equations); what is sent is the other way."""
    received = tree()
    honest = moved(received, 0.02)
    sent = lie("negate", honest, received, 5.0)
    target = product(received) - 5 * (product(honest) - product(received))
    rest = target - product(sent)
    assert np.abs(rest @ honest["q.lora_A"].T.astype(np.float64)).max() < 1e-4
    a = honest["q.lora_A"].astype(np.float64)
    np.testing.assert_allclose(product(sent), target @ np.linalg.pinv(a) @ a, atol=1e-4)
    assert np.vdot(product(sent) - product(received), product(honest) - product(received)) < 0
    assert np.array_equal(sent["q.lora_A"], honest["q.lora_A"])


def test_noise_has_strength_times_the_size_of_the_movement():
    received = {"w": np.zeros(20_000, np.float32), "b": np.zeros(20_000, np.float32)}
    honest = {"w": received["w"] + 0.5, "b": received["b"] - 2}
    sent = lie("gaussian", honest, received, 3.0)
    for name, size in (("w", 1.5), ("b", 6.0)):
        assert abs(sent[name].std() / size - 1) < 5 / np.sqrt(2 * 20_000) and abs(sent[name].mean()) < 5 * size / np.sqrt(20_000)
    assert not np.array_equal(sent["w"], lie("gaussian", honest, received, 3.0, client="Canon")["w"])
    assert not np.array_equal(sent["w"], lie("gaussian", honest, received, 3.0, round=1)["w"])


def test_colluders_move_in_one_direction_another_one_each_round():
    received = tree()
    one, other = (lie("collude", moved(received), received, client=client) for client in ("GE", "Canon"))
    for name in received:
        a, b = one[name] - received[name], other[name] - received[name]
        assert np.vdot(a, b) == pytest.approx(np.linalg.norm(a) * np.linalg.norm(b), rel=1e-4)
    later = lie("collude", moved(received), received, round=1)
    a, b = (x["q.lora_A"] - received["q.lora_A"] for x in (one, later))
    assert abs(np.vdot(a, b)) < 0.95 * np.linalg.norm(a) * np.linalg.norm(b)


def test_a_replay_sends_what_was_sent_first():
    received, first = tree(), tree()
    honest = moved(received)
    sent = lie("stale", honest, received, first=first)
    assert all(np.allclose(sent[name], first[name], atol=1e-6) for name in first)
    twice = lie("stale", honest, received, 2.0, first=first)
    np.testing.assert_allclose(twice["head.bias"], 2 * first["head.bias"] - received["head.bias"], rtol=1e-4, atol=1e-5)
    assert np.array_equal(lie("stale", honest, received, first=tree(rank=3))["q.lora_A"], honest["q.lora_A"]), (
        "another rank: nothing to replay"
    )


def test_flipped_labels_are_honest_about_what_they_learnt():
    received = tree()
    honest = moved(received)
    assert all(np.array_equal(lie("label_flip", honest, received)[name], honest[name]) for name in honest)
    np.testing.assert_allclose(
        lie("label_flip", honest, received, 4.0)["q.lora_A"],
        received["q.lora_A"] + 4 * (honest["q.lora_A"] - received["q.lora_A"]),
        atol=1e-5,
    )


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("strength", [0.0, 1.0, 1e30])
def test_every_lie_is_finite_float32_of_the_honest_shapes(kind, strength):
    received = tree()
    honest = moved(received)
    before = {name: value.copy() for name, value in (*honest.items(), *received.items())}
    sent = lie(kind, honest, received, strength, first=tree())
    assert sent.keys() == honest.keys()
    assert all(sent[n].dtype == np.float32 and sent[n].shape == honest[n].shape and np.isfinite(sent[n]).all() for n in sent)
    assert all(np.array_equal(received[name], before[name]) for name in received), "nothing that it was given has changed"
    if strength == 0 and kind != "negate":
        assert all(np.allclose(sent[name], received[name], atol=1e-6) for name in sent)
