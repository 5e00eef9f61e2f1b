"""Masked auto-encoding (He et al. 2022, arXiv 2111.06377) of a ViT: what the pre-training on unlabelled studies minimises."""

import math

import torch
from torch import Tensor, nn

from raylora.models.vit import Block, ViTClassifier

DECODER = {"width": 64, "depth": 2, "heads": 4}


class MAEDecoder(nn.Module):
    """Tokens of the visible patches to the pixels of all patches (b, n, pixels); thrown away after the pre-training."""

    def __init__(self, vit: ViTClassifier, width: int = DECODER["width"], depth: int = DECODER["depth"], heads: int = DECODER["heads"]):
        super().__init__()
        tokens, encoder_width = vit.patch_embedding.position_embeddings.shape[1:]
        self.embed = nn.Linear(encoder_width, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.position_embeddings = nn.Parameter(torch.zeros(1, tokens, width))
        self.blocks = nn.ModuleList(Block(width, heads, 4 * width, qkv_bias=True) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.pixels = nn.Linear(width, vit.patch_embedding.patch_embeddings.in_channels * math.prod(vit.patch))

    def forward(self, visible: Tensor, where: Tensor) -> Tensor:
        """visible (b, v, encoder width) and the numbers of its patches (b, v)."""
        b, n = len(visible), self.position_embeddings.shape[1]
        tokens = self.mask_token.expand(b, n, -1)
        embedded = self.embed(visible)
        tokens = tokens.scatter(1, where[..., None].expand(-1, -1, embedded.shape[-1]), embedded) + self.position_embeddings
        for block in self.blocks:
            tokens = block(tokens)
        return self.pixels(self.norm(tokens))


def patches(images: Tensor, patch: tuple[int, int, int]) -> Tensor:
    """(b, c, x, y, z) to (b, patches, c px py pz), in the order of the patch embedding's tokens."""
    b, c = images.shape[:2]
    (x, px), (y, py), (z, pz) = ((size // step, step) for size, step in zip(images.shape[2:], patch, strict=True))
    cut = images.reshape(b, c, x, px, y, py, z, pz).permute(0, 2, 4, 6, 1, 3, 5, 7)  # (b, x, y, z, c, px, py, pz)
    return cut.reshape(b, x * y * z, c * px * py * pz)


def mae_loss(vit: ViTClassifier, decoder: MAEDecoder, images: Tensor, generator: torch.Generator, mask: float = 0.75) -> Tensor:
    """Mean squared error on the hidden patches, each normalised by its own mean and deviation (the paper's normalised pixels).

    `mask` is the share of patches that is hidden; which ones is drawn from `generator`, image by image.
    """
    truth = patches(images, vit.patch)  # (b, n, p)
    b, n = truth.shape[:2]
    visible_count = max(1, round(n * (1 - mask)))
    order = torch.rand(b, n, generator=generator).argsort(dim=1).to(images.device)
    where, hidden = order[:, :visible_count], order[:, visible_count:]
    tokens = vit.patch_embedding(images)
    tokens = tokens.gather(1, where[..., None].expand(-1, -1, tokens.shape[-1]))  # (b, v, width)
    tokens = vit.with_cls(tokens)
    for block in vit.blocks:
        tokens = block(tokens)
    predicted = decoder(vit.norm(tokens)[:, 1:], where)
    truth = (truth - truth.mean(-1, keepdim=True)) / (truth.var(-1, keepdim=True) + 1e-6).sqrt()
    wrong = (predicted - truth).square().mean(-1)  # (b, n)
    return wrong.gather(1, hidden).mean()
