"""Predictions, the rating score, and the rows of `cases.parquet`: of the K models that a pass holds, on the same patients or each on its own."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from raylora.core.errors import RunError
from raylora.data.native import Geometry, to_native
from raylora.metrics.clinical import grid_rows, segmentation_rows
from raylora.models.stacked import StackedModel
from raylora.training.features import entering, placed
from raylora.training.samples import pad_depth

Row = tuple[str, str, str, str, float]
"""patient, frame, structure, metric, value"""

Named = tuple[Hashable, Callable[[], np.ndarray]]
"""An image (c, x, y, z) by its name in this process (see `features.Prefix.of`)."""


@dataclass(frozen=True, kw_only=True)
class EvalCase:
    """One patient: the prepared images, and the truth on the grid that the label was drawn on."""

    patient: str
    images: Mapping[str, np.ndarray]  # frame -> (x, y, z) float32
    labels: Mapping[str, np.ndarray]  # frame -> (x, y, z) uint8, prepared grid; empty without labels
    native_labels: Mapping[str, np.ndarray]  # frame -> native grid
    geometry: Geometry
    diseased: int | None = None


def _frame(case: EvalCase, frame: str, depth: int) -> Named:
    return (case.patient, frame), lambda: pad_depth(case.images[frame], depth)[None]


def _both_frames(case: EvalCase, depth: int) -> Named:
    return (case.patient, "ED", "ES"), lambda: np.stack([pad_depth(case.images[f], depth) for f in ("ED", "ES")])


def _placed(model: StackedModel, images: Sequence[Named]) -> tuple[torch.Tensor, ...]:
    return tuple(placed(tensor, model.device, model.dtype) for tensor in entering(model, images))


def _of_all(model: StackedModel, images: Sequence[Named], batch_size: int) -> Iterator[torch.Tensor]:
    """Logits (K, b, ...) of every model of the pass on the same images, batch by batch."""
    for start in range(0, len(images), batch_size):
        part = _placed(model, images[start : start + batch_size])
        logits = model.compared(*part)
        yield logits.unflatten(0, (-1, len(part[0])))


def _of_each(model: StackedModel, images: Sequence[Sequence[Named]], batch_size: int) -> Iterator[list[torch.Tensor]]:
    """Logits (b_k, ...) of each model of the pass on its own images, batch by batch; one that has no more of them sees zeros meanwhile."""
    for start in range(0, max(map(len, images)), batch_size):
        parts = [own[start : start + batch_size] for own in images]
        size = max(map(len, parts))
        together = _placed(model, [named for part in parts for named in part])
        filled = []
        for tensor in together:
            rows = tensor.split([len(part) for part in parts])
            filled.append(torch.cat([torch.cat([row, row.new_zeros(size - len(row), *row.shape[1:])]) for row in rows]))
        logits = model(*filled).unflatten(0, (-1, size))
        yield [own[: len(part)] for own, part in zip(logits, parts, strict=True)]


def _finite(logits: torch.Tensor) -> torch.Tensor:
    """As they are. Raises RunError: of what is not a number, everything would be called normal, or background."""
    if not bool(torch.isfinite(logits).all()):
        raise RunError("a model's predictions are not finite numbers (its weights have grown without bound); try a smaller training.lr")
    return logits


def _label_maps(logits: torch.Tensor) -> np.ndarray:
    return logits.argmax(1).to(torch.uint8).cpu().numpy()


def _diseased(logits: torch.Tensor) -> list[float]:
    return logits.double().softmax(1)[:, 1].tolist()


@torch.no_grad()
def segment(model: StackedModel, case: EvalCase, depth: int) -> dict[str, np.ndarray]:
    """{frame: label map (x, y, z) uint8} of a case's labelled frames, by the first client of the model."""
    maps = {}
    for frame in sorted(case.labels):
        (logits,) = _of_all(model, [_frame(case, frame, depth)], 1)
        maps[frame] = _label_maps(logits[0])[0][..., : case.images[frame].shape[-1]]
    return maps


