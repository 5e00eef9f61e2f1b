"""CineMA's convolutional decoder (after UNETR): tokens, stem features and the image itself become a label map at full resolution."""

from torch import Tensor, nn

from raylora.core.errors import InputError
from raylora.models.cinema_stem import STEM_NORM_EPS, Triple, channels_first, channels_last


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of (b, c, x, y, z)."""

    def __init__(self, channels: int):
        super().__init__(channels, eps=STEM_NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        return channels_first(super().forward(channels_last(x)))


class ResBlock(nn.Module):
    """Twice norm, GELU, 3 x 3 x 3 convolution, around a shortcut: (b, in, x, y, z) to (b, out, x, y, z)."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.norm1 = ChannelNorm(inputs)
        self.norm2 = ChannelNorm(outputs)
        self.conv1 = nn.Conv3d(inputs, outputs, 3, padding=1)
        self.conv2 = nn.Conv3d(outputs, outputs, 3, padding=1)
        self.shortcut = nn.Conv3d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(nn.functional.gelu(self.norm1(x)))
        h = self.conv2(nn.functional.gelu(self.norm2(h)))
        return h + self.shortcut(x)


class UpBlock(nn.Module):
    """Transposed convolution, plus the skip where there is one, then two ResBlocks."""

    def __init__(self, inputs: int, outputs: int, step: Triple):
        super().__init__()
        self.up = nn.ConvTranspose3d(inputs, outputs, step, step)
        self.conv = nn.ModuleList(ResBlock(outputs, outputs) for _ in range(2))

    def forward(self, x: Tensor, skip: Tensor | None) -> Tensor:
        x = self.up(x)
        x = x if skip is None else x + skip
        for block in self.conv:
            x = block(x)
        return x


class Decoder(nn.Module):
    """The way up, coarsest first; `chans` lists the channels finest first."""

    def __init__(self, chans: tuple[int, ...], patch: Triple, scale: Triple):
        super().__init__()
        pairs = list(zip(chans[1:], chans[:-1], strict=True))[::-1]
        steps = [scale] * (len(pairs) - 1) + [patch]
        self.blocks = nn.ModuleList(UpBlock(into, out, step) for (into, out), step in zip(pairs, steps, strict=True))


def levels_without_skip(patch: Triple, dec_patch: Triple, dec_scale: Triple) -> int:
    """How many decoder levels lie between full resolution and the stem's first feature map, which has none for them.

    Raises InputError if the decoder's steps never meet the stem's patch.

    >>> levels_without_skip((4, 4, 1), (2, 2, 1), (2, 2, 1))
    1
    """
    for count in range(8):
        if tuple(first * factor**count for first, factor in zip(dec_patch, dec_scale, strict=True)) == patch:
            return count
    raise InputError(f"model.dec_patch: expected {dec_patch} times a power of dec_scale {dec_scale} to give the patch {patch}")
