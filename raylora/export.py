"""`raylora export`: what a run has learnt, for others. A PEFT folder that opens by itself, or a model's merged weights, with a card."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from raylora import config as configuration
from raylora.config import Config
from raylora.core.errors import InputError, RunError
from raylora.core.files import require_writable
from raylora.models import files, peft, zoo
from raylora.models.seen import Seen
from raylora.report.card import card
from raylora.report.runs import Run, read_run
from raylora.tracking.record import PATIENTS

ABOUT = "raylora.json"
GLOBAL = "global"


@dataclass(frozen=True, kw_only=True)
class Base:
    """The frozen backbone that an adapter belongs to, so that anyone can build it again."""

    name: str
    task: str
    size: str
    image_size: tuple[int, int, int]
    sizes: Mapping[str, Any]
    seed: int  # of the weights that no file holds
    weights: str | None
    weights_sha256: str | None


def export(run_dir: Path, out: Path, *, client: str | None = None, merged: bool = False, weights: str | None = None) -> Path:
    """Write the shared model of a run (or one client's, private parts included) to `out`; returns what was written.

    `weights`: where the base's file lies now, if it has moved since the run.

    An adapter goes into a folder that `peft.PeftModel.from_pretrained` opens on `base_model(out)`. Merged weights go into
    `out/model.safetensors`, or into `out` itself if it ends with ``.safetensors``. Raises InputError for a folder without a finished run, a
    client that it does not have, a model that is no adapter or was damaged, or a place that is taken; RunError if the disk does not take
    it. Nothing is left behind then.
    """
    require_writable(out, "OUT")
    run = read_run(run_dir)
    if not run.finished:
        raise InputError(f"{run_dir}: expected a finished run, this one is {run.summary['status']}")
    name = client or GLOBAL
    source = _source(run, name, merged)
    config = configuration.from_dict(run.config, str(run.folder / "config.yaml"))
    if weights is not None:
        if config.model.weights is None:
            raise InputError("--weights: the run's base was made from its seed, no file has it")
        config = config.model_copy(update={"model": config.model.model_copy(update={"weights": weights, "weights_folder": None})})
    run = replace(run, config=config.as_dict(), summary={**run.summary, "name": run.summary.get("name") or config.name})
    try:
        base, network, seen = _base_of(config)
    except InputError as error:
        if weights is not None:
            raise InputError(f"--weights: {error}") from None
        raise InputError(f"{error}; --weights says where they lie now" if config.model.weights else str(error)) from None
    original = zoo.weights_of(network)
    if (run.summary.get("base") or {}).get("sha256") not in (None, peft.hash_of(original)):
        where, why = (
            (run.folder / "config.yaml", "seed, model or data.size changed")
            if weights is None
            else (f"--weights {weights}", "another file")
        )
        raise InputError(f"{where}: does not make the frozen model that the run adapted: {why}")
    plain = peft.read_plain(source)
    if merged:
        weights = merged_weights(original, peft.read_pairs(source), plain)
        seen = replace(seen, cases=seen.cases | _trained_on(run))
        about = {"made_by": "raylora export", "run": str(run.summary["name"]), "model_of": name, "base": asdict(base)}
        if out.suffix.lower() == ".safetensors":
            _refuse_taken(out)
            zoo.save_weights(out, weights, half=False, seen=seen, about=about)
            return out
        with _filling(out) as folder:
            zoo.save_weights(folder / "model.safetensors", weights, half=False, seen=seen, about=about)
            _describe(folder, run, name, base, merged=True)
        return out
    with _filling(out) as folder:
        peft.write_with_heads(folder, source, plain, _modules_of(network, plain))
        _describe(folder, run, name, base, merged=False)
    return out


def base_model(folder: Path | str, weights: str | None = None) -> nn.Module:
    """The backbone that an exported adapter was trained on, in evaluation mode; of a folder of merged weights, the whole network. `weights`:
    where the base's file lies now, if it has moved.

    Raises InputError for a folder without a description, or weights that are not those.
    """
    path = Path(folder) / ABOUT
    try:
        described = json.loads(path.read_text("utf-8"))
        base = Base(**described["base"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: expected the description of an exported adapter ({error})") from None
    network = zoo.build(base.name, base.task, base.size, base.image_size, base.sizes, base.seed)
    if described.get("merged"):
        zoo.load_weights(dict(network.named_parameters()), (), Path(folder) / "model.safetensors")
    elif base.weights is not None:
        file = files.find(weights or base.weights, None, base.name)
        if _sha256(file) != base.weights_sha256:
            raise InputError(f"{file}: not the weights that the adapter was trained on (SHA-256 {base.weights_sha256})")
        zoo.load_weights(dict(network.named_parameters()), network.head_names, file)
    return network.eval()


def merged_weights(
    weights: Mapping[str, np.ndarray], pairs: Mapping[str, tuple[np.ndarray, np.ndarray]], plain: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """The base's weights with W + B A (in float64) for the adapted layers and the trained values of what was trained as it is."""
    found = {**weights, **plain}
    for module, (a, b) in pairs.items():
        weight = weights[f"{module}.weight"]
        product = b.astype(np.float64) @ a.astype(np.float64)
        found[f"{module}.weight"] = (weight + product.reshape(weight.shape)).astype(np.float32)
    return found


def _source(run: Run, name: str, merged: bool) -> Path:
    """The run's own folder of one model. Raises InputError."""
    folder = run.folder / "adapters"
    known = sorted(entry.name for entry in folder.iterdir() if entry.is_dir()) if folder.is_dir() else []
    if name not in known:
        raise InputError(f"--client {name}: {run.folder} has {', '.join(known) or 'no adapters'}")
    if (folder / name / "router.safetensors").is_file():
        raise InputError(f"{folder / name}: its adapters are mixed token by token by a router: no single adapter, and nothing to merge")
    if peft.read_hash(folder / name) != (run.summary.get("adapter_sha256") or {}).get(name):
        raise InputError(f"{folder / name}: not what the run wrote (its SHA-256 is not the one in summary.json): a file is gone or damaged")
    adapted = [client for client in known if (folder / client / "adapter_config.json").is_file()]
    if name == GLOBAL and adapted and GLOBAL not in adapted:
        raise InputError(f"{folder / name}: {run.strategy} shares no adapter: expected --client with one of {', '.join(adapted)}")
    if not merged and not (folder / name / "adapter_config.json").is_file():
        raise InputError(f"{folder / name}: every weight was trained, there is no adapter: expected --merged")
    return folder / name


def _base_of(config: Config) -> tuple[Base, nn.Module, Seen]:
    """The run's backbone before any training, and what its weights have seen. Raises InputError if the weights are gone."""
    model = config.model
    network = zoo.build(model.name, config.task, model.size, config.data.size, model.sizes, config.seed)
    seen, file = Seen(), None
    if model.weights is not None:
        file = files.find(model.weights, model.weights_folder, model.name)
        seen = zoo.load_weights(dict(network.named_parameters()), network.head_names, file)
    base = Base(
        name=model.name,
        task=config.task,
        size=model.size,
        image_size=config.data.size,
        sizes=model.sizes,
        seed=config.seed,
        weights=model.weights,
        weights_sha256=_sha256(file) if file else None,
    )
    return base, network, seen


def _modules_of(network: nn.Module, plain: Mapping[str, np.ndarray]) -> list[str]:
    """The modules that own the plainly trained parameters. Raises InputError for a parameter that peft cannot keep."""
    paths = sorted({name.rpartition(".")[0] for name in plain})
    for path in paths:
        alike = [name for name, _ in network.named_modules() if name.endswith(path)]
        if alike != [path] or set(dict(network.get_submodule(path).named_parameters(prefix=path))) - set(plain):
            raise InputError(f"{path or 'the model itself'} was trained as it is: no adapter that peft can hold, expected --merged")
    return paths


def _trained_on(run: Run) -> frozenset[str]:
    """The hashes of the studies that the run trained on."""
    parts = {"train", "rating"} if run.config["data"].get("rating_to_training") else {"train"}
    path = run.folder / PATIENTS
    try:
        patients = json.loads(path.read_text("utf-8"))["patients"]
        return frozenset(str(patient["sha256"]) for patient in patients if patient["part"] in parts)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: cannot be read: {error}; merged weights must say what they have seen") from None


def _describe(folder: Path, run: Run, name: str, base: Base, *, merged: bool) -> None:
    about = {"base": asdict(base), "run": run.summary["name"], "model_of": name, "strategy": run.strategy, "merged": merged}
    (folder / ABOUT).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(card(run, name, merged=merged), encoding="utf-8")


@contextmanager
def _filling(out: Path) -> Iterator[Path]:
    """A folder beside `out` to write into, which takes its place when it is whole and goes away if it does not get there."""
    _refuse_taken(out)
    out = out.absolute()  # "." too has a name and a parent
    partial = out.with_name(f".{out.name}.part")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        yield partial
        if out.exists():  # empty, and perhaps where somebody stands
            for written in partial.iterdir():
                written.rename(out / written.name)
        else:
            partial.rename(out)
    except OSError as error:
        raise RunError(f"{error.filename or out}: cannot be written: {error.strerror or error}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _refuse_taken(out: Path) -> None:
    if out.exists() and (not out.is_dir() or out.suffix.lower() == ".safetensors" or any(out.iterdir())):
        raise InputError(f"{out}: expected a new or empty place, something is there already")


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
