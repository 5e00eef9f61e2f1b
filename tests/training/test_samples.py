"""What a client trains on is what its files hold: the image of each frame with its own label, each patient with its own class."""

import re

import numpy as np
import pytest
from small_runs import tiny

from raylora import planning
from raylora.data.shards import PreparedSet
from raylora.federation.build import build_host
from raylora.training.samples import Frames, Studies, class_weights


def test_class_weights_by_hand():
    assert class_weights([0, 0, 0, 1]) == {0: pytest.approx(2 / 3), 1: 2.0}
    assert class_weights([1, 1]) == {1: 1.0}


@pytest.mark.parametrize("task", ["segmentation", "disease"])
def test_a_client_trains_on_its_own_patients_as_they_were_prepared(prepared_folder, task):
    plan = planning.make_plan(tiny(prepared_folder, task, training__cache="off"))
    samples = build_host(plan.spec, plan.weights).sites["Philips"].shard.training
    patients, prepared = plan.splits["Philips"]["train"], PreparedSet(prepared_folder)
    images, targets, weights = samples.batch(np.arange(len(samples)), np.random.default_rng(0))
    studies = [prepared.study(patient).frames for patient in patients]
    if task == "segmentation":
        expected = [(frames[name].image, frames[name].label) for frames in studies for name in ("ED", "ES")]
        assert len(images) == len(expected) == len(targets) and images.shape[1] == 1
        for image, target, (own, label) in zip(images[:, 0], targets, expected, strict=True):
            assert np.array_equal(image, own) and np.array_equal(target, label) and set(np.unique(target)) == {0, 1, 2, 3}
        assert (weights == 1).all()
        return
    diseased = [int(re.search(r"(\d+)V\d$", patient)[1]) % 2 for patient in patients]  # every second study of the cohort is DCM
    for image, frames in zip(images, studies, strict=True):
        assert np.array_equal(image, np.stack([frames["ED"].image, frames["ES"].image]))
    assert targets.tolist() == diseased and {0, 1} == set(diseased)
    assert weights.mean() == pytest.approx(1.0) and weights[targets == 0].sum() == pytest.approx(weights[targets == 1].sum())


def test_missing_slices_are_zeros_at_the_end():
    image, label = np.ones((3, 3, 2), np.float32), np.full((3, 3, 2), 2, np.uint8)
    images, targets, _ = Frames([image], [label], depth=4).batch(np.array([0]), np.random.default_rng(0))
    assert images.shape == (1, 1, 3, 3, 4) and images[0, 0, ..., :2].all() and not images[..., 2:].any() and not targets[..., 2:].any()
    both, _, _ = Studies([(image, 2 * image)], [1], depth=3).batch(np.array([0]), np.random.default_rng(0))
    assert both.shape == (1, 2, 3, 3, 3) and (both[0, 1, ..., :2] == 2).all() and not both[..., 2].any()
