"""`raylora pretrain`: from a configuration to a safetensors file that says how it was made and what it has seen."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from raylora.config import Pretrain
from raylora.core.errors import InputError
from raylora.core.files import require_writable
from raylora.data import obtain
from raylora.data.manifest import read_manifest
from raylora.data.shards import PreparedSet
from raylora.data.transforms import augmentation
from raylora.models import zoo
from raylora.models.seen import Seen
from raylora.training import pretrain
from raylora.training.samples import Frames, Samples, Studies

Say = Callable[[str, int, int], None]


def make(config: Pretrain, out: Path, say: Say = lambda what, done, total: None) -> Path:
    """Pre-train the configured network on its population and write `out`. Raises InputError if `out` exists."""
    if out.exists():
        raise InputError(f"--output {out}: exists already")
    require_writable(out, "--output")
    config.model.require_defaults("model", ("weights", "weights_folder"), "pre-training starts from drawn weights")
    config.model.require_defaults("model", ("head", "decoder"), "pre-training trains every weight")
    parts = ("protocol", "split", "split_seed", "fractions", "rating_to_training", "allow_seen")
    config.data.require_defaults("data", parts, "pre-training takes every study")
    if config.task == "disease" and config.model.name != "vit":
        raise InputError(f"model.name: masked auto-encoding is for the vit, found {config.model.name}")
    torch.set_num_threads(config.threads)
    folders = obtain.prepared(config.data, say)
    sets = [PreparedSet.open(folder) for folder in folders]
    network = zoo.build(config.model.name, config.task, config.model.size, config.data.size, config.model.sizes, config.seed)
    if config.model.checkpointing:
        zoo.recompute(network, config.model.name)
    samples = _samples(config, sets)

    def report(step: int, steps: int, loss: float) -> None:
        say(f"pre-training, loss {loss:.4f}", step, steps)

    common = {
        "steps": config.steps,
        "batch_size": config.batch_size,
        "lr": config.lr,
        "weight_decay": config.weight_decay,
        "seed": config.seed,
        "report": report,
    }
    if config.task == "segmentation":
        pretrain.supervised(network, samples, **common)
    else:
        pretrain.masked(network, samples, mask=config.mask, **common)
    weights = zoo.weights_of(network)
    if config.task == "disease":  # the head has learnt nothing
        weights = {name: value for name, value in weights.items() if name not in network.head_names}
    cases = frozenset(row.source_sha256 for folder in folders for row in read_manifest(folder).rows)
    seen = Seen(cases=cases, phantom_seeds=frozenset(config.data.phantom_seeds))
    zoo.save_weights(out, weights, half=config.half, seen=seen, about=config.model_dump(mode="json", exclude_defaults=True))
    return out


def _samples(config: Pretrain, sets: list[PreparedSet]) -> Samples:
    studies = [opened.study(i) for opened in sets for i in opened.ids]
    changes = augmentation(config.augment, config.data.spacing_mm)
    depth = config.data.size[2]
    if config.task == "disease":
        return Studies([tuple(s.frames[f].image for f in ("ED", "ES")) for s in studies], [0] * len(studies), depth, changes)
    frames = [frame for s in studies for frame in s.frames.values() if frame.label is not None]
    if not frames:
        raise InputError(f"data: no study with a label among {len(studies)}: nothing to pre-train segmentation on")
    return Frames([f.image for f in frames], [f.label for f in frames], depth, changes)
