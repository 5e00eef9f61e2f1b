"""What is wrong with a client's training data: wrong labels, an annotator's style, frames and slices that are missing.

Validation, rating and test patients stay as they are. Every draw follows from (seed, client, study, frame): neither the division of
patients nor the process that opens them moves one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from raylora.core.seeds import generator
from raylora.data.cases import LV, MYO, RV
from raylora.data.preprocess import PreparedFrame
from raylora.data.shards import PreparedStudy

NEIGHBOURS = ((-1, 0), (1, 0), (0, -1), (0, 1))


@dataclass(frozen=True, kw_only=True)
class Damage:
    """Of one client; nothing as it stands."""

    client: str = ""
    seed: int = 0
    label_noise: float = 0.0  # chance that a patient's class is wrong; that a voxel takes the label of a neighbour in its slice
    contour_mm: float = 0.0  # how much farther out contours are drawn; negative: farther in
    left_out: int = 0  # the structure that is never drawn; 0: none
    missing_frames: float = 0.0  # chance that one of a study's frames is missing
    missing_slices: float = 0.0  # chance of each slice of each frame
    flipped: bool = False  # a byzantine client's labels: class c reads as the last class minus c

    @property
    def harmful(self) -> bool:
        return self != Damage(client=self.client, seed=self.seed)

    def study(self, study: PreparedStudy) -> PreparedStudy:
        """The study as this client has it for training; the same object if nothing is wrong. A missing frame is an image of zeros without a
        label, a missing slice is zero in image and label."""
        if not self.harmful:
            return study
        missing = self.missing_frame(study.id, tuple(study.frames))
        frames = {name: _nothing(frame) if name == missing else self._frame(study, name, frame) for name, frame in study.frames.items()}
        return replace(study, frames=frames)

    def missing_frame(self, study: str, frames: tuple[str, ...]) -> str | None:
        """The frame that a study lacks, if it has more than one."""
        draw = generator(self.seed, f"missing frames {study}", client=self.client)
        if len(frames) < 2 or not draw.random() < self.missing_frames:
            return None
        return sorted(frames)[int(draw.integers(len(frames)))]

    def diseased(self, study: str, label: int) -> int:
        """A patient's class (0 or 1) as this client has it."""
        if not self.harmful:
            return label
        wrong = bool(generator(self.seed, f"label noise {study}", client=self.client).random() < self.label_noise)
        return 1 - label if wrong != self.flipped else label

    def _frame(self, study: PreparedStudy, name: str, frame: PreparedFrame) -> PreparedFrame:
        image, label = frame.image, frame.label
        if label is not None:
            label = shifted_contours(label, self.contour_mm, study.geometry.spacing_mm[:2])
            label = np.where(label == self.left_out, 0, label).astype(label.dtype) if self.left_out else label
            label = noisy(label, self.label_noise, generator(self.seed, f"label noise {study.id} {name}", client=self.client))
            label = (max(LV, MYO, RV) - label).astype(label.dtype) if self.flipped else label
        if self.missing_slices:
            gone = (
                generator(self.seed, f"missing slices {study.id} {name}", client=self.client).random(image.shape[2]) < self.missing_slices
            )
            image = np.where(gone, np.float32(0), image)
            label = None if label is None else np.where(gone, np.uint8(0), label)
        return replace(frame, image=image, label=label)


CLEAN = Damage()


def _nothing(frame: PreparedFrame) -> PreparedFrame:
    return replace(frame, image=np.zeros_like(frame.image), label=None)


def noisy(label: np.ndarray, chance: float, draw: np.random.Generator) -> np.ndarray:
    """Each voxel of (x, y, z) takes, with this chance, the label of one of its four neighbours in the slice, each as likely: contours
    become ragged, the inside of a structure stays. At the border of the image it is its own neighbour."""
    if chance <= 0:
        return label
    padded = np.pad(label, ((1, 1), (1, 1), (0, 0)), mode="edge")
    around = np.stack([padded[1 + dx : 1 + dx + label.shape[0], 1 + dy : 1 + dy + label.shape[1]] for dx, dy in NEIGHBOURS])
    picked = np.take_along_axis(around, draw.integers(4, size=(1, *label.shape)), axis=0)[0]
    return np.where(draw.random(label.shape) < chance, picked, label).astype(label.dtype)


def shifted_contours(label: np.ndarray, offset_mm: float, spacing_mm: tuple[float, ...]) -> np.ndarray:
    """Every contour drawn `offset_mm` farther out (negative: in), slice by slice: the outlines of cavity, epicardium (cavity and wall) and
    right ventricle. Where the right ventricle would grow into the left, the left ventricle stays in front."""
    if offset_mm == 0:
        return label
    out = np.zeros_like(label)
    for z in range(label.shape[2]):
        plane = label[:, :, z]
        for value, inside in ((RV, plane == RV), (MYO, (plane == MYO) | (plane == LV)), (LV, plane == LV)):
            if inside.any() and (value != MYO or (plane == MYO).any()):
                out[:, :, z][_outline_mm(inside, spacing_mm) < offset_mm] = value
    return out


def _outline_mm(inside: np.ndarray, spacing_mm: tuple[float, ...]) -> np.ndarray:
    """The signed distance (x, y) of each voxel's centre to the outline, which lies half a voxel outside the outermost centres; negative
    inside."""
    from scipy.ndimage import distance_transform_edt  # where no annotator errs, processes start sooner without it

    half, steps = min(spacing_mm[0], spacing_mm[1]) / 2, (spacing_mm[0], spacing_mm[1])
    outside = distance_transform_edt(~inside, sampling=steps) - half
    if inside.all():
        return np.full(inside.shape, -np.inf)
    return np.asarray(np.where(inside, half - distance_transform_edt(inside, sampling=steps), outside))
