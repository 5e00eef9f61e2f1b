"""Losses in closed form, client by client."""

import math

import pytest
import torch

from raylora.training.losses import LOSSES, dice_and_cross_entropy, weighted_cross_entropy

SHAPE = (2, 2, 1)  # voxels


def flat_logits(samples: int) -> torch.Tensor:
    """Every class at every voxel equally likely: p = 1/4."""
    return torch.zeros(samples, 4, *SHAPE, dtype=torch.float64)


def sure(labels: torch.Tensor, classes: int = 4) -> torch.Tensor:
    """Logits that predict the labels with certainty."""
    return 1e3 * torch.nn.functional.one_hot(labels, classes).movedim(-1, 1).double()


def test_segmentation_in_closed_form():
    labels = torch.tensor([0, 1, 1, 2]).reshape(1, *SHAPE)
    # p = 1/4 everywhere: sum p = 1, sum p t = count / 4; dice_c = (2 count / 4 + 1) / (1 + count + 1)
    dice = sum((count / 2 + 1) / (count + 2) for count in (2, 1, 0)) / 3
    expected = ((1 - dice) + math.log(4)) / 2
    assert dice_and_cross_entropy(flat_logits(1), labels, torch.ones(1, 1)).item() == pytest.approx(expected, abs=1e-12)


def test_a_perfect_segmentation_costs_nothing_also_without_a_structure():
    for values in ([0, 1, 2, 3], [0, 0, 0, 0]):
        labels = torch.tensor(values).reshape(1, *SHAPE)
        assert dice_and_cross_entropy(sure(labels), labels, torch.ones(1, 1)).item() == pytest.approx(0.0, abs=1e-12)


def test_classification_in_closed_form():
    logits = torch.tensor([[0.0, 0.0], [0.0, math.log(3)], [math.log(3), 0.0]], dtype=torch.float64)
    labels = torch.tensor([0, 1, 1])
    weights = torch.tensor([[2.0, 1.0, 0.5]])
    expected = (2 * math.log(2) + math.log(4 / 3) + 0.5 * math.log(4)) / 3  # divided by the count, not by the weights' sum
    assert weighted_cross_entropy(logits, labels, weights).item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("task", LOSSES)
def test_each_client_has_its_own_loss_and_padding_changes_nothing(task):
    g = torch.Generator().manual_seed(0)
    shape = (4, *SHAPE) if task == "segmentation" else (2,)
    logits = [torch.randn(n, *shape, dtype=torch.float64, generator=g) for n in (3, 2)]
    labels = [torch.randint(0, shape[0], (n, *shape[1:]), generator=g) for n in (3, 2)]
    weights = [torch.rand(n, dtype=torch.float64, generator=g) + 0.5 for n in (3, 2)]
    alone = [LOSSES[task](x, y, w[None])[0] for x, y, w in zip(logits, labels, weights, strict=True)]
    pad = torch.full((1, *shape), 50.0, dtype=torch.float64, requires_grad=True)
    together = LOSSES[task](
        torch.cat([*logits, pad]),
        torch.cat([*labels, torch.zeros(1, *shape[1:], dtype=torch.long)]),
        torch.stack([weights[0], torch.cat([weights[1], torch.zeros(1)])]),
    )
    torch.testing.assert_close(together, torch.stack(alone), rtol=1e-12, atol=1e-12)
    together.sum().backward()
    assert not pad.grad.any()
