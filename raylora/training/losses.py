"""Losses that keep clients apart: (K b, ...) logits and b weights a client in, one loss a client out."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def dice_and_cross_entropy(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Mean of (1 - soft Dice) and cross-entropy, for each client (K,).

    logits (K b, classes, x, y, z), labels (K b, x, y, z) int64, weights (K, b): 0 for a padded sample. The soft Dice is over a sample's
    foreground classes, its squared-free form 2 sum(p t) / (sum p + sum t) smoothed by 1 so that an absent structure costs nothing when
    nothing is predicted.
    """
    labels = labels[:, None]
    log_p = logits.log_softmax(1)
    entropy = -log_p.gather(1, labels).flatten(1).mean(1)  # (K b,); nll_loss: the same bits, slower, and on a GPU in no fixed order
    p = log_p.exp().flatten(2)[:, 1:]  # (K b, classes - 1, voxels)
    classes = torch.arange(1, logits.shape[1], device=labels.device).reshape(-1, *(1,) * (labels.dim() - 2))
    truth = (labels == classes).flatten(2).to(p.dtype)
    dice = (2 * (p * truth).sum(2) + 1) / (p.sum(2) + truth.sum(2) + 1)
    return _mean((1 - dice.mean(1) + entropy) / 2, weights)


def weighted_cross_entropy(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Cross-entropy for each client (K,): logits (K b, classes), labels (K b,), weights (K, b) = class weight, 0 for a padded sample."""
    entropy = F.cross_entropy(logits, labels, reduction="none").reshape(weights.shape)
    return (entropy * weights).sum(1) / (weights > 0).sum(1).clamp(min=1)


def _mean(values: Tensor, weights: Tensor) -> Tensor:
    return (values.reshape(weights.shape) * weights).sum(1) / weights.sum(1).clamp(min=torch.finfo(values.dtype).tiny)


LOSSES = {"segmentation": dice_and_cross_entropy, "disease": weighted_cross_entropy}
