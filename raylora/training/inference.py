"""Predictions, the rating score, and the rows of `cases.parquet` for one model on some patients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from raylora.data.native import Geometry, to_native
from raylora.metrics.clinical import segmentation_rows
from raylora.models.stacked import StackedModel
from raylora.training.samples import pad_depth

Row = tuple[str, str, str, str, float]
"""patient, frame, structure, metric, value"""


@dataclass(frozen=True, kw_only=True)
class EvalCase:
    """One patient: the prepared images, and the truth on the grid that the label was drawn on."""

    patient: str
    images: Mapping[str, np.ndarray]  # frame -> (x, y, z) float32
    labels: Mapping[str, np.ndarray]  # frame -> (x, y, z) uint8, prepared grid; empty without labels
    native_labels: Mapping[str, np.ndarray]  # frame -> native grid
    geometry: Geometry
    diseased: int | None = None


@torch.no_grad()
def segment(model: StackedModel, images: Sequence[np.ndarray], depth: int, batch_size: int) -> list[np.ndarray]:
    """Label maps (x, y, z) uint8 of images (x, y, z), by the first client of the model."""
    device, dtype = _placed(model)
    maps: list[np.ndarray] = []
    for start in range(0, len(images), batch_size):
        part = images[start : start + batch_size]
        stacked = torch.from_numpy(np.stack([pad_depth(image, depth) for image in part])[:, None].astype(np.float32, copy=False))
        found = model(stacked.to(device, dtype)).argmax(1).to(torch.uint8).cpu().numpy()
        maps += [label[..., : image.shape[-1]] for label, image in zip(found, part, strict=True)]
    return maps


@torch.no_grad()
def disease_probabilities(model: StackedModel, cases: Sequence[EvalCase], depth: int, batch_size: int) -> list[float]:
    """The probability of disease of each patient."""
    device, dtype = _placed(model)
    found: list[float] = []
    for start in range(0, len(cases), batch_size):
        images = np.stack(
            [np.stack([pad_depth(case.images[f], depth) for f in ("ED", "ES")]) for case in cases[start : start + batch_size]]
        )
        logits = model(torch.from_numpy(images.astype(np.float32, copy=False)).to(device, dtype))
        found += logits.double().softmax(1)[:, 1].tolist()
    return found


def _placed(model: StackedModel) -> tuple[torch.device, torch.dtype]:
    weight = next(iter(model.weights.values()))
    return weight.device, weight.dtype


def evaluate(model: StackedModel, cases: Sequence[EvalCase], task: str, depth: int, batch_size: int, *, full: bool) -> list[Row]:
    """One model on some patients: for segmentation on the native grid against the native label (`full`: distances, volumes, ejection
    fraction; otherwise Dice alone), for disease the probability and the label."""
    if task == "disease":
        probabilities = disease_probabilities(model, cases, depth, batch_size)
        rows: list[Row] = []
        for case, probability in zip(cases, probabilities, strict=True):
            rows.append((case.patient, "-", "diseased", "probability", probability))
            if case.diseased is not None:
                rows.append((case.patient, "-", "diseased", "label", float(case.diseased)))
        return rows
    rows = []
    for case in cases:
        frames = sorted(case.native_labels)
        maps = segment(model, [case.images[frame] for frame in frames], depth, batch_size)
        pred = {frame: to_native(label, case.geometry) for frame, label in zip(frames, maps, strict=True)}
        truth = {frame: case.native_labels[frame] for frame in frames}
        rows += [(case.patient, *row) for row in segmentation_rows(pred, truth, case.geometry.native_spacing_mm, full=full)]
    return rows


def rating_score(model: StackedModel, cases: Sequence[EvalCase], task: str, depth: int, batch_size: int) -> float:
    """How good a model is on a client's rating cases, in [0, 1].

    Segmentation: mean Dice over patients, frames and structures on the prepared grid. Disease: mean probability given to the true class,
    which is finite and moves even where two or three cases leave an accuracy unmoved.
    """
    if task == "disease":
        probabilities = disease_probabilities(model, cases, depth, batch_size)
        return float(np.mean([p if case.diseased else 1 - p for p, case in zip(probabilities, cases, strict=True)]))
    scores = []
    for case in cases:
        frames = sorted(case.labels)
        maps = segment(model, [case.images[frame] for frame in frames], depth, batch_size)
        rows = segmentation_rows(dict(zip(frames, maps, strict=True)), case.labels, (1.0, 1.0, 1.0), full=False)
        scores += [value for frame, _, _, value in rows if frame == "-"]
    return float(np.mean(scores))
