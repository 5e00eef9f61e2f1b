"""Training data that are wrong as they are said to be, and only they."""

import math
from dataclasses import replace

import numpy as np
import pytest

from raylora.data.cases import LV, MYO, RV
from raylora.data.damage import CLEAN, Damage, noisy, shifted_contours
from raylora.data.shards import PreparedSet

SPACING = (1.5, 1.5)


def near(found: float, expected: float, chance: float, count: int) -> bool:
    return abs(found - expected) < 5 * math.sqrt(chance * (1 - chance) * count)


def disc(radius_mm: float, side: int = 96) -> np.ndarray:
    x, y = (np.arange(side) - side / 2 + 0.5)[:, None] * SPACING[0], (np.arange(side) - side / 2 + 0.5)[None] * SPACING[1]
    return np.hypot(x, y) < radius_mm


def heart(cavity_mm: float = 20.0, wall_mm: float = 30.0) -> np.ndarray:
    """(96, 96, 2): a cavity within a wall, a right ventricle in the second slice's corner."""
    plane = np.where(disc(cavity_mm), LV, np.where(disc(wall_mm), MYO, 0)).astype(np.uint8)
    label = np.stack([plane, plane], axis=2)
    label[4:20, 4:20, 1] = RV
    return label


@pytest.fixture(scope="module")
def study(prepared_folder):
    opened = PreparedSet.open(prepared_folder)
    return opened.study(opened.ids[0])


# ---- contours


@pytest.mark.parametrize("offset_mm", [-6.0, -3.0, 3.0, 7.5])
def test_contours_move_by_the_offset(offset_mm):
    """The cavity's area is that of a disc whose radius has moved by the offset, within the rim of half a voxel."""
    moved = shifted_contours(heart(), offset_mm, SPACING)
    for value, radius in ((LV, 20.0), (MYO, 30.0)):
        area = np.isin(moved[:, :, 0], (value, LV)).sum() * SPACING[0] * SPACING[1]
        assert abs(math.sqrt(area / math.pi) - (radius + offset_mm)) < SPACING[0] / 2, value
    side = 16 * SPACING[0]
    if offset_mm < 0:
        assert (moved[:, :, 1] == RV).sum() * SPACING[0] * SPACING[1] == pytest.approx((side + 2 * offset_mm) ** 2, rel=0.25)


def test_no_offset_changes_nothing_and_a_small_one_little():
    assert shifted_contours(heart(), 0.0, SPACING) is not None and np.array_equal(shifted_contours(heart(), 0.0, SPACING), heart())
    assert np.array_equal(shifted_contours(heart(), 1e-6, SPACING), heart())
    assert not shifted_contours(np.zeros((8, 8, 2), np.uint8), 5.0, SPACING).any(), "nothing there, nothing grows"
    assert (shifted_contours(np.full((8, 8, 1), RV, np.uint8), -1.0, SPACING) == RV).all(), "no outline within the image"


def test_the_left_ventricle_stays_in_front_of_the_right_one():
    label = heart()
    grown = shifted_contours(label, 40.0, SPACING)
    assert (grown[:, :, 1] == LV)[disc(55.0)].all()


# ---- noise


@pytest.mark.parametrize("chance", [0.1, 0.6])
def test_voxels_take_a_neighbour_s_label_as_often_as_said(chance):
    """On a board of single voxels all four neighbours differ: the share of changed voxels is the chance itself."""
    board = (np.indices((80, 80, 3)).sum(0) % 2).astype(np.uint8)
    changed = noisy(board, chance, np.random.default_rng(0)) != board
    inner = changed[1:-1, 1:-1]
    assert near(inner.sum(), chance * inner.size, chance, inner.size)
    flat = np.full((40, 40, 2), LV, np.uint8)
    assert np.array_equal(noisy(flat, 1.0, np.random.default_rng(0)), flat), "the inside of a structure stays"
    edge = np.zeros((80, 80, 4), np.uint8)
    edge[40:] = LV
    changed = noisy(edge, chance, np.random.default_rng(1)) != edge
    rim = changed[39:41, :, :]
    assert changed.sum() == rim.sum() and near(rim.sum(), chance / 4 * rim.size, chance / 4, rim.size)


def test_classes_are_wrong_as_often_as_said_and_all_of_them_at_a_flipping_client():
    noisy_client = Damage(client="GE", seed=2, label_noise=0.3)
    wrong = [noisy_client.diseased(f"study {k}", k % 2) != k % 2 for k in range(2000)]
    assert near(sum(wrong), 600, 0.3, 2000)
    assert all(Damage(client="GE", flipped=True).diseased(f"study {k}", k % 2) != k % 2 for k in range(20))
    both = [replace(noisy_client, flipped=True).diseased(f"study {k}", k % 2) != k % 2 for k in range(2000)]
    assert [not one for one in both] == wrong


# ---- frames and slices


def test_studies_lack_a_frame_as_often_as_said():
    damage = Damage(client="GE", seed=0, missing_frames=0.4)
    found = [damage.missing_frame(f"study {k}", ("ED", "ES")) for k in range(2000)]
    missing = [name for name in found if name is not None]
    assert near(len(missing), 800, 0.4, 2000) and near(missing.count("ED"), len(missing) / 2, 0.5, len(missing))
    assert Damage(client="GE", missing_frames=1.0).missing_frame("x", ("ED",)) is None, "the last frame stays"


def test_slices_are_missing_as_often_as_said(study):
    damage = Damage(client="GE", seed=0, missing_slices=0.3)
    empty = total = 0
    for k in range(300):
        found = damage.study(replace(study, id=f"study {k}"))
        for name, frame in found.frames.items():
            gone = ~frame.image.any((0, 1)) & study.frames[name].image.any((0, 1))
            assert not frame.label[:, :, gone].any() and np.array_equal(frame.label[:, :, ~gone], study.frames[name].label[:, :, ~gone])
            empty, total = empty + int(gone.sum()), total + int(study.frames[name].image.any((0, 1)).sum())
    assert near(empty, 0.3 * total, 0.3, total)


# ---- a study as a whole


def test_a_clean_study_is_the_same_object_and_what_is_scored_is_never_asked_for(study):
    assert CLEAN.study(study) is study and Damage(client="GE", seed=9).study(study) is study
    assert not Damage(client="GE", seed=9).harmful and Damage(label_noise=0.1).harmful


def test_what_is_wrong_follows_from_seed_client_and_study(study):
    damage = Damage(client="GE", seed=1, label_noise=0.5, missing_slices=0.3)
    first, again = damage.study(study), damage.study(study)
    other = replace(damage, client="Canon").study(study)
    assert all(np.array_equal(first.frames[f].label, again.frames[f].label) for f in first.frames)
    assert any(not np.array_equal(first.frames[f].label, other.frames[f].label) for f in first.frames)


def test_everything_at_once(study):
    damage = Damage(client="GE", seed=1, contour_mm=2.0, left_out=RV, missing_frames=1.0)
    found = damage.study(study)
    gone = damage.missing_frame(study.id, tuple(study.frames))
    assert found.frames[gone].label is None and not found.frames[gone].image.any()
    (kept,) = [frame for name, frame in found.frames.items() if name != gone]
    assert set(np.unique(kept.label)) <= {0, MYO, LV} and kept.label.dtype == np.uint8
    flipped = Damage(client="GE", flipped=True).study(study)
    assert all(np.array_equal(flipped.frames[f].label, 3 - study.frames[f].label) for f in study.frames)
    for name, frame in study.frames.items():
        assert np.array_equal(found.frames[name].native_label, frame.native_label), "the truth that scores are made of stays"
