"""From names to a built backbone with its weights."""

from __future__ import annotations

import fnmatch
import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from raylora.core.errors import InputError
from raylora.core.seeds import seed_of
from raylora.models import unet, vit
from raylora.models.arrays import write_arrays
from raylora.models.cinema_weights import pretrained_tensors
from raylora.models.draw import draw_weights
from raylora.models.files import find, is_pretraining
from raylora.models.seen import Seen, read_seen
from raylora.models.weights import check_tensors, read_tensors

DEFAULT_TARGETS = {"unet": ("conv",), "vit": ("qkv", "out_proj"), "cinema": ("q", "kv")}
"""Adapter targets where the config names none. Attention for transformers, as in Med-DualLoRA; every convolution for a U-Net."""

TASKS = {"unet": ("segmentation",), "vit": ("disease",), "cinema": ("segmentation", "disease")}
CLASSES = {"segmentation": 4, "disease": 2}
CHANNELS = {"segmentation": 1, "disease": 2}  # one frame; ED and ES
FIXED = {  # constructor arguments that are no sizes, and what decides them
    **dict.fromkeys(("out", "in_channels", "n_frames"), "the task decides it"),
    "image_size": "the key is data.size",
    "grad_checkpoint": "the key is model.checkpointing",
    "drop_path": "frozen blocks drop nothing",
}


def build(
    name: str,
    task: str,
    size: str,
    image_size: Sequence[int],
    sizes: Mapping[str, Any] | None = None,
    seed: int = 0,
    *,
    draw: bool = True,
) -> nn.Module:
    """A backbone with weights drawn from `seed` (or, without `draw`, to be filled): U-Net for segmentation, ViT for disease, CineMA for both.

    `sizes` overrides constructor arguments of the named `size`. Raises InputError for a model that does not do the task, an unknown size
    or argument, or images that the model does not take.
    """
    if task not in TASKS[name]:
        raise InputError(f"model.name: {name} does {' and '.join(TASKS[name])}, the task is {task}")
    module = {"unet": unet, "vit": vit, "cinema": _cinema}[name]
    sized = module() if callable(module) else module
    if size not in sized.SIZES:
        raise InputError(f"model.size: {name} comes as {', '.join(sized.SIZES)}, found {size!r}")
    if fixed := [key for key in sizes or {} if key in FIXED]:
        raise InputError(f"model.sizes: {fixed[0]!r} is no size: {FIXED[fixed[0]]}")
    arguments: dict[str, Any] = {**sized.SIZES[size], **(sizes or {})}
    if name == "cinema":
        make = sized.segmenter if task == "segmentation" else sized.classifier
        arguments = {**arguments, "image_size": tuple(image_size), "out": CLASSES[task]}
        if task == "disease":
            arguments["n_frames"] = CHANNELS[task]
    else:
        make = unet.UNet if name == "unet" else vit.ViTClassifier
        arguments = {**arguments, "in_channels": CHANNELS[task], "out": sized.SIZES[size].get("out", CLASSES[task])}
        if name == "vit":
            arguments["image_size"] = tuple(image_size)
    known = inspect.signature(make).parameters
    if name == "cinema":  # one table of sizes serves both of its networks
        arguments = {key: value for key, value in arguments.items() if key in known or key in (sizes or {})}
    unknown = [key for key in arguments if key not in known]
    if unknown:
        raise InputError(f"model.sizes: unknown {unknown[0]!r} (known: {', '.join(key for key in known if key not in FIXED)})")
    try:
        backbone = make(**{key: _tuples(value) for key, value in arguments.items()})
        if isinstance(backbone, unet.UNet):  # the others are built for one size
            backbone.require_size(image_size)
    except (TypeError, ValueError, RuntimeError, ArithmeticError) as error:
        raise InputError(f"model.sizes: {name} cannot be built: {error}") from None
    return draw_weights(backbone, torch.Generator().manual_seed(seed_of(seed, "weights") % 2**63)) if draw else backbone


def recompute(backbone: nn.Module, name: str) -> None:
    """Keep no activations for the backward pass but compute them again in it. Raises InputError for a network that does not offer it."""
    if not hasattr(backbone, "recompute_activations"):
        raise InputError(f"model.checkpointing: {name} does not offer it")
    backbone.recompute_activations()


def _cinema() -> Any:
    from raylora.models import cinema

    return cinema


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def weights_of(backbone: nn.Module) -> dict[str, np.ndarray]:
    """Every parameter by name, as copies in float32."""
    return {name: value.detach().to(torch.float32).numpy().copy() for name, value in backbone.named_parameters()}


def load_weights(own: Mapping[str, torch.Tensor], head_names: Sequence[str], weights: str | Path) -> Seen:
    """Read pre-trained weights into the backbone's parameters, exactly; only the head may be missing, since pre-training may have none.

    CineMA's pre-training checkpoint is recognised: what the model does not take of it (masks, its decoder, other views) is left out, and
    what it does not hold (positions, head, decoder) stays. Returns what the weights have seen. Raises InputError naming file and
    difference, and changes nothing then.
    """
    path = find(str(weights))
    tensors = read_tensors(path)
    if pretraining := is_pretraining(tensors):
        if not any(name.startswith("enc_down_dict.") for name in own):
            raise InputError(f"{path}: CineMA's pre-training checkpoint: expected model.name: cinema")
        tensors = pretrained_tensors(own, tensors, path)
    else:
        expected = {
            name: value for name, value in own.items() if name in tensors or not any(fnmatch.fnmatchcase(name, p) for p in head_names)
        }
        check_tensors(expected, tensors, path)
    for name, value in tensors.items():
        if not value.isfinite().all():
            raise InputError(f"{path}: {name} has values that are not finite")
    with torch.no_grad():
        for name, value in tensors.items():
            own[name].copy_(value)
    return replace(read_seen(path), told=True) if pretraining else read_seen(path)  # CineMA's has seen none of the sets here


def save_weights(path: Path, weights: Mapping[str, np.ndarray], *, half: bool, seen: Seen, about: Mapping[str, Any]) -> None:
    """Write weights, what they have seen and how they were made; `half` stores float16."""
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {name: np.ascontiguousarray(array, np.float16 if half else np.float32) for name, array in sorted(weights.items())}
    write_arrays(path, arrays, {**seen.metadata(), "made_by": json.dumps(about, sort_keys=True)})
