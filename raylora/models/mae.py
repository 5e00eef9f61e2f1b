"""Masked auto-encoding (He et al. 2022, arXiv 2111.06377): pre-training of the vision transformer without labels.

Most patches are hidden, the encoder sees the rest, and a small decoder, thrown away afterwards, predicts the hidden pixels.
"""

import math

import torch
from torch import Tensor, nn

from raylora.models.vit import Block, Triple, ViTClassifier

HIDDEN = 0.75
"""The share of patches that is hidden."""


class MAEDecoder(nn.Module):
    """The encoder's visible tokens to pixels of every patch; learned positions, one token that stands for every hidden patch."""

    def __init__(self, vit: ViTClassifier, width: int = 64, depth: int = 2, heads: int = 4):
        super().__init__()
        conv, positions = vit.patch_embedding.patch_embeddings, vit.patch_embedding.position_embeddings
        self.embed = nn.Linear(conv.out_channels, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.position_embeddings = nn.Parameter(torch.zeros(1, 1 + positions.shape[1], width))
        self.blocks = nn.ModuleList(Block(width, heads, 4 * width, qkv_bias=True) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.pixels = nn.Linear(width, conv.in_channels * math.prod(vit.patch))

    def forward(self, encoded: Tensor, visible: Tensor) -> Tensor:
        """Encoded cls and visible tokens (b, 1 + v, width of the encoder), their patch numbers (b, v), to pixels (b, n, pixels)."""
        encoded = self.embed(encoded)
        b, _, width = encoded.shape
        tokens = self.mask_token.expand(b, self.position_embeddings.shape[1] - 1, width).to(encoded)
        tokens = tokens.scatter(1, visible[..., None].expand(-1, -1, width), encoded[:, 1:])  # (b, n, width)
        x = torch.cat((encoded[:, :1], tokens), dim=1) + self.position_embeddings
        for block in self.blocks:
            x = block(x)
        return self.pixels(self.norm(x)[:, 1:])


def choose_visible(batch: int, patches: int, generator: torch.Generator, hidden: float = HIDDEN) -> Tensor:
    """For each image the numbers of the patches that stay visible, in random order: (b, v); at least one."""
    noise = torch.rand(batch, patches, generator=generator)
    return noise.argsort(dim=1)[:, : max(1, round((1.0 - hidden) * patches))]


def split_patches(images: Tensor, patch: Triple) -> Tensor:
    """(b, c, x, y, z) to (b, n, pixels), patches in the order of the ViT's tokens."""
    b, c, *sizes = images.shape
    split = [part for size, step in zip(sizes, patch, strict=True) for part in (size // step, step)]
    return images.reshape(b, c, *split).permute(0, 2, 4, 6, 1, 3, 5, 7).reshape(b, math.prod(split[::2]), -1)


def standardise(patches: Tensor) -> Tensor:
    """Every image (b, n, pixels) to mean 0 and variance 1 over all its patches.

    The paper also tries every patch on its own and finds it a little better for recognition. Here it loses what disease is read from:
    on phantoms a linear readout of how bright a place is, which is how large a cavity is, came out at chance.
    """
    variance, mean = torch.var_mean(patches, dim=(1, 2), keepdim=True)
    return (patches - mean) / (variance + 1e-6).sqrt()


def encode_visible(vit: ViTClassifier, images: Tensor, visible: Tensor) -> Tensor:
    """The encoder on the cls token and the visible patches alone: (b, 1 + v, width). Hidden patches do not enter."""
    tokens = vit.patch_embedding(images)
    x = vit.with_cls(tokens.gather(1, visible[..., None].expand(-1, -1, tokens.shape[-1])))
    for block in vit.blocks:
        x = block(x)
    return vit.norm(x)


def hidden_error(predicted: Tensor, target: Tensor, visible: Tensor) -> Tensor:
    """Mean squared error (scalar) over the patches that are not visible; both (b, n, pixels)."""
    error = (predicted - target).square().mean(dim=-1)  # (b, n)
    weight = torch.ones_like(error).scatter(1, visible, 0.0)
    return (error * weight).sum() / weight.sum()


def mae_loss(vit: ViTClassifier, decoder: MAEDecoder, images: Tensor, generator: torch.Generator, hidden: float = HIDDEN) -> Tensor:
    """The loss (scalar) of one batch (b, c, x, y, z); the hidden patches are drawn from `generator`, on the CPU."""
    target = standardise(split_patches(images, vit.patch))
    visible = choose_visible(len(images), target.shape[1], generator, hidden).to(images.device)
    return hidden_error(decoder(encode_visible(vit, images, visible), visible), target, visible)
