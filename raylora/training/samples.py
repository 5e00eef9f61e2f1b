"""What one training step draws from a client's shard: frames for segmentation, studies for disease."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import torch

from raylora.data.transforms import Augmentation, augment

Batch = tuple[np.ndarray | tuple[torch.Tensor, ...], np.ndarray, np.ndarray]
"""images (b, c, x, y, z) float32, or the tensors that the model's frozen prefix makes of them, on its device; targets (b, ...) int64; weights (b,) float32"""


class Samples(Protocol):
    """A client's training samples: how many, and the batch of given indices (augmented by `rng`)."""

    def __len__(self) -> int: ...

    def batch(self, indices: np.ndarray, rng: np.random.Generator) -> Batch: ...


@dataclass(frozen=True)
class Frames:
    """Segmentation: a sample is one labelled frame (ED or ES) of a study."""

    images: Sequence[np.ndarray]  # each (x, y, z)
    labels: Sequence[np.ndarray]
    depth: int  # z is padded to this count with zeros
    augmentation: Augmentation | None = None

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, indices: np.ndarray, rng: np.random.Generator) -> Batch:
        """images (b, 1, x, y, depth), targets (b, x, y, depth)."""
        pairs = [(self.images[i][None], self.labels[i]) for i in indices]
        if self.augmentation is not None:
            pairs = [augment(image, label, rng, self.augmentation) for image, label in pairs]
        images = np.stack([pad_depth(image, self.depth) for image, _ in pairs]).astype(np.float32, copy=False)
        targets = np.stack([pad_depth(label, self.depth) for _, label in pairs]).astype(np.int64)
        return images, targets, np.ones(len(pairs), np.float32)


@dataclass(frozen=True)
class Studies:
    """Disease: a sample is a study with ED and ES as two channels; classes are weighted inversely to their frequency at this client."""

    images: Sequence[Sequence[np.ndarray]]  # each its channels, (x, y, z): memory-mapped as they lie, stacked only in a batch
    labels: Sequence[int]
    depth: int
    augmentation: Augmentation | None = None

    @cached_property
    def weights(self) -> Mapping[int, float]:
        return class_weights(self.labels)

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, indices: np.ndarray, rng: np.random.Generator) -> Batch:
        """images (b, 2, x, y, depth), targets (b,)."""
        images = [np.stack(self.images[i]) for i in indices]
        if self.augmentation is not None:
            images = [augment(image, None, rng, self.augmentation)[0] for image in images]
        targets = np.array([self.labels[i] for i in indices], np.int64)
        stacked = np.stack([pad_depth(image, self.depth) for image in images]).astype(np.float32, copy=False)
        return stacked, targets, np.array([self.weights[t] for t in targets.tolist()], np.float32)


def class_weights(labels: Sequence[int]) -> Mapping[int, float]:
    """n / (classes * n_class): their mean over the samples is 1."""
    values, counts = np.unique(np.asarray(labels), return_counts=True)
    return {int(v): len(labels) / (len(values) * int(c)) for v, c in zip(values, counts, strict=True)}


def pad_depth(array: np.ndarray, depth: int) -> np.ndarray:
    """Zeros at the end of the last axis up to `depth` slices."""
    missing = depth - array.shape[-1]
    if missing < 0:
        raise ValueError(f"a study has {array.shape[-1]} slices, more than data.size allows ({depth})")
    return array if not missing else np.concatenate([array, np.zeros((*array.shape[:-1], missing), array.dtype)], axis=-1)
