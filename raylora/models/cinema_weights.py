"""CineMA's published weights: where they are found, and how the pre-training checkpoint becomes a classifier or a segmenter."""

import re
from pathlib import Path

from torch import nn

from raylora.core.errors import InputError
from raylora.models.weights import check_tensors, read_tensors

PUBLISHER = "huggingface.co/mathpluscode/CineMA"
PRETRAINED = "pretrained/cinema.safetensors"

_NOT_TAKEN = re.compile(r"mask|decoder|_head|dec_linear|pos_embed|_dict\.(?!sax\.)")  # the last: other views
_TAKEN_BY_MODEL = re.compile(r"(enc_down_dict|enc_fusion_dict|encoder)\.(?!.*pos_embed)")
_FIRST_CONV = "enc_down_dict.sax.conv_blocks.0.patch_embed.conv.weight"
_SHORT = re.compile(r"(?P<task>\w+)/(?P<model>\w+_(?:sax|lax_\w+))_(?P<seed>\d+)")


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
        if candidate.is_file():
            return candidate
    where = f"in {folder}" if folder is not None else "and no weights folder is set"
    raise InputError(f"model.weights: no file {name} {where}; CineMA publishes {published} at {PUBLISHER}")


def _published_name(name: str) -> str:
    short = _SHORT.fullmatch(name)
    if short:
        return f"finetuned/{short['task']}/{short['model']}/{short['model']}_{short['seed']}.safetensors"
    return PRETRAINED if name in ("cinema", "pretrained") else name


def load_pretrained(model: nn.Module, path: str | Path) -> nn.Module:
    """Fill a classifier or segmenter from CineMA's pre-training checkpoint, in place, and return it.

    Taken: the encoder, the short-axis stem and, for a classifier, its fusion. The model keeps its own positions, heads and decoder. A stem
    of n input channels repeats the one-channel weight n times, undivided, as CineMA does.
    Raises InputError naming the first tensor that is missing, unexpected or of another shape; the model is then unchanged.
    """
    own = {name: value for name, value in model.state_dict().items() if _TAKEN_BY_MODEL.match(name)}
    with_fusion = any(name.startswith("enc_fusion_dict.") for name in own)
    given = {name: value for name, value in read_tensors(path).items() if not _NOT_TAKEN.search(name)}
    given = {name: value for name, value in given.items() if with_fusion or not name.startswith("enc_fusion_dict.")}
    if _FIRST_CONV in given and given[_FIRST_CONV].shape[1] == 1:
        given[_FIRST_CONV] = given[_FIRST_CONV].expand(-1, own[_FIRST_CONV].shape[1], -1, -1, -1)
    check_tensors(own, given, path)
    model.load_state_dict(given, strict=False)
    return model
