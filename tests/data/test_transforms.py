"""Augmentation: identity at strength 0, image and label move together, draws from the generator alone."""

import time
from dataclasses import replace

import numpy as np
import pytest

from raylora.core.seeds import generator
from raylora.data.transforms import Augmentation, augment, augmentation

FULL = Augmentation(probability=1.0)
STILL = replace(FULL, rotation_deg=0, scale=0, translation=0, gamma=0, brightness=0, contrast=0, noise=0)


class Half:
    """A generator that draws shift_x = 0.5 and shift_y = -1 and no noise."""

    def random(self, n=None):
        return 0.0 if n is None else np.zeros(n)

    def uniform(self, low, high, n):
        return np.array([0, 0, 0.5, -1.0, 0, 0, 0])

    def standard_normal(self, shape, dtype):
        return np.zeros(shape, dtype)


@pytest.fixture
def heart():
    x, y = np.meshgrid(np.arange(64) - 31.5, np.arange(64) - 31.5, indexing="ij")
    label = np.repeat((3 * (np.hypot(x - 6, y) < 12)).astype(np.uint8)[..., None], 8, axis=2)
    label[..., 6:] = 0
    return (label[None] / 4 + 0.1 * (np.arange(8) < 6)).astype(np.float32), label


def test_strength_zero_is_the_identity_and_so_are_empty_ranges(heart):
    assert augment(*heart, generator(0, "t"), replace(FULL, strength=0.0)) == heart
    for new, old in zip(augment(*heart, generator(0, "t"), STILL), heart, strict=True):
        assert np.allclose(new, old, atol=1e-6)


def test_one_generator_one_result_and_the_arguments_stay(heart):
    image, label = heart[0].copy(), heart[1].copy()
    for array in heart:
        array.flags.writeable = False
    first, again, other = (augment(*heart, generator(seed, "t"), FULL) for seed in (1, 1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[0], other[0])
    assert np.array_equal(heart[0], image) and np.array_equal(heart[1], label)


def test_what_is_missing_stays_missing(heart):
    image = np.concatenate([heart[0], heart[0]])
    image[0, ..., 3] = 0
    image[1] = 0
    for seed in range(20):
        new, _ = augment(image, heart[1], generator(seed, "t"), FULL)
        assert not new[0, ..., 3].any() and not new[1].any() and new[0].any()


def test_a_heart_is_turned_and_not_sheared_where_voxels_are_not_square():
    """A disk of 20 mm on voxels of 1 x 2 mm."""
    x, y = np.meshgrid(np.arange(96) - 47.5, 2.0 * (np.arange(48) - 23.5), indexing="ij")
    image = (np.hypot(x, y) < 20).astype(np.float32)[None, ..., None]
    turned = replace(STILL, rotation_deg=60, aspect=augmentation(1.0, (1.0, 2.0, 10.0)).aspect)
    for seed in range(5):
        new, _ = augment(image, None, generator(seed, "t"), turned)
        inside = new[0, ..., 0] > 0.5
        assert abs(np.ptp(x[inside]) - np.ptp(y[inside])) <= 4 and abs(inside.sum() / image.sum() - 1) < 0.05


def test_image_and_label_move_together(heart):
    moves = replace(STILL, rotation_deg=90, scale=0.2, translation=0.1)
    for seed in range(10):
        image, label = augment(*heart, generator(seed, "t"), moves)
        inside, outside = image[0][label == 3], image[0][(label == 0) & (image[0] > 0)]
        assert np.median(inside) > 0.8 and np.median(outside) < 0.2
        assert set(np.unique(label)) <= {0, 3}


def test_a_known_translation():
    image = np.zeros((1, 8, 8, 1), np.float32)
    image[0, 2, 3, 0] = 1.0
    moved = replace(STILL, translation=0.25)

    new, label = augment(image, (image[0] > 0).astype(np.uint8), Half(), moved)
    assert np.argwhere(new[0] > 0.5).tolist() == [[3, 1, 0]] == np.argwhere(label).tolist()


def test_a_known_rotation():
    """By 90 degrees about the middle: a voxel keeps its distance from it, whatever the direction."""
    image = np.zeros((1, 9, 9, 1), np.float32)
    image[0, 7, 4, 0] = image[0, 7, 5, 0] = 1.0

    class Quarter(Half):
        def uniform(self, low, high, n):
            return np.array([1.0, 0, 0, 0, 0, 0, 0])

    new, _ = augment(image, None, Quarter(), replace(STILL, rotation_deg=90))
    assert np.argwhere(new[0, ..., 0] > 0.5).tolist() == [[4, 7], [3, 7]][::-1]


def test_padding_stays_zero_and_values_stay_between_0_and_1(heart):
    for seed in range(5):
        image, label = augment(*heart, generator(seed, "t"), FULL)
        assert not image[..., 6:].any() and not label[..., 6:].any()
        assert 0.0 <= image.min() and image.max() <= 1.0 and image.dtype == np.float32


def test_no_label_and_two_channels(heart):
    image = np.concatenate([heart[0], heart[0]])
    new, label = augment(image, None, generator(0, "t"), replace(STILL, rotation_deg=40, gamma=0.5))
    assert label is None and np.array_equal(new[0], new[1])
    empty = np.zeros((1, 8, 8, 2), np.float32)
    assert not augment(empty, None, generator(0, "t"), FULL)[0].any()


def test_it_takes_milliseconds():
    image, label = np.random.default_rng(0).random((1, 96, 96, 12), np.float32), np.zeros((96, 96, 12), np.uint8)
    spent = []
    for seed in range(10):
        start = time.perf_counter()
        augment(image, label, generator(seed, "t"), FULL)
        spent.append(time.perf_counter() - start)
    assert min(spent) < 0.05  # about 8 ms; the bound is for a busy machine
