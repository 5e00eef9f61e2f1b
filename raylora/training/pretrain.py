"""Small foundation models: a U-Net by supervision, a ViT by masked auto-encoding, each on its own population."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import nn

from raylora.core.errors import RunError
from raylora.core.seeds import generator, seed_of
from raylora.training.losses import dice_and_cross_entropy
from raylora.training.samples import Samples

Report = Callable[[int, int, float], None]
"""step, steps, mean loss since the last report"""


def supervised(
    network: nn.Module, samples: Samples, *, steps: int, batch_size: int, lr: float, weight_decay: float, seed: int, report: Report
) -> nn.Module:
    """Train every weight on labelled frames."""

    def loss(images: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        return dice_and_cross_entropy(network(images), targets, weights[None])[0]

    return _descend(network, [network], samples, loss, steps, batch_size, lr, weight_decay, seed, report)


def masked(
    network: nn.Module,
    samples: Samples,
    *,
    mask: float,
    steps: int,
    batch_size: int,
    lr: float,
    weight_decay: float,
    seed: int,
    report: Report,
) -> nn.Module:
    """Masked auto-encoding (He et al., 2111.06377) of a ViT; the decoder is thrown away."""
    from raylora.models.draw import draw_weights
    from raylora.models.mae import MAEDecoder, mae_loss

    decoder = draw_weights(MAEDecoder(network), torch.Generator().manual_seed(seed_of(seed, "decoder") % 2**63))
    stream = torch.Generator().manual_seed(seed_of(seed, "mask") % 2**63)

    def loss(images: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        return mae_loss(network, decoder, images, stream, mask)

    return _descend(network, [network, decoder], samples, loss, steps, batch_size, lr, weight_decay, seed, report)


def _descend(
    network: nn.Module,
    trained: Sequence[nn.Module],
    samples: Samples,
    loss: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor],
    steps: int,
    batch_size: int,
    lr: float,
    weight_decay: float,
    seed: int,
    report: Report,
) -> nn.Module:
    parameters = [value for module in trained for value in module.parameters() if value.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay, betas=(0.9, 0.95))
    order, draws = generator(seed, "batches"), generator(seed, "augment")
    queue: list[int] = []
    recent: list[float] = []
    told = time.monotonic()
    for step in range(steps):
        warm = min(1.0, (step + 1) / max(1, steps // 20))
        for group in optimiser.param_groups:
            group["lr"] = lr * warm * 0.5 * (1 + math.cos(math.pi * step / steps))
        while len(queue) < batch_size:
            queue += order.permutation(len(samples)).tolist()
        chosen, queue = queue[:batch_size], queue[batch_size:]
        images, targets, weights = (torch.from_numpy(array) for array in samples.batch(np.array(chosen), draws))
        value = loss(images, targets, weights)
        optimiser.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        recent.append(value.item())
        if not math.isfinite(recent[-1]):
            raise RunError(f"pretrain: step {step}: the loss is {recent[-1]}; try a smaller lr")
        if time.monotonic() - told > 2 or step == steps - 1:
            report(step + 1, steps, float(np.mean(recent)))
            recent, told = [], time.monotonic()
    return network.eval()
