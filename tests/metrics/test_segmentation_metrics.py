import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raylora.metrics.segmentation import dice, hd95_mm, overlap_counts, volume_ml

MONAI_WARNS = pytest.mark.filterwarnings("ignore:.*always_return_as_numpy:FutureWarning")  # about a call within MONAI itself


def _maps(seed: int, shape: tuple[int, int, int] = (9, 8, 5)) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.Generator(np.random.PCG64(seed))
    blob = rng.integers(0, 4, shape).astype(np.uint8)
    return blob, np.where(rng.random(shape) < 0.3, rng.integers(0, 4, shape), blob).astype(np.uint8)


def test_dice_by_hand():
    pred = np.zeros((4, 1, 1), np.uint8)
    truth = pred.copy()
    pred[:3], truth[2:] = 3, 3  # 3 and 2 voxels, 1 in common
    assert dice(pred, truth, 3) == 2 * 1 / (3 + 2)
    assert dice(pred, truth, 2) is None
    assert dice(pred, np.zeros_like(truth), 3) == 0.0


def test_labels_outside_the_convention_and_shapes_are_refused():
    with pytest.raises(ValueError, match="labels must be 0 to 3, got up to 4"):
        overlap_counts(np.full((2, 2, 2), 4, np.uint8), np.zeros((2, 2, 2), np.uint8))
    with pytest.raises(ValueError, match="one shape"):
        overlap_counts(np.zeros((2, 2, 2), np.uint8), np.zeros((2, 2, 3), np.uint8))
    with pytest.raises(ValueError, match="one shape"):
        hd95_mm(np.zeros((2, 2, 2), bool), np.zeros((2, 2, 3), bool), (1, 1, 1))


def test_volume_in_ml():
    assert volume_ml(100, (2.0, 2.0, 10.0)) == pytest.approx(4.0)  # 100 * 40 mm^3


def test_hd95_of_a_shifted_voxel_uses_the_spacing():
    a, b = np.zeros((6, 6, 4), bool), np.zeros((6, 6, 4), bool)
    a[1, 1, 1], b[4, 1, 1] = True, True
    assert hd95_mm(a, b, (1.5, 1.0, 10.0)) == pytest.approx(4.5)
    b[:] = False
    b[1, 1, 3] = True
    assert hd95_mm(a, b, (1.5, 1.0, 10.0)) == pytest.approx(20.0)


def test_hd95_of_an_absent_structure():
    nothing, something = np.zeros((3, 4, 5), bool), np.zeros((3, 4, 5), bool)
    something[1, 1, 1] = True
    assert hd95_mm(nothing, nothing, (1, 1, 1)) is None
    diagonal = np.sqrt((3 * 1.0) ** 2 + (4 * 2.0) ** 2 + (5 * 10.0) ** 2)
    assert hd95_mm(something, nothing, (1.0, 2.0, 10.0)) == pytest.approx(diagonal)
    assert hd95_mm(nothing, something, (1.0, 2.0, 10.0)) == pytest.approx(diagonal)


@pytest.mark.slow
@MONAI_WARNS
@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 10_000))
def test_dice_and_hd95_agree_with_monai(seed):
    import torch
    from monai.metrics import compute_dice, compute_hausdorff_distance

    pred, truth = _maps(seed)
    spacing = (1.4, 1.1, 9.0)
    hot = [torch.from_numpy(np.stack([m == label for label in range(4)])[None].astype(np.float32)) for m in (pred, truth)]
    reference = compute_dice(*hot, include_background=False)[0].tolist()
    surface = compute_hausdorff_distance(*hot, include_background=False, percentile=95, spacing=spacing)[0].tolist()
    for label in (1, 2, 3):
        assert dice(pred, truth, label) == pytest.approx(reference[label - 1], rel=1e-6)
        assert hd95_mm(pred == label, truth == label, spacing) == pytest.approx(surface[label - 1], rel=1e-5)


@pytest.mark.slow
@MONAI_WARNS
def test_hd95_agrees_with_monai_on_a_heart_sized_structure_at_the_border():
    import torch
    from monai.metrics import compute_hausdorff_distance

    x, y, z = np.indices((40, 50, 8))
    pred = (x - 12) ** 2 / 144 + (y - 25) ** 2 / 100 + (z - 3) ** 2 / 16 < 1
    truth = (x - 9) ** 2 / 144 + (y - 28) ** 2 / 81 + (z - 4) ** 2 / 25 < 1  # cut by the border
    pred[39, 49, 7] = True  # a stray voxel
    hot = [torch.from_numpy(m[None, None].astype(np.float32)) for m in (pred, truth)]
    expected = compute_hausdorff_distance(*hot, include_background=True, percentile=95, spacing=(1.4, 1.4, 10.0)).item()
    assert hd95_mm(pred, truth, (1.4, 1.4, 10.0)) == pytest.approx(expected, rel=1e-5)
