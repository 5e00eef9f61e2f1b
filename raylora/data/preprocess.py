"""One case onto the prepared grid."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from raylora.core.errors import InputError
from raylora.data import cases, grid
from raylora.data.cases import Case
from raylora.data.manifest import PrepareOptions

MAX_GRID_VOXELS = 1 << 26


@dataclass(frozen=True, kw_only=True)
class PreparedFrame:
    """One frame on the prepared grid."""

    image: np.ndarray  # (X, Y, Z) float32 in 0-1, zero where there is no image
    label: np.ndarray | None  # (X, Y, Z) uint8
    native_label: np.ndarray | None  # (nx, ny, nz) uint8, untouched but for the label convention


@dataclass(frozen=True, kw_only=True)
class PreparedCase:
    """A case as it is stored: z is not padded."""

    frames: Mapping[str, PreparedFrame]
    geometry: grid.Geometry
    crop: str  # centre | motion | oracle
    cut_voxels: int  # labelled native voxels, of all frames, whose centre lies outside the grid


def prepare_case(case: Case, options: PrepareOptions) -> PreparedCase:
    """Resample, crop, clip and scale. Raises InputError for an image without contrast, and for a grid too fine for this study."""
    native, spacing, target = case.frames["ED"].image.shape, case.spacing_mm, options.spacing_mm
    whole = grid.resampled_shape(native, spacing, target)
    size = (options.size[0], options.size[1])
    for shape in (whole, (*size, whole[2])):
        if math.prod(shape) > MAX_GRID_VOXELS:
            raise InputError(
                f"{case.study.frames['ED'].image}: spacing_mm {target} would make {shape} voxels of it, at most {MAX_GRID_VOXELS} are made"
            )
    centre, crop = _crop_centre(case, options, whole)
    geometry = grid.Geometry(
        native_shape=native,
        native_spacing_mm=spacing,
        affine=tuple(tuple(float(v) for v in line) for line in case.affine),
        spacing_mm=target,
        start=grid.start_around(centre, whole, size),
        shape=(*size, whole[2]),
    )
    frames = {}
    for name, frame in case.frames.items():
        image, label = _on_grid(frame, geometry, whole, options.clip_percent)
        if image is None:
            raise InputError(f"{case.study.frames[name].image}: {name}: no contrast inside the crop")
        frames[name] = PreparedFrame(image=image, label=label, native_label=frame.label)
    return PreparedCase(frames=frames, geometry=geometry, crop=crop, cut_voxels=_cut_voxels(case, geometry))


def _crop_centre(case: Case, options: PrepareOptions, whole: grid.Size3) -> tuple[tuple[float, float], str]:
    """The crop's middle (resampled voxels) and how it was found: centre, motion or oracle."""
    ed, es = case.frames["ED"], case.frames["ES"]
    if options.crop == "label" and ed.label is not None and (ed.label == cases.LV).any():
        label = grid.nearest(ed.label, case.spacing_mm, options.spacing_mm, (0, 0, 0), whole)
        if not (label == cases.LV).any():
            raise InputError(
                f"{case.study.frames['ED'].label}: spacing_mm {options.spacing_mm} leaves no LV to centre the crop at (crop: label)"
            )
        return grid.label_centre(label), "oracle"
    if options.crop == "motion":
        native = grid.motion_centre(ed.image, es.image, case.spacing_mm)
        x, y = ((n + 0.5) * s / t for n, s, t in zip(native, case.spacing_mm, options.spacing_mm, strict=False))
        return (x, y), "motion"
    return grid.image_centre(whole), "centre"


def _on_grid(frame: cases.Frame, geometry: grid.Geometry, whole: grid.Size3, clip_percent: tuple[float, float]):
    """(image, label); padding is zero and takes no part in the percentiles. The image is None if it has no contrast."""
    spacing, target = geometry.native_spacing_mm, geometry.spacing_mm
    kept = grid.overlap(geometry.start, geometry.shape, whole)
    start = tuple(max(0, s) for s in geometry.start)
    shape = tuple(part.stop - part.start for part in kept)
    unit = grid.scale_to_unit(grid.linear(frame.image, spacing, target, start, shape), clip_percent)
    if unit is None:
        return None, None
    image = np.zeros(geometry.shape, np.float32)
    image[kept] = unit
    if frame.label is None:
        return image, None
    label = np.zeros(geometry.shape, np.uint8)
    label[kept] = grid.nearest(frame.label, spacing, target, start, shape)
    return image, label


def _cut_voxels(case: Case, geometry: grid.Geometry) -> int:
    inside = []
    for axis in range(3):
        position = grid.source_position(axis, geometry.spacing_mm, geometry.native_spacing_mm, (0, 0, 0), geometry.native_shape)
        position = position - geometry.start[axis]
        inside.append((position >= -0.5) & (position < geometry.shape[axis] - 0.5))
    labels = [frame.label for frame in case.frames.values() if frame.label is not None]
    return sum(int(np.count_nonzero(label) - np.count_nonzero(label[np.ix_(*inside)])) for label in labels)
