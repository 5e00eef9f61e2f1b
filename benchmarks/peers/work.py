"""The work that every system does, in plain torch: the workloads, the model, one client's local epoch. Needs torch and numpy only.

Written as a careful hand would write it, because raylora is measured against it: one flat tensor holds everything that is trained, so a
client is received and sent with one copy; frozen parameters have no gradient and what lies before the first adapted block no graph; AdamW
is torch's fused one.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.processes import cpu_seconds

SCALING, CHANNELS, CLASSES, SEED = 2.0, 2, 5, 0


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What a client does in a round, and how many clients and rounds there are unless asked otherwise."""

    name: str
    size: str  # raylora's name of the model
    image: tuple[int, int, int]
    patch: tuple[int, int, int]
    width: int
    depth: int
    heads: int
    adapted: int  # the last blocks, those with LoRA
    samples: int  # of a client
    batch: int
    clients: int
    rounds: int
    rank: int = 4
    rate: float = 1e-3  # of AdamW
    distinct: int | None = None  # volumes on disk, which clients share; None: each its own

    @property
    def tokens(self) -> int:
        return 1 + math.prod(n // p for n, p in zip(self.image, self.patch, strict=True))

    @property
    def steps(self) -> int:
        """Of one client in one round."""
        return -(-self.samples // self.batch)

    def flops(self) -> float:
        """Of one sample's step, two a multiply-add: the forward pass, and back through what lies behind the first adapted layer.

        Frozen weights need no gradient, so a block's way back costs what its way forward does (its attention twice that). What is neither
        a matrix product nor of LoRA's rank is not counted.
        """
        n, w = self.tokens, self.width
        products, attention = 24 * n * w * w, 4 * n * n * w
        embedding = 2 * (n - 1) * CHANNELS * math.prod(self.patch) * w
        forward = embedding + self.depth * (products + attention)
        back = self.adapted * (products + 2 * attention) - 6 * n * w * w  # the first qkv's input needs no gradient
        return float(forward + back)


SMALL = {"size": "w1", "image": (64, 64, 8), "patch": (16, 16, 4), "width": 192, "depth": 6, "heads": 6, "adapted": 6, "distinct": 128}
LARGE = {"size": "w2", "image": (96, 96, 16), "patch": (16, 16, 2), "width": 384, "depth": 12, "heads": 6}
TINY = {"size": "w1", "image": (16, 16, 4), "patch": (16, 16, 4), "width": 384, "depth": 3, "heads": 6, "adapted": 3, "rank": 54}
WORKLOADS: Mapping[str, Workload] = {
    work.name: work
    for work in (
        Workload(
            name="W0", **TINY, rate=1e-5, samples=2, batch=2, clients=8, rounds=20
        ),  # hardly any work, 1.5 MB to send: what a round itself costs
        Workload(name="W1", **SMALL, samples=16, batch=8, clients=64, rounds=5),
        Workload(name="W1s", **SMALL, samples=4, batch=2, clients=64, rounds=5),
        Workload(name="W2", **LARGE, adapted=12, samples=16, batch=4, clients=8, rounds=3),
        Workload(name="W3", **LARGE, adapted=2, samples=16, batch=4, clients=8, rounds=10),
    )
}


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


# ---- the data, and what a system says


class Folder:
    """What `prepare` wrote: the volumes (memory-mapped), every client's order of samples in every round, the weights at the start."""

    def __init__(self, path: Path) -> None:
        self.path = path
        about: dict[str, Any] = json.loads((path / "about.json").read_text())
        self.work = WORKLOADS[about["workload"]]
        self.clients: int = about["clients"]
        self.rounds: int = about["rounds"]
        self.workers: int = about["workers"]  # processes or threads that compute at once
        self.volumes = np.load(path / "volumes.npy", mmap_mode="r")  # (distinct, 2, x, y, z) float32
        self.order = np.load(path / "order.npy")  # (rounds, clients, samples)

    def samples(self, round: int, client: int) -> tuple[np.ndarray, np.ndarray]:
        """A client's images (n, 2, x, y, z) and labels (n,) in the order of a round."""
        order = self.order[round, client]
        return self.volumes[volume_of(self.work, client, order, len(self.volumes))], (order % 2).astype(np.int64)


def volume_of(work: Workload, client: int, sample: Any, distinct: int) -> Any:
    """Which of the volumes on disk a client's sample is."""
    return (client * work.samples + sample) % distinct


def mean(sent: Sequence[Tensor]) -> Tensor:
    """FedAvg of clients of one size, summed in float64."""
    total = torch.zeros_like(sent[0], dtype=torch.float64)
    for tensor in sent:
        total += tensor
    return (total / len(sent)).float()


class Report:
    """One JSON line a round: when it ended, the CPU time so far, every client's mean loss, the steps that were made."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def round(self, losses: Sequence[float], steps: int) -> None:
        line = {"time": time.time(), "cpu": cpu_seconds(os.getpid()), "losses": list(losses), "steps": steps}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
