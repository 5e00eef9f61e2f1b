"""Which weights file a name means. No torch: a command finds out before anything is built."""

import os
import re
from collections.abc import Iterable
from importlib import resources
from pathlib import Path

from raylora.core.errors import InputError
from raylora.core.files import absolute_path, is_folder

PUBLISHER = "huggingface.co/mathpluscode/CineMA"
PRETRAINED = "pretrained/cinema.safetensors"
PUBLISHED = re.compile(r"(?P<data>[a-z0-9]+)_(?:sax|lax_\w+)_\d+\.safetensors")  # names of CineMA's fine-tuned files

_OF_PRETRAINING = re.compile(r"dec_linear\.|decoder\.|.*\.mask_token$")  # in no fine-tuned file, whose decoder is `decoder_dict`
_SHORT = re.compile(r"(?P<task>\w+)/(?P<model>\w+_(?:sax|lax_\w+))_(?P<seed>\d+)")

SHIPPED = Path(str(resources.files("raylora.models"))) / "shipped"


def find(weights: str, folder: str | None = None, model: str = "") -> Path:
    """The file that `model.weights` means: the name of weights that come with the package, a path, or a name in the weights folder.

    `folder` defaults to the environment's RAYLORA_WEIGHTS. For CineMA the names under which its files are published count too (see
    `find_weights`). Raises InputError that says where it was looked for and, if it can be had somewhere, where.
    """
    ours = SHIPPED / f"{weights}.safetensors"
    if "/" not in weights and _file(ours):
        return ours
    if found := _file(Path(weights)):
        return found
    folder = folder or os.environ.get("RAYLORA_WEIGHTS") or None
    if folder is not None and not is_folder(absolute_path(folder, Path.cwd(), "model.weights_folder"), "model.weights_folder"):
        raise InputError(f"model.weights_folder (or RAYLORA_WEIGHTS): {folder}: no such folder")
    if model == "cinema":
        return find_weights(weights, folder and Path(folder).expanduser())
    for path in [Path(folder) / weights, Path(folder) / f"{weights}.safetensors"] if folder else []:
        if found := _file(path):
            return found
    names = ", ".join(sorted(path.stem for path in SHIPPED.glob("*.safetensors"))) or "none"
    where = f", nor one in {folder}" if folder else ""
    raise InputError(f"model.weights: {weights}: no such file{where}, and not the name of shipped weights ({names})")


def find_weights(name: str, folder: str | Path | None = None) -> Path:
    """The weights file that a name means.

    A path to a file; a path inside `folder`; ``cinema`` for the pre-trained checkpoint; ``<task>/<data>_<view>_<seed>`` for a fine-tuned
    one, such as ``segmentation/acdc_sax_0``. Files are looked for under their published names, then by file name alone.
    Raises InputError that says where the file was looked for and where it is published.
    """
    published = _published_name(name)
    candidates = [Path(name)]
    if folder is not None:
        candidates += [Path(folder) / name, Path(folder) / published, Path(folder) / Path(published).name]
    for candidate in candidates:
        if found := _file(candidate):
            return found
    where = f"in {folder}" if folder is not None else "and no weights folder is set"
    raise InputError(f"model.weights: no file {name} {where}; CineMA publishes {published} at {PUBLISHER}")


def is_published(weights: str) -> bool:
    """Whether this is CineMA's pre-training checkpoint or one of its fine-tuned files, by the name of the file."""
    name = Path(_published_name(weights)).name
    return name == Path(PRETRAINED).name or PUBLISHED.fullmatch(name) is not None


def _file(path: Path) -> Path | None:
    """The file there, if there is one and it can be seen."""
    try:
        path = path.expanduser()
        return path if path.is_file() else None
    except (RuntimeError, ValueError, OSError):  # nobody's home, a NUL, a name too long, a folder that is closed to us
        return None


def _published_name(name: str) -> str:
    short = _SHORT.fullmatch(name)
    if short:
        return f"finetuned/{short['task']}/{short['model']}/{short['model']}_{short['seed']}.safetensors"
    return PRETRAINED if name in ("cinema", "pretrained") else name


def is_pretraining(names: Iterable[str]) -> bool:
    """Whether a file with these tensors is CineMA's pre-training checkpoint rather than a fine-tuned model."""
    return any(_OF_PRETRAINING.match(name) for name in names)
