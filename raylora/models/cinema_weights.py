"""CineMA's published weights: how the pre-training checkpoint becomes a classifier or a segmenter."""

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from raylora.models.weights import check_tensors, read_tensors

_NOT_TAKEN = re.compile(r"mask|decoder|_head|dec_linear|pos_embed|_dict\.(?!sax\.)")  # the last: other views
_TAKEN_BY_MODEL = re.compile(r"(enc_down_dict|enc_fusion_dict|encoder)\.(?!.*pos_embed)")
_FIRST_CONV = "enc_down_dict.sax.conv_blocks.0.patch_embed.conv.weight"


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
