"""CineMA's published weights: where they are found, and how the pre-training checkpoint becomes a classifier or a segmenter."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from torch import Tensor, nn

from raylora.core.errors import InputError
from raylora.models.weights import check_tensors, read_names, read_tensors

PUBLISHER = "huggingface.co/mathpluscode/CineMA"
PRETRAINED = "pretrained/cinema.safetensors"

_NOT_TAKEN = re.compile(r"mask|decoder|_head|dec_linear|pos_embed|_dict\.(?!sax\.)")  # the last: other views
_TAKEN_BY_MODEL = re.compile(r"(enc_down_dict|enc_fusion_dict|encoder)\.(?!.*pos_embed)")
_OF_PRETRAINING = re.compile(r"dec_linear\.|decoder\.|.*\.mask_token$")  # in no fine-tuned file, whose decoder is `decoder_dict`
_FIRST_CONV = "enc_down_dict.sax.conv_blocks.0.patch_embed.conv.weight"
_SHORT = re.compile(r"(?P<task>\w+)/(?P<model>\w+_(?:sax|lax_\w+))_(?P<seed>\d+)")


def find_weights(name: str, folder: str | Path | None = None) -> Path:
    """The weights file that a name means.

    A path to a file; a path inside `folder`; ``cinema`` for the pre-trained checkpoint; ``<task>/<data>_<view>_<seed>`` for a fine-tuned
    one, such as ``segmentation/acdc_sax_0``. Files are looked for under their published names, then by file name alone.
    Raises InputError that says where the file was looked for and where it is published.
    """
    published = _published_name(name)
    candidates = [Path(name).expanduser()]
    if folder is not None:
        candidates += [Path(folder) / name, Path(folder) / published, Path(folder) / Path(published).name]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    where = f"in {folder}" if folder is not None else "and no weights folder is set"
    raise InputError(f"model.weights: no file {name} {where}; CineMA publishes {published} at {PUBLISHER}")


def _published_name(name: str) -> str:
    short = _SHORT.fullmatch(name)
    if short:
        return f"finetuned/{short['task']}/{short['model']}/{short['model']}_{short['seed']}.safetensors"
    return PRETRAINED if name in ("cinema", "pretrained") else name


def is_pretraining(names: Iterable[str]) -> bool:
    """Whether a file with these tensors is CineMA's pre-training checkpoint rather than a fine-tuned model."""
    return any(_OF_PRETRAINING.match(name) for name in names)


def without_decoder(path: str | Path) -> bool:
    """Whether a segmenter that starts from this file has a decoder that has learnt nothing. Reads the header only."""
    return is_pretraining(read_names(path))


def pretrained_tensors(own: Mapping[str, Tensor], given: Mapping[str, Tensor], path: str | Path) -> dict[str, Tensor]:
    """What a model with the tensors `own` takes from the pre-training checkpoint `given`.

    Taken: the encoder, the short-axis stem and, for a classifier, its fusion. The model keeps its own positions, heads and decoder. A stem
    of n input channels repeats the one-channel weight n times, undivided, as CineMA does.
    Raises InputError naming the first tensor that is missing, unexpected or of another shape.
    """
    own = {name: value for name, value in own.items() if _TAKEN_BY_MODEL.match(name)}
    with_fusion = any(name.startswith("enc_fusion_dict.") for name in own)
    taken = {name: value for name, value in given.items() if not _NOT_TAKEN.search(name)}
    taken = {name: value for name, value in taken.items() if with_fusion or not name.startswith("enc_fusion_dict.")}
    if _FIRST_CONV in taken and taken[_FIRST_CONV].shape[1] == 1:
        taken[_FIRST_CONV] = taken[_FIRST_CONV].expand(-1, own[_FIRST_CONV].shape[1], -1, -1, -1)
    check_tensors(own, taken, path)
    return taken


def load_pretrained(model: nn.Module, path: str | Path) -> nn.Module:
    """Fill a classifier or segmenter from CineMA's pre-training checkpoint (see `pretrained_tensors`), in place, and return it.

    Raises InputError naming the first tensor that does not fit; the model is then unchanged.
    """
    model.load_state_dict(pretrained_tensors(model.state_dict(), read_tensors(path), path), strict=False)
    return model