@torch.no_grad()
def evaluate(model: StackedModel, cases: Sequence[EvalCase], task: str, depth: int, batch_size: int, *, full: bool) -> list[list[Row]]:
    """The rows of each model of the pass on the same patients: for segmentation on the native grid against the native label (`full`:
    distances, volumes, ejection fraction, and Dice on the prepared grid; otherwise Dice alone), for disease the probability and the label.
    Raises RunError."""
    found: list[list[Row]] = [[] for _ in range(model.clients)]
    if task == "disease":
        scored = iter(cases)
        for logits in _of_all(model, [_both_frames(case, depth) for case in cases], batch_size):
            part = [next(scored) for _ in range(logits.shape[1])]
            for rows, own in zip(found, logits, strict=True):
                for case, probability in zip(part, _diseased(_finite(own)), strict=True):
                    rows.append((case.patient, "-", "diseased", "probability", probability))
                    if case.diseased is not None:
                        rows.append((case.patient, "-", "diseased", "label", float(case.diseased)))
        return found
    frames = [(case, frame) for case in cases for frame in sorted(case.native_labels)]
    batches = _of_all(model, [_frame(case, frame, depth) for case, frame in frames], batch_size)
    of_frames = iter(frames)
    waiting: list[dict[str, np.ndarray]] = [{} for _ in found]  # of the case whose frames are not all there yet, on the prepared grid
    for logits in batches:
        maps = [_label_maps(_finite(own)) for own in logits]  # (K) of (b, x, y, z)
        for i in range(logits.shape[1]):
            case, frame = next(of_frames)
            for rows, pred, own in zip(found, waiting, maps, strict=True):
                pred[frame] = own[i][..., : case.images[frame].shape[-1]]
                if len(pred) == len(case.native_labels):
                    native = {name: to_native(label, case.geometry) for name, label in pred.items()}
                    measured = segmentation_rows(native, case.native_labels, case.geometry.native_spacing_mm, full=full)
                    measured += grid_rows(pred, {name: case.labels[name] for name in pred}) if full else []
                    rows += [(case.patient, *row) for row in measured]
                    pred.clear()
    return found


@torch.no_grad()
def rating_scores(model: StackedModel, cases: Sequence[Sequence[EvalCase]], task: str, depth: int, batch_size: int) -> list[float]:
    """How good each model of the pass is on its own client's rating cases (one at least), in [0, 1].

    Segmentation: mean Dice over patients, frames and structures on the prepared grid. Disease: mean probability given to the true class,
    which is finite and moves even where two or three cases leave an accuracy unmoved.
    """
    scores: list[list[float]] = [[] for _ in cases]
    if task == "disease":
        for start, parts in enumerate(_of_each(model, [[_both_frames(case, depth) for case in own] for own in cases], batch_size)):
            for values, own, logits in zip(scores, cases, parts, strict=True):
                scored = own[start * batch_size :]
                values += [p if case.diseased else 1 - p for p, case in zip(_diseased(logits), scored, strict=False)]
        return [float(np.mean(values)) for values in scores]
    frames = [[(case, frame) for case in own for frame in sorted(case.labels)] for own in cases]
    maps: list[list[np.ndarray]] = [[] for _ in cases]
    for parts in _of_each(model, [[_frame(case, frame, depth) for case, frame in own] for own in frames], batch_size):
        for own, logits in zip(maps, parts, strict=True):
            own += list(_label_maps(logits))
    for values, own_cases, own_frames, own_maps in zip(scores, cases, frames, maps, strict=True):
        found = {
            (case.patient, frame): label[..., : case.images[frame].shape[-1]]
            for (case, frame), label in zip(own_frames, own_maps, strict=True)
        }
        for case in own_cases:
            pred = {frame: found[case.patient, frame] for frame in sorted(case.labels)}
            rows = segmentation_rows(pred, case.labels, (1.0, 1.0, 1.0), full=False)
            values += [value for frame, _, _, value in rows if frame == "-"]
    return [float(np.mean(values)) for values in scores]
