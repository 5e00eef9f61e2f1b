"""The model card of an exported adapter: where it comes from, under which terms, what it reached."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from raylora.data.manifest import CROPS
from raylora.metrics.matrix import PRIMARY
from raylora.models import files
from raylora.report.marks import marks_of
from raylora.report.runs import Run
from raylora.report.tables import reported_metrics
from raylora.report.words import metric_words

TERMS = {
    "phantom": ("synthetic hearts made by raylora", "no patient data"),
    "acdc": ("ACDC (Bernard et al., IEEE TMI 2018)", "CC BY-NC-SA 4.0"),
    "mnms": ("M&Ms (Campello et al., IEEE TMI 2021)", "research use, see the challenge's terms"),
    "mnms2": ("M&Ms-2 (Martin-Isla et al., IEEE JBHI 2023)", "research use, see the challenge's terms"),
}
"""Data set -> what it is, its terms."""

BASES = {
    "cinema": ("CineMA (Fu et al., arXiv 2506.00679)", "MIT"),
    "unet": ("a 3-D U-Net with the names of MONAI's DynUNet", "Apache-2.0"),
    "vit": ("a 3-D vision transformer with the names of MONAI's ViT", "Apache-2.0"),
}


def card(run: Run, model_of: str, *, merged: bool) -> str:
    """Markdown with the front matter of a model hub."""
    s, config = run.summary, run.config
    sets = datasets(config)
    private = "" if model_of == "global" else f", with the private parts of client {model_of}"
    front = yaml.safe_dump(_front_matter(config, sets, merged), sort_keys=False)
    parts = [
        f"# {s['name']}: {'merged weights' if merged else 'LoRA adapter'} by {run.strategy}",
        f"The {'shared model' if model_of == 'global' else 'model of client ' + model_of} of one federated run of raylora"
        f" on {run.task}, after {s.get('rounds')} rounds{private}.",
        *(f"**{mark}.**" for mark in [*marks_of(s), *(remark.rstrip(".") for remark in run.remarks())]),
        "## Base model\n" + _base(config),
        "## Data\n" + _data(config, sets),
        "## How it was trained\n" + _training(run),
        "## Results\n" + _results(run, model_of),
        "## Use\n" + (_use_merged() if merged else _use()),
        "## Licence\n" + _licence(config, sets),
    ]
    return f"---\n{front}---\n\n" + "\n\n".join(parts) + "\n"


def datasets(config: Mapping[str, Any]) -> list[str]:
    """The names of the run's data sets."""
    named = config["data"]["dataset"]
    return sorted({source["dataset"] for source in named}) if isinstance(named, list) else [named]


def _front_matter(config: Mapping[str, Any], sets: Sequence[str], merged: bool) -> dict[str, Any]:
    name, weights = config["model"]["name"], config["model"].get("weights")
    free = set(sets) == {"phantom"} and not _of_others(config)
    found: dict[str, Any] = {"library_name": "raylora" if merged else "peft", "license": "apache-2.0" if free else "other"}
    if name == "cinema" and weights is not None and files.is_published(weights):
        found["base_model"] = "mathpluscode/CineMA"
    return {**found, "tags": ["federated-learning", "lora", "cardiac-mri", str(config["task"])]}


def _of_others(config: Mapping[str, Any]) -> bool:
    """Whether the base's weights are a file that does not come with raylora: what it was made of, and its terms, are its owner's to say."""
    weights = config["model"].get("weights")
    return weights is not None and not (files.SHIPPED / f"{weights}.safetensors").is_file()


def _base(config: Mapping[str, Any]) -> str:
    model = config["model"]
    what, licence = BASES[model["name"]]
    file = str(model.get("weights") or "").rsplit("/", 1)[-1]
    weights = f"weights `{file}`" if file else "random weights (their seed is in `raylora.json`)"
    terms = ", under the terms of their owner" if _of_others(config) else ""
    return f"{what}, size {model['size']}, licence {licence}; {weights}{terms}."


