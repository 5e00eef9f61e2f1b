"""A 3-D vision transformer for classification, with the names and outputs of MONAI's ViT (conv patches, learnable positions, cls token).

MONAI gives every block a `norm_cross_attn` that its forward pass never uses: it does not exist here.
"""

import math

import torch
from torch import Tensor, nn

from raylora.core.errors import InputError
from raylora.models.attention import attention, by_heads
from raylora.models.stages import Stage, run_stages

Triple = tuple[int, int, int]

SIZES = {
    "small": {"image_size": (72, 72, 12), "patch": (12, 12, 4), "width": 96, "depth": 6, "heads": 6, "pool": "grid"},  # two CPU cores
    "w1": {"image_size": (64, 64, 8), "patch": (16, 16, 4), "width": 192, "depth": 6, "heads": 6, "out": 5},
    "w2": {"image_size": (96, 96, 16), "patch": (16, 16, 2), "width": 384, "depth": 12, "heads": 6, "out": 5},
}
"""Constructor arguments of the named sizes; w1 and w2 are the benchmarks' workloads."""

GRID = (3, 3, 3)


def _grid_means(tokens: Tensor, grid: Triple) -> Tensor:
    maps = tokens[:, 1:].transpose(1, 2).unflatten(2, grid)
    coarse = _means(maps) if maps.is_cuda else nn.functional.adaptive_avg_pool3d(maps, GRID)
    return coarse.flatten(1) / math.prod(GRID)  # a step of the head moves the logits as far as it would on a mean


def _means(maps: Tensor) -> Tensor:
    """`adaptive_avg_pool3d(maps, GRID)`, axis by axis: on a GPU torch's own adds up its gradient in no fixed order."""
    for axis, count in enumerate(GRID, start=2):
        size = maps.shape[axis]
        places = [(i * size // count, -(-(i + 1) * size // count)) for i in range(count)]
        maps = torch.stack([maps.narrow(axis, start, end - start).mean(axis) for start, end in places], axis)
    return maps


POOLS = {
    "cls": lambda tokens, grid: tokens[:, 0],
    "mean": lambda tokens, grid: tokens[:, 1:].mean(dim=1),
    "grid": _grid_means,
}
"""(b, 1 + n, width) to what the head reads: the cls token, the mean of the patch tokens, or their means in a coarse grid of places (where
something is bright matters to a heart, and masked auto-encoding teaches no token to say it for all)."""


class Attention(nn.Module):
    """Multi-head self-attention over tokens (b, n, width), for all of them or the first `wanted`; one Linear for queries, keys and values."""

    def __init__(self, width: int, heads: int, qkv_bias: bool):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=qkv_bias)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor, wanted: int | None = None) -> Tensor:
        b, _, width = x.shape
        q, k, v = by_heads(self.qkv(x), 3, self.heads)
        x = attention(q[:, :, :wanted], k, v)
        return self.out_proj(x.transpose(1, 2).reshape(b, -1, width))


