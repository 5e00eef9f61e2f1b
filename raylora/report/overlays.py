"""Prediction and truth drawn on the images of the best, the median and the worst test patient."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from safetensors import SafetensorError
from safetensors.numpy import load_file

from raylora.core.errors import InputError
from raylora.metrics.rows import FROZEN, patient_scores
from raylora.metrics.segmentation import STRUCTURES
from raylora.report.figures import DARK, STRUCTURE_COLOURS, Picture, Theme, figure
from raylora.report.runs import Run
from raylora.report.table import Table, decimal, words

LEVELS = ("basal", "mid", "apical")
MARGIN = 10  # voxels of the prepared grid around the heart


@dataclass(frozen=True)
class Overlay:
    """One patient of one model: what is drawn in one row."""

    model: str
    patient: str
    dice: float | None
    frames: Mapping[str, Mapping[str, np.ndarray]]  # ED, ES -> image, pred, truth, each (x, y, z)


def overlay_pictures(run: Run) -> list[Picture]:
    """The trained models in one picture, the frozen one in another, as far as `plots/overlays.safetensors` holds them."""
    overlays = read_overlays(run)
    trained = [o for o in overlays if o.model != FROZEN]
    frozen = [o for o in overlays if o.model == FROZEN]
    made = []
    if trained:
        made.append(_picture("overlays", "Prediction and truth on test patients", _ranked(trained)))
    if frozen:
        made.append(_picture("overlays_frozen", "The frozen model's prediction on test patients", _ranked(frozen)))
    return made


def read_overlays(run: Run) -> list[Overlay]:
    """Every (model, patient) of the file, with the patient's Dice from the rows. Raises InputError if the file cannot be read."""
    path = run.folder / "plots" / "overlays.safetensors"
    if not path.is_file():
        return []
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None
    found: dict[tuple[str, str], dict[str, dict[str, np.ndarray]]] = {}
    for name, array in sorted(tensors.items()):
        model, patient, frame, kind = name.split("/")
        found.setdefault((model, patient), {}).setdefault(frame, {})[kind] = array
    dice: dict[tuple[str, str], float] = {}
    for (model, _), patients in run.test.patients.items():
        dice |= {(model, patient): value for patient, value in patient_scores(patients, "dice").items()}
    return [Overlay(model, patient, dice.get((model, patient)), frames) for (model, patient), frames in found.items()]


def slices_to_draw(label: np.ndarray) -> tuple[int, int, int]:
    """Basal, mid and apical slice of a label map (x, y, z): an eighth, the half and seven eighths of the slices that show the heart.

    The base is the end with the larger area. Without a heart: of all slices.
    """
    area = (label > 0).sum((0, 1))
    shown = np.flatnonzero(area) if area.any() else np.arange(label.shape[2])
    low, mid, high = (int(shown[round(part * (len(shown) - 1))]) for part in (0.125, 0.5, 0.875))
    return (low, mid, high) if area[low] >= area[high] else (high, mid, low)


def _ranked(overlays: Sequence[Overlay]) -> list[tuple[str, Overlay]]:
    """Best first, with the word for its rank."""
    ordered = sorted(overlays, key=lambda o: (-1.0 if o.dice is None else -o.dice, o.patient))
    named = {1: ["Median"], 2: ["Best", "Worst"], 3: ["Best", "Median", "Worst"]}
    ranks = named.get(len(ordered), [f"No. {i + 1}" for i in range(len(ordered))])
    return list(zip(ranks, ordered, strict=True))


