"""The work that the bare loop and the peers do, in plain torch: the model, one client's local epoch. Needs torch and numpy only.

Written as a careful hand would write it, because raylora is measured against it: one flat tensor holds everything that is trained, so a
client is received and sent with one copy; frozen parameters have no gradient and what lies before the first adapted block no graph; AdamW
is torch's fused one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.peers.workloads import CHANNELS, CLASSES, IDLE_LOSS, SCALING, Folder, Workload

# ---- the model: MONAI's names and arithmetic


class LoRA(nn.Module):
    """A frozen linear layer and its pair: y = W x + (alpha / rank) B A x."""

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.base = base
        self.lora_A = nn.Parameter(torch.zeros(rank, base.in_features))
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + F.linear(F.linear(x, self.lora_A), self.lora_B * SCALING)


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, n, width = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        return self.out_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, width))


class MLP(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear1, self.linear2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear2(F.gelu(self.linear1(x)))


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.attn, self.norm2, self.mlp = nn.LayerNorm(width), Attention(width, heads), nn.LayerNorm(width), MLP(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Patches(nn.Module):
    def __init__(self, work: Workload) -> None:
        super().__init__()
        self.patch_embeddings = nn.Conv3d(CHANNELS, work.width, work.patch, work.patch)
        self.position_embeddings = nn.Parameter(torch.zeros(1, work.tokens - 1, work.width))

    def forward(self, image: Tensor) -> Tensor:
        return self.patch_embeddings(image).flatten(2).transpose(1, 2) + self.position_embeddings


class ViT(nn.Module):
    """Images (b, 2, x, y, z) to logits (b, 5). LoRA on qkv and out_proj of the last blocks; only LoRA and the head have gradients."""

    def __init__(self, work: Workload) -> None:
        super().__init__()
        self.patch_embedding = Patches(work)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, work.width))
        self.blocks = nn.ModuleList(Block(work.width, work.heads) for _ in range(work.depth))
        self.norm = nn.LayerNorm(work.width)
        self.classification_head = nn.Linear(work.width, CLASSES)
        self.requires_grad_(False)
        self.classification_head.requires_grad_(True)
        for block in list(self.blocks)[work.depth - work.adapted :]:
            block.attn.qkv, block.attn.out_proj = LoRA(block.attn.qkv, work.rank), LoRA(block.attn.out_proj, work.rank)

    def forward(self, image: Tensor) -> Tensor:
        x = self.patch_embedding(image)
        x = torch.cat((self.cls_token.expand(len(x), -1, -1), x), dim=1)
        for block in self.blocks:
            x = block(x)
        return self.classification_head(self.norm(x)[:, 0])

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy."""
        return F.cross_entropy(self(images), labels)


class Model:
    """The network with its weights, and everything that is trained as views of one flat tensor, in the order of the sorted names."""

    def __init__(self, folder: Folder) -> None:
        start = np.load(folder.path / "start.npz")
        self.network, self.rate = ViT(folder.work), folder.work.rate
        state = {name: torch.from_numpy(start[name]) for name in start.files}
        self.network.load_state_dict({ours: state[ours.replace(".base.", ".")] for ours in self.network.state_dict()})
        trained = dict(sorted((n, p) for n, p in self.network.named_parameters() if p.requires_grad))
        self.parameters = list(trained.values())
        self.flat = torch.cat([p.detach().reshape(-1) for p in self.parameters])
        parts = self.flat.split([p.numel() for p in self.parameters])
        for parameter, part in zip(self.parameters, parts, strict=True):
            parameter.data = part.view(parameter.shape)

    def train(self, received: Tensor, folder: Folder, round: int, client: int) -> tuple[Tensor, float, int]:
        """What one client does in a round: what it sends, its mean loss (1 if it is idle), its steps."""
        if folder.work.idle:
            return received.clone(), IDLE_LOSS, 0
        return self.local_epoch(received, *folder.samples(round, client), folder.work.batch)

    def local_epoch(self, received: Tensor, images: np.ndarray, labels: np.ndarray, batch: int) -> tuple[Tensor, float, int]:
        """Train one client on its samples, in their order, from what it received: what it sends, its mean loss, its steps."""
        self.flat.copy_(received)
        optimiser = torch.optim.AdamW(self.parameters, lr=self.rate, weight_decay=0.0, fused=True)
        losses = []
        for first in range(0, len(images), batch):
            loss = self.network.loss(torch.from_numpy(images[first : first + batch]), torch.from_numpy(labels[first : first + batch]))
            loss.backward()
            optimiser.step()
            optimiser.zero_grad()
            losses.append(loss.item())
        return self.flat.clone(), float(np.mean(losses)), len(losses)


def mean(sent: Sequence[Tensor]) -> Tensor:
    """FedAvg of clients of one size, summed in float64."""
    total = torch.zeros_like(sent[0], dtype=torch.float64)
    for tensor in sent:
        total += tensor
    return (total / len(sent)).float()