def _data(config: Mapping[str, Any], sets: Sequence[str]) -> str:
    data = config["data"]
    lines = [f"- {TERMS[name][0]}: {TERMS[name][1]}" for name in sets]
    spacing, size = (" x ".join(f"{v:g}" for v in data[key]) for key in ("spacing_mm", "size"))
    channels = "ED and ES as two channels" if config["task"] == "disease" else "one frame"
    crop = f"cropped around {CROPS[data['crop']]}, percentiles 0.95 to 99.5 scaled to 0-1"
    lines.append(f"- input: {channels}, {size} voxels of {spacing} mm, {crop}")
    return "\n".join(lines)


def _training(run: Run) -> str:
    s, config = run.summary, run.config
    options = ", ".join(f"{key} {value}" for key, value in config["strategy"].items() if key != "name") or "defaults"
    lora, training = config["lora"], config["training"]
    length = f"{training['local_steps']} local steps" if training.get("local_steps") else f"{training.get('local_epochs')} local epochs"
    patients = s.get("patients") or {}
    held = ", ".join(f"{client} ({parts['train']})" for client, parts in patients.items())
    return "\n".join(
        [
            f"- strategy {run.strategy} ({options}), clients by {config['clients']['by']}, training patients: {held or ', '.join(run.clients)}",
            f"- rank {lora['rank']}, alpha {lora['alpha']:g}, blocks {lora['blocks']}, targets {lora['targets'] or 'the default ones'}",
            f"- {s.get('rounds')} rounds of {length}, batch {training['batch_size']}, lr {training['lr']:g}, seed {run.seed}",
            f"- config {(s.get('config_sha256') or '')[:16]}, data {(s.get('data_sha256') or '')[:16]}, versions {json.dumps(s.get('versions') or {})}",
        ]
    )


def _results(run: Run, model_of: str) -> str:
    """Each client's own model on its own test patients, and this one's row of the cross-client matrix."""
    final = run.final()
    primary = PRIMARY[run.task]
    shown = [m for m in reported_metrics(run.task) if m in final and not m.startswith(("hd95_mm_", "volume"))]
    heads = " | ".join(metric_words(m, arrow=True) for m in shown)
    lines = ["Each client's own model on its own test patients:", "", f"| client | {heads} |"]
    lines.append("|---|" + "---|" * len(shown))
    for client in run.clients:
        cells = [_number((final[m].get("per_client") or {}).get(client)) for m in shown]
        lines.append(f"| {client} | " + " | ".join(cells) + " |")
    block = final.get(primary) or {}
    mean, before = _number(block.get("mean")), _number(block.get("frozen"))
    lines += ["", f"Mean {metric_words(primary)} {mean} (n = {block.get('n')}); before training {before}."]
    matrix = run.cross_client(primary)
    if model_of in matrix["rows"]:
        row = matrix["values"][matrix["rows"].index(model_of)]
        cells = ", ".join(f"{client} {_number(value)}" for client, value in zip(matrix["columns"], row, strict=True))
        lines.append(f"This model on every client's test patients: {cells}.")
    return "\n".join(lines)


def _use() -> str:
    return "\n".join(
        [
            "```python",
            "from peft import PeftModel",
            "from raylora.export import base_model",
            "",
            'model = PeftModel.from_pretrained(base_model("THIS_FOLDER"), "THIS_FOLDER")  # logits = model(images)',
            "```",
            "Heads (and a decoder that was trained) come with it, as `modules_to_save`.",
        ]
    )


def _use_merged() -> str:
    return (
        "`model.safetensors` holds the whole network: `raylora.export.base_model(THIS_FOLDER)` builds it, `model.weights: "
        "THIS_FOLDER/model.safetensors` goes on from it in raylora; for `load_state_dict` of MONAI's `DynUNet` with `strict=False` (its "
        "`skip_layers.*` are other names for the same)."
    )


def _licence(config: Mapping[str, Any], sets: Sequence[str]) -> str:
    terms = [f"{TERMS[name][0]}: {TERMS[name][1]}" for name in sets]
    base = "the terms of its weights" if _of_others(config) else BASES[config["model"]["name"]][1]
    return (
        f"Trained weights follow from the base ({base}) and from the data ({'; '.join(terms)}). "
        "Whoever passes them on must respect both. For research; not a medical device."
    )


def _number(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.3f}"