def _picture(name: str, title: str, ranked: Sequence[tuple[str, Overlay]]) -> Picture:
    frames = [frame for frame in ("ED", "ES") if any(frame in o.frames for _, o in ranked)]

    def draw(theme: Theme) -> Figure:
        columns = len(frames) * len(LEVELS)
        made, axes = figure(theme, 1.45 * columns + 0.6, 1.5 * len(ranked) + 0.75, rows=len(ranked), columns=columns)
        for row, (rank, overlay) in enumerate(ranked):
            for column, (frame, level) in enumerate((f, i) for f in frames for i in range(len(LEVELS))):
                one = axes[row * columns + column]
                _panel(one, overlay.frames.get(frame), level, theme)
                if row == 0:
                    one.set_title(f"{frame}, {LEVELS[level]}", fontsize=9, fontweight="normal", loc="center")
                if column == 0:
                    score = "" if overlay.dice is None else f"\nDice {overlay.dice:.3f}"
                    one.set_ylabel(f"{rank}{score}", fontsize=9)
        made.legend(handles=_keys(theme), loc="outside lower center", ncols=5, frameon=False, fontsize=8.5)
        return made

    said = "; ".join(f"{rank.lower()}: {o.patient}" + ("" if o.dice is None else f", Dice {o.dice:.3f}") for rank, o in ranked)
    rows = tuple((rank, o.patient, o.model, o.dice) for rank, o in ranked)
    data = Table(title, (words("Rank"), words("Patient"), words("Model of"), decimal("Dice")), rows)
    alt = f"Short-axis slices with contours of prediction (solid) and truth (dotted) for {said}."
    return Picture(name, title, alt, draw, data, theme=DARK)


def _panel(axes: Axes, arrays: Mapping[str, np.ndarray] | None, level: int, theme: Theme) -> None:
    """One slice: the image in grey, the truth dotted, the prediction solid."""
    axes.set(xticks=[], yticks=[])
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    if arrays is None:
        axes.text(0.5, 0.5, "n/a", ha="center", va="center", transform=axes.transAxes)
        return
    image, pred, truth = (np.asarray(arrays[kind]) for kind in ("image", "pred", "truth"))
    z = slices_to_draw(truth)[level]
    box = _window((pred > 0) | (truth > 0))
    axes.imshow(image[..., z][box].T, cmap="gray", vmin=0, vmax=1, interpolation="bilinear")
    for structure, colour in STRUCTURE_COLOURS.items():
        for array, drawn, width, style in ((pred, colour, 1.7, "solid"), (truth, "#ffffff", 1.0, (0, (1, 1.3)))):
            mask = _enclosed(array[..., z][box], structure).T.astype(float)
            if mask.any() and not mask.all():
                axes.contour(mask, levels=[0.5], colors=[drawn], linewidths=width, linestyles=[style])


def _enclosed(label: np.ndarray, structure: str) -> np.ndarray:
    """What a structure's contour encloses: for the myocardium the cavity too, so that its line is the epicardium alone."""
    return (label == STRUCTURES["MYO"]) | (label == STRUCTURES["LV"]) if structure == "MYO" else label == STRUCTURES[structure]


def _window(mask: np.ndarray) -> tuple[slice, slice]:
    """A square around the heart of all slices with a margin, inside the image, as slices along x and y; everything without a heart."""
    if not mask.any():
        return slice(None), slice(None)
    hits = [np.flatnonzero(mask.any(axis=(1 - axis, 2))) for axis in (0, 1)]
    side = max(int(hit[-1] - hit[0]) for hit in hits) + 1 + 2 * MARGIN
    spans = []
    for hit, length in zip(hits, mask.shape[:2], strict=True):
        start = int(np.clip((hit[0] + hit[-1] + 1 - side) // 2, 0, max(0, length - side)))
        spans.append(slice(start, min(length, start + side)))
    return spans[0], spans[1]


def _keys(theme: Theme) -> list[Line2D]:
    """What the lines mean."""
    named = {"LV": "LV cavity", "MYO": "epicardium", "RV": "RV cavity"}
    lines = [Line2D([], [], color=colour, label=f"{named[name]}, prediction") for name, colour in STRUCTURE_COLOURS.items()]
    return [*lines, Line2D([], [], color=theme.ink, linestyle=(0, (1, 1.2)), label="truth")]