class MLP(nn.Module):
    """Linear, exact GELU, Linear."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.linear1 = nn.Linear(width, hidden)
        self.linear2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear2(nn.functional.gelu(self.linear1(x)))


class Block(nn.Module):
    """Pre-norm transformer block on tokens (b, n, width); of the first `wanted` tokens alone if what follows reads no others."""

    def __init__(self, width: int, heads: int, hidden: int, qkv_bias: bool):
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = Attention(width, heads, qkv_bias)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = MLP(width, hidden)

    def forward(self, x: Tensor, wanted: int | None = None) -> Tensor:
        x = x[:, :wanted] + self.attn(self.norm1(x), wanted)
        return x + self.mlp(self.norm2(x))


class Patches(nn.Conv3d):
    """A convolution with kernel = stride, as the linear layer that it is: (b, in, x, y, z) to (b, n, width). A CPU takes twice as long over
    torch's own."""

    def forward(self, image: Tensor) -> Tensor:
        (b, channels, *size), step = image.shape, self.kernel_size
        x, y, z = (length // part for length, part in zip(size, step, strict=True))
        parts = image.reshape(b, channels, x, step[0], y, step[1], z, step[2]).permute(0, 2, 4, 6, 1, 3, 5, 7)
        return nn.functional.linear(parts.reshape(b, x * y * z, -1), self.weight.flatten(1), self.bias)


class PatchEmbedding(nn.Module):
    """Image (b, in_channels, x, y, z) to tokens (b, n, width): patches through one linear map, plus learned positions."""

    def __init__(self, image_size: Triple, patch: Triple, in_channels: int, width: int):
        super().__init__()
        self.image_size = image_size
        self.patch_embeddings = Patches(in_channels, width, patch, patch)
        tokens = math.prod(size // step for size, step in zip(image_size, patch, strict=True))
        self.position_embeddings = nn.Parameter(torch.zeros(1, tokens, width))

    def forward(self, image: Tensor) -> Tensor:
        if tuple(image.shape[2:]) != self.image_size:
            raise InputError(f"data.size: expected {self.image_size} for this ViT, found {tuple(image.shape[2:])}")
        return self.patch_embeddings(image) + self.position_embeddings


class ViTClassifier(nn.Module):
    """Image (b, in_channels, x, y, z) to logits (b, out).

    `pool`: the head reads the "cls" token, as MONAI's does, the "mean" of the patch tokens, or their means in a coarse "grid".
    Raises InputError for sizes that do not fit each other.
    """

    adapter_targets = {
        "qkv": r"blocks\.\d+\.attn\.qkv",
        "out_proj": r"blocks\.\d+\.attn\.out_proj",
        "linear1": r"blocks\.\d+\.mlp\.linear1",
        "linear2": r"blocks\.\d+\.mlp\.linear2",
    }
    default_targets = ("qkv", "out_proj")
    head_names = ("classification_head.weight", "classification_head.bias")
    decoder_names = ()

    def __init__(
        self,
        image_size: Triple,
        patch: Triple,
        width: int,
        depth: int,
        heads: int,
        in_channels: int = 2,
        out: int = 2,
        mlp_ratio: int = 4,
        qkv_bias: bool = False,
        pool: str = "cls",
    ):
        super().__init__()
        for name, value in {"width": width, "depth": depth, "heads": heads, "mlp_ratio": mlp_ratio}.items():
            if value < 1:
                raise InputError(f"model.{name}: expected a whole number from 1 on, found {value}")
        if any(size % step for size, step in zip(image_size, patch, strict=True)):
            raise InputError(f"model.patch: expected a divisor of the image size {tuple(image_size)}, found {tuple(patch)}")
        if width % heads:
            raise InputError(f"model.width: expected a multiple of the {heads} heads, found {width}")
        if pool not in POOLS:
            raise InputError(f"model.pool: expected one of {', '.join(POOLS)}, found {pool}")
        self.image_size, self.patch, self.pool = tuple(image_size), tuple(patch), pool
        self.patch_embedding = PatchEmbedding(self.image_size, self.patch, in_channels, width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.blocks = nn.ModuleList(Block(width, heads, mlp_ratio * width, qkv_bias) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.classification_head = nn.Linear(width * math.prod(GRID) if pool == "grid" else width, out)

    @property
    def adapter_blocks(self) -> tuple[str, ...]:
        return tuple(f"blocks.{i}" for i in range(len(self.blocks)))

    def with_cls(self, tokens: Tensor) -> Tensor:
        """(b, n, width) to (b, 1 + n, width): the cls token first."""
        return torch.cat((self.cls_token.expand(len(tokens), -1, -1), tokens), dim=1)

    def stages(self) -> list[Stage]:
        """Between two stages: the tokens (b, 1 + n, width); before a head that reads the cls token alone, that token (b, 1, width)."""
        last = len(self.blocks) - 1

        def embed(tensors):
            return (self.with_cls(self.patch_embedding(tensors[0])),)

        def step(i, block):
            wanted = 1 if i == last and self.pool == "cls" else None
            return lambda tensors: (block(tensors[0], wanted),)

        grid = tuple(size // step for size, step in zip(self.image_size, self.patch, strict=True))

        def head(tensors):
            return (self.classification_head(POOLS[self.pool](self.norm(tensors[0]), grid)),)

        blocks = [
            Stage(name=name, block=i, modules=(name,), run=step(i, block))
            for i, (name, block) in enumerate(zip(self.adapter_blocks, self.blocks, strict=True))
        ]
        return [
            Stage(name="patch_embedding", modules=("patch_embedding", "cls_token"), run=embed),
            *blocks,
            Stage(name="head", modules=("norm", "classification_head"), run=head),
        ]

    def forward(self, image: Tensor) -> Tensor:
        return run_stages(self.stages(), (image,))[0]
