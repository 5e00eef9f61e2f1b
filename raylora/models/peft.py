"""Adapter folders in PEFT's format: everything that was added to the original base, as one pair a layer.

The files are written without importing peft (which takes seconds and transformers with it); a test opens them with peft's own loader.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from raylora.core import lowrank
from raylora.core.files import read_json_object
from raylora.core.types import Tree
from raylora.models.arrays import read_arrays, write_arrays

PREFIX = "base_model.model."


def combined(
    tree: Tree, folded: Tree, scalings: Mapping[str, float], gates: Mapping[str, float]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """{module: (A, B)} of unit scale: what was folded into the base plus every adapter of the tree, exactly.

    A single unfolded adapter keeps its own A (its B takes the scaling); several are stacked and brought to their numerical rank.
    """
    parts: dict[str, list[tuple[float, lowrank.Pair]]] = {}
    for module, pair in lowrank.pairs(folded).items():
        parts.setdefault(module, []).append((1.0, pair))
    for adapter, scaling in scalings.items():
        for module, pair in lowrank.pairs(tree, adapter).items():
            if np.any(pair[1]) or not folded:
                parts.setdefault(module, []).append((scaling * gates.get(adapter, 1.0), pair))
    result = {}
    for module, several in parts.items():
        weights, pairs = [w for w, _ in several], [p for _, p in several]
        if len(several) == 1:
            a, b = lowrank.double(pairs[0])
            b = weights[0] * b
        else:
            a, b = lowrank.refactor(pairs, weights)
        result[module] = np.ascontiguousarray(a, np.float32), np.ascontiguousarray(b, np.float32)
    return result


def write_folder(
    folder: Path,
    pairs: Mapping[str, tuple[np.ndarray, np.ndarray]],
    plain: Tree,
    kernels: Mapping[str, tuple[int, ...]],
    about: Mapping[str, Any],
) -> str:
    """Write adapter_config.json, adapter_model.safetensors and, beside them, head.safetensors (heads, decoder, whatever is trained as it is).

    `kernels` holds a convolution's kernel size by module: PEFT keeps A as a convolution (r, in, *kernel) and B as (out, r, 1, ...).
    Returns the SHA-256 over sorted names, shapes and float32 bytes of everything in the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = _tensors(pairs, kernels)
    if tensors:
        ranks = {module: len(a) for module, (a, _) in sorted(pairs.items())}
        config = {
            "peft_type": "LORA",
            "task_type": None,
            "base_model_name_or_path": about.get("base", ""),
            "r": max(ranks.values()),
            "lora_alpha": max(ranks.values()),
            "rank_pattern": {f"^{module}$": rank for module, rank in ranks.items()},
            "alpha_pattern": {f"^{module}$": rank for module, rank in ranks.items()},
            "target_modules": sorted(ranks),
            "lora_dropout": 0.0,
            "bias": "none",
            "fan_in_fan_out": False,
            "inference_mode": True,
            "modules_to_save": None,
        }
        (folder / "adapter_config.json").write_text(json.dumps(config, indent=1) + "\n")
        write_arrays(folder / "adapter_model.safetensors", tensors)
    _save(folder / "head.safetensors", plain)
    return hash_of({**tensors, **plain})


def write_routed(
    folder: Path,
    adapters: Mapping[str, Mapping[str, tuple[np.ndarray, np.ndarray]]],
    router: Tree,
    plain: Tree,
    kernels: Mapping[str, tuple[int, ...]],
    about: Mapping[str, Any],
) -> str:
    """Adapters that a router mixes token by token are no single pair: each has a PEFT folder of its own inside `folder`, the router lies
    in router.safetensors, heads in head.safetensors. Returns the SHA-256 of all of it."""
    tensors: dict[str, np.ndarray] = {}
    for name, pairs in sorted(adapters.items()):
        write_folder(folder / name, pairs, {}, kernels, about)
        tensors |= {f"{name}/{key}": value for key, value in _tensors(pairs, kernels).items()}
    _save(folder / "router.safetensors", router)
    _save(folder / "head.safetensors", plain)
    return hash_of({**tensors, **router, **plain})


def read_pairs(folder: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """{module: (A (r, in), B (out, r))} of unit scale of a folder that `write_folder` wrote; none where every weight was trained."""
    tensors, pairs = _read(folder / "adapter_model.safetensors"), {}
    for name, a in sorted(tensors.items()):
        if name.endswith(".lora_A.weight"):
            b = tensors[name.replace(".lora_A.", ".lora_B.")]
            module = name.removeprefix(PREFIX).removesuffix(".lora_A.weight")
            pairs[module] = a.reshape(len(a), -1), b.reshape(len(b), -1)
    return pairs


def read_plain(folder: Path) -> Tree:
    """What was trained as it is: heads, decoder, or every weight. Raises InputError for a file that is none."""
    return _read(folder / "head.safetensors")


def read_hash(folder: Path) -> str:
    """What `write_folder` returned, from what is there now. Raises InputError for a file that is none."""
    return hash_of({**_read(folder / "adapter_model.safetensors"), **read_plain(folder)})


def _read(path: Path) -> dict[str, np.ndarray]:
    return read_arrays(path) if path.is_file() else {}


def write_with_heads(folder: Path, source: Path, plain: Tree, modules: Sequence[str]) -> None:
    """Write what `write_folder` wrote to `source` so that PEFT opens it whole: the plainly trained `modules` are its `modules_to_save`."""
    config = read_json_object(source / "adapter_config.json")
    config["modules_to_save"] = list(modules) or None
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    tensors = read_arrays(source / "adapter_model.safetensors")
    tensors |= {f"{PREFIX}{name}": value for name, value in plain.items()}
    write_arrays(folder / "adapter_model.safetensors", tensors)


def _tensors(pairs: Mapping[str, tuple[np.ndarray, np.ndarray]], kernels: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """The tensors of a PEFT file by its names."""
    tensors: dict[str, np.ndarray] = {}
    for module, (a, b) in sorted(pairs.items()):
        kernel = kernels.get(module, ())
        tensors[f"{PREFIX}{module}.lora_A.weight"] = a.reshape(len(a), -1, *kernel) if kernel else a
        tensors[f"{PREFIX}{module}.lora_B.weight"] = b.reshape(*b.shape, *(1 for _ in kernel))
    return tensors


def _save(path: Path, tree: Tree) -> None:
    """As float32; no file for an empty tree."""
    if tree:
        write_arrays(path, {name: np.ascontiguousarray(value, np.float32) for name, value in sorted(tree.items())})


def hash_of(tensors: Mapping[str, np.ndarray]) -> str:
    """SHA-256 over sorted names, shapes and float32 bytes."""
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        digest.update(f"{name}{tuple(value.shape)}".encode())
        digest.update(np.ascontiguousarray(value, "<f4").tobytes())
    return digest.hexdigest()
