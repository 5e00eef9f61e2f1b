"""CineMA's convolutional stem of one view: image to tokens, and the two feature maps that fusion and decoder read.

After ConvMAE (Gao et al. 2022). Inside, feature maps are kept as (b, x, y, z, c): every norm and every 1 x 1 x 1 convolution works on the
last axis then, and depthwise convolutions on that memory order are three to five times as fast on a CPU.
"""

import math

import numpy as np
import torch
from torch import Tensor, nn

from raylora.core.errors import InputError

Triple = tuple[int, int, int]

STEM_NORM_EPS = 1e-6


def position_table(grid: Triple, width: int) -> np.ndarray:
    """The fixed sine-cosine positions (1, n, width): a third of the channels for each axis, zeros for what is left over.

    As CineMA makes them, and so with its first two axes swapped: entry ((i * grid[0] + j) * grid[2] + k) encodes (j, i, k), while token
    number ((i * grid[1] + j) * grid[2] + k) lies at (i, j, k). On a square grid this exchanges x and y; on another one it shuffles.
    """
    share = width // len(grid) // 2 * 2
    frequency = np.exp(-np.log(10000.0) * np.arange(share // 2, dtype=np.float32) / (share // 2))
    parts = []
    for positions in np.meshgrid(*(np.arange(size, dtype=np.float32) for size in grid)):
        angles = positions.reshape(-1, 1) * frequency  # (n, share / 2)
        parts += [np.sin(angles), np.cos(angles)]
    table = np.concatenate(parts, axis=1)
    return np.pad(table, ((0, 0), (0, width - table.shape[1]))).astype(np.float32)[None]


def channels_last(x: Tensor) -> Tensor:
    """(b, c, x, y, z) to (b, x, y, z, c)."""
    return x.permute(0, 2, 3, 4, 1)


def channels_first(x: Tensor) -> Tensor:
    """(b, x, y, z, c) to (b, c, x, y, z)."""
    return x.permute(0, 4, 1, 2, 3)


class Pointwise(nn.Conv3d):
    """A 1 x 1 x 1 convolution, computed as a matrix product on (b, x, y, z, in)."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight.flatten(1), self.bias)


class PatchConv(nn.Module):
    """Convolution with kernel = stride, norm over channels, GELU: (b, in, x, y, z) to (b, x', y', z', out)."""

    def __init__(self, inputs: int, outputs: int, step: Triple):
        super().__init__()
        self.conv = nn.Conv3d(inputs, outputs, step, step)
        self.norm = nn.LayerNorm(outputs, eps=STEM_NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.gelu(self.norm(channels_last(self.conv(x))))


class PointwiseMLP(nn.Module):
    """Two 1 x 1 x 1 convolutions with a GELU between them, four times as wide inside."""

    def __init__(self, channels: int):
        super().__init__()
        self.fc1 = Pointwise(channels, 4 * channels)
        self.fc2 = Pointwise(4 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(nn.functional.gelu(self.fc1(x)))


class ConvBlock(nn.Module):
    """A transformer-like block with a depthwise convolution in the place of attention, on (b, x, y, z, c).

    CineMA masks the depthwise convolution's input in pre-training; without a mask, as here, it is the block of its fine-tuned models.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(channels, eps=STEM_NORM_EPS)
        self.norm2 = nn.LayerNorm(channels, eps=STEM_NORM_EPS)
        self.conv1 = Pointwise(channels, channels)
        self.conv2 = Pointwise(channels, channels)
        self.dw_conv = nn.Conv3d(channels, channels, 5, padding=2, groups=channels)
        self.mlp = PointwiseMLP(channels)

    def forward(self, x: Tensor) -> Tensor:
        maps = channels_first(self.conv1(self.norm1(x)))
        mixed = self.dw_conv(maps.contiguous() if maps.is_cuda else maps)  # of maps with channels last cuDNN computes one after the other
        x = x + self.conv2(channels_last(mixed))
        return x + self.mlp(self.norm2(x))


class StemLevel(nn.Module):
    """One resolution: (b, in, x, y, z) to (b, x', y', z', out)."""

    def __init__(self, inputs: int, outputs: int, step: Triple, blocks: int):
        super().__init__()
        self.patch_embed = PatchConv(inputs, outputs, step)
        self.conv = nn.ModuleList(ConvBlock(outputs) for _ in range(blocks))

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x)
        for block in self.conv:
            x = block(x)
        return x


class PatchLinear(nn.Module):
    """(b, x, y, z, c) to tokens (b, n, width): patches flattened in the order (patch axes, channel), then a Linear."""

    def __init__(self, channels: int, width: int, patch: Triple):
        super().__init__()
        self.patch = patch
        self.proj = nn.Linear(math.prod(patch) * channels, width)

    def forward(self, x: Tensor) -> Tensor:
        b, *sizes, c = x.shape
        grid = [size // step for size, step in zip(sizes, self.patch, strict=True)]
        split = [part for pair in zip(grid, self.patch, strict=True) for part in pair]  # gx, px, gy, py, gz, pz
        patches = x.reshape(b, *split, c).permute(0, 1, 3, 5, 2, 4, 6, 7)  # (b, gx, gy, gz, px, py, pz, c)
        return self.proj(patches.reshape(b, math.prod(grid), -1))


class Stem(nn.Module):
    """Image (b, inputs, x, y, z) to tokens (b, n, width) and one feature map (b, x', y', z', c) a level.

    An image of another size than `image_size` gets interpolated positions. Raises InputError for a size that the patches do not divide.
    """

    def __init__(
        self, image_size: Triple, inputs: int, patch: Triple, scale: Triple, conv_chans: tuple[int, ...], conv_n_blocks: int, embed: int
    ):
        super().__init__()
        self.step = tuple(p * s ** len(conv_chans) for p, s in zip(patch, scale, strict=True))  # voxels a token, by axis
        self.grid = self.grid_of(image_size)
        steps = (patch, *[scale] * (len(conv_chans) - 1))
        levels = zip((inputs, *conv_chans[:-1]), conv_chans, steps, strict=True)
        self.conv_blocks = nn.ModuleList(StemLevel(into, out, step, conv_n_blocks) for into, out, step in levels)
        self.patch_embed = PatchLinear(conv_chans[-1], embed, scale)
        self.linear = nn.Linear(embed, embed)
        self.pos_embed = nn.Parameter(torch.from_numpy(position_table(self.grid, embed)), requires_grad=False)

    def grid_of(self, image_size) -> Triple:
        """Tokens along each axis for an image of this size."""
        if any(size % step or size == 0 for size, step in zip(image_size, self.step, strict=True)):
            raise InputError(f"data.size: expected multiples of {self.step} for this CineMA, found {tuple(image_size)}")
        return tuple(size // step for size, step in zip(image_size, self.step, strict=True))

    def positions(self, grid: Triple) -> Tensor:
        """(1, n, width) for this grid: the stored table, or its trilinear interpolation."""
        if grid == self.grid:
            return self.pos_embed
        table = channels_first(self.pos_embed.float().view(1, *self.grid, -1))
        table = nn.functional.interpolate(table, size=grid, mode="trilinear")
        return table.flatten(2).transpose(1, 2).to(self.pos_embed.dtype)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        grid = self.grid_of(image.shape[2:])
        features, x = [], image
        for level in self.conv_blocks:
            x = level(x)
            features.append(x)
            x = channels_first(x)
        return self.linear(self.patch_embed(features[-1])) + self.positions(grid), *features


class Fusion(nn.Module):
    """The stem's feature maps brought to the tokens' grid and added to the tokens, then a norm (ConvMAE's multi-scale fusion)."""

    def __init__(self, scale: Triple, conv_chans: tuple[int, ...], embed: int):
        super().__init__()
        steps = [tuple(s ** (len(conv_chans) - level) for s in scale) for level in range(len(conv_chans))]
        self.down_convs = nn.ModuleList(nn.Conv3d(c, embed, step, step) for c, step in zip(conv_chans, steps, strict=True))
        self.norm = nn.LayerNorm(embed)

    def down(self, features: tuple[Tensor, ...]) -> Tensor:
        """Feature maps (b, x', y', z', c) to their sum as tokens (b, n, width)."""
        return sum(conv(channels_first(x)).flatten(2).transpose(1, 2) for conv, x in zip(self.down_convs, features, strict=True))
