"""From names to a built backbone with its weights."""

from __future__ import annotations

import fnmatch
import inspect
import json
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
import torch
from torch import nn

from raylora.core.errors import InputError
from raylora.core.seeds import seed_of
from raylora.models import unet, vit
from raylora.models.draw import draw_weights

DEFAULT_TARGETS = {"unet": ("conv",), "vit": ("qkv", "out_proj"), "cinema": ("q", "kv")}
"""Adapter targets where the config names none. Attention for transformers, as in Med-DualLoRA; every convolution for a U-Net."""

TASKS = {"unet": ("segmentation",), "vit": ("disease",), "cinema": ("segmentation", "disease")}
CLASSES = {"segmentation": 4, "disease": 2}
CHANNELS = {"segmentation": 1, "disease": 2}  # one frame; ED and ES


def build(name: str, task: str, size: str, image_size: Sequence[int], sizes: Mapping[str, Any] | None = None, seed: int = 0) -> nn.Module:
    """A backbone with weights drawn from `seed`: U-Net for segmentation, ViT for disease, CineMA for both.

    `sizes` overrides constructor arguments of the named `size`. Raises InputError for a model that does not do the task, an unknown size
    or an unknown argument.
    """
    if task not in TASKS[name]:
        raise InputError(f"model.name: {name} does {' and '.join(TASKS[name])}, the task is {task}")
    module = {"unet": unet, "vit": vit, "cinema": _cinema}[name]
    sized = module() if callable(module) else module
    if size not in sized.SIZES:
        raise InputError(f"model.size: {name} comes as {', '.join(sized.SIZES)}, found {size!r}")
    arguments: dict[str, Any] = {**sized.SIZES[size], **(sizes or {})}
    if name == "cinema":
        make = sized.segmenter if task == "segmentation" else sized.classifier
        arguments = {**arguments, "image_size": tuple(image_size), "out": CLASSES[task]}
        if task == "disease":
            arguments["n_frames"] = CHANNELS[task]
    else:
        make = unet.UNet if name == "unet" else vit.ViTClassifier
        arguments = {**arguments, "in_channels": CHANNELS[task], "out": CLASSES[task]}
        if name == "vit":
            arguments["image_size"] = tuple(image_size)
    known = inspect.signature(make).parameters
    if name == "cinema":  # one table of sizes serves both of its networks
        arguments = {key: value for key, value in arguments.items() if key in known or key in (sizes or {})}
    unknown = [key for key in arguments if key not in known]
    if unknown:
        raise InputError(f"model.sizes: unknown {unknown[0]!r} (known: {', '.join(known)})")
    try:
        backbone = make(**{key: _tuples(value) for key, value in arguments.items()})
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"model.sizes: {name} cannot be built: {error}") from None
    return draw_weights(backbone, torch.Generator().manual_seed(seed_of(seed, "weights") % 2**63))


def _cinema() -> Any:
    from raylora.models import cinema

    return cinema


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def weights_of(backbone: nn.Module) -> dict[str, np.ndarray]:
    """Every parameter by name, as copies in float32."""
    return {name: value.detach().to(torch.float32).numpy().copy() for name, value in backbone.named_parameters()}


def shipped(name: str) -> Path | None:
    """The path of weights that come with the package (`phantom_unet`, `phantom_vit`), or None."""
    path = Path(str(resources.files("raylora.models") / "weights" / f"{name}.safetensors"))
    return path if path.is_file() and "/" not in name else None


def load_weights(backbone: nn.Module, weights: str) -> dict[str, Any]:
    """Read pre-trained weights (a path, or the name of shipped weights) into the backbone, exactly; only the head may be missing.

    Returns what the file says of itself (`seen`: what it was trained on, ...). Raises InputError naming file and difference.
    """
    path = shipped(weights) or Path(weights).expanduser()
    if not path.is_file():
        names = ", ".join(sorted(p.stem for p in Path(str(resources.files("raylora.models") / "weights")).glob("*.safetensors")))
        raise InputError(f"model.weights: {weights}: no such file, and not the name of shipped weights ({names or 'none'})")
    try:
        arrays = safetensors.numpy.load_file(path)
        with safetensors.safe_open(path, "np") as opened:
            about = opened.metadata() or {}
    except (OSError, safetensors.SafetensorError, ValueError, TypeError) as error:
        raise InputError(f"model.weights: {path}: not a readable safetensors file: {error}") from None
    own = dict(backbone.named_parameters())
    optional = {name for name in own if any(fnmatch.fnmatchcase(name, pattern) for pattern in backbone.head_names)}
    missing, unexpected = sorted(set(own) - set(arrays) - optional), sorted(set(arrays) - set(own))
    shapes = [name for name in sorted(set(own) & set(arrays)) if tuple(own[name].shape) != arrays[name].shape]
    if missing or unexpected or shapes:
        found = f"missing {missing[:3]}, unexpected {unexpected[:3]}" if missing or unexpected else ""
        for name in shapes[:1]:
            found += f"{'; ' if found else ''}{name} is {arrays[name].shape}, expected {tuple(own[name].shape)}"
        raise InputError(f"model.weights: {path}: weights of another architecture: {found}")
    with torch.no_grad():
        for name, array in arrays.items():
            if not np.isfinite(array).all():
                raise InputError(f"model.weights: {path}: {name} has values that are not finite")
            own[name].copy_(torch.from_numpy(array.astype(np.float32)))
    return {key: json.loads(value) for key, value in about.items() if key in ("seen", "config", "seed")}


def save_weights(path: Path, weights: Mapping[str, np.ndarray], *, half: bool = False, **about: Any) -> None:
    """Write weights and what is to be said of them; `half` stores float16."""
    dtype = np.float16 if half else np.float32
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {name: np.ascontiguousarray(array, dtype) for name, array in sorted(weights.items())}
    safetensors.numpy.save_file(arrays, path, metadata={key: json.dumps(value) for key, value in about.items()})
