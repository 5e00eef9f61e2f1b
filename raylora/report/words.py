"""Names of metrics, and lists of names, for people."""

from collections.abc import Iterable

_WORDS = {
    "dice": "Dice",
    "dice_grid": "Dice, prepared grid",
    "hd95_mm": "HD95 (mm)",
    "lv_ef_error": "LVEF error (points)",
    "volume_ml": "Volume (ml)",
    "volume_true_ml": "True volume (ml)",
    "volume_error_ml": "Volume error (ml)",
    "balanced_accuracy": "Balanced accuracy",
    "specificity": "Specificity",
    "sensitivity": "Sensitivity",
    "auc": "ROC-AUC",
    "accuracy": "Accuracy",
    "likelihood": "Probability given to the truth",
}


def metric_words(metric: str, *, arrow: bool = False) -> str:
    """`dice_lv` reads "Dice, LV"; `balanced_accuracy_tuned` "Balanced accuracy, tuned"; an arrow down: lower is better."""
    base = metric.removesuffix("_tuned")
    said = _WORDS.get(base, base) + (", tuned" if metric != base else "")
    for structure in ("lv", "myo", "rv"):
        if base.endswith(f"_{structure}") and base.removesuffix(f"_{structure}") in _WORDS:
            said = f"{_WORDS[base.removesuffix(f'_{structure}')]}, {structure.upper()}"
    return f"{said} ↓" if arrow and lower_is_better(metric) else said


def inside(metric: str) -> str:
    """A metric's name within a sentence."""
    said = metric_words(metric)
    return said if said[1:2].isupper() or said.startswith("Dice") else said[0].lower() + said[1:]


def lower_is_better(metric: str) -> bool:
    return metric.startswith(("hd95_mm", "lv_ef_error", "volume_error_ml"))


def listing(names: Iterable[str], most: int = 6) -> str:
    """Names in a sentence: a, b and 3 more."""
    all_names = list(names)
    if len(all_names) <= most:
        return ", ".join(all_names)
    return f"{', '.join(all_names[: most - 1])} and {len(all_names) - most + 1} more"
