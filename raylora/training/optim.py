"""AdamW and SGD over stacked tensors: every client has its own learning rate, clip and moments, though all step together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor


class AdamW:
    """Loshchilov & Hutter (1711.05101), algorithm 2, with torch's defaults; moments live as long as this object, one phase of a round.

    All tensors of a client lie one after the other in one row (K, n), of which they become views: a step is a few operations instead of a
    few for each tensor. A tensor without a gradient stays as it is.
    """

    def __init__(self, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, weight_decay: float = 0.0) -> None:
        self.betas, self.eps, self.weight_decay = betas, eps, weight_decay
        self.rows: Tensor | None = None
        self.first: Tensor | None = None
        self.second: Tensor | None = None
        self.steps: Tensor | None = None

    @torch.no_grad()
    def step(self, parameters: Mapping[str, Tensor], lr: Tensor) -> None:
        """One step on tensors (K, ...) with gradients, at rates lr (K,). Until `keep`, the same ones have a gradient each time."""
        values = [value for value in parameters.values() if value.grad is not None]
        if not values:
            return
        if self.rows is None:
            self.rows = _rows(values)
            parts = self.rows.split([value[0].numel() for value in values], 1)
            for value, part in zip(values, parts, strict=True):
                value.data = part.view(value.shape)
        if self.first is None or self.second is None:
            self.first, self.second = torch.zeros_like(self.rows), torch.zeros_like(self.rows)
            self.steps = torch.zeros((), device=self.rows.device)
        gradient = _rows([value.grad for value in values if value.grad is not None])
        self.steps += 1
        step = torch.zeros_like(self.rows)
        torch._fused_adamw_(  # what `torch.optim.AdamW(fused=True)` calls; at a rate of 1, since it takes one for all
            [step], [gradient], [self.first], [self.second], [], [self.steps],
            lr=1.0, beta1=self.betas[0], beta2=self.betas[1], eps=self.eps, weight_decay=0.0, amsgrad=False, maximize=False,
        )  # fmt: skip
        rate = lr[:, None]
        if self.weight_decay:
            self.rows.mul_(1 - rate * self.weight_decay)
        self.rows.addcmul_(step, rate)

    def keep(self, index: Tensor) -> None:
        """Go on with some of the clients only."""
        if self.first is not None and self.second is not None:
            self.rows, self.first, self.second = None, self.first[index], self.second[index]


def _rows(tensors: Iterable[Tensor]) -> Tensor:
    """(K, ...) each to (K, n)."""
    return torch.cat([tensor.reshape(len(tensor), -1) for tensor in tensors], 1)


class SGD:
    """Plain gradient descent."""

    def __init__(self, weight_decay: float = 0.0) -> None:
        self.weight_decay = weight_decay

    @torch.no_grad()
    def step(self, parameters: Mapping[str, Tensor], lr: Tensor) -> None:
        """One step on tensors (K, ...) with gradients, at rates lr (K,)."""
        for value in parameters.values():
            if value.grad is not None:
                value.sub_(lr.reshape(-1, *(1,) * (value.dim() - 1)) * (value.grad + self.weight_decay * value))

    def keep(self, index: Tensor) -> None:
        """Nothing to carry over."""


OPTIMISERS = {"adamw": AdamW, "sgd": SGD}


@torch.no_grad()
def clip_per_client(parameters: Mapping[str, Tensor], norm: float) -> None:
    """Scale each client's gradient to at most `norm` (2-norm over all its trained tensors)."""
    gradients = [value.grad for value in parameters.values() if value.grad is not None]
    squared = torch.stack([gradient.flatten(1).square().sum(1) for gradient in gradients]).sum(0)  # (K,)
    factor = (norm / (squared.sqrt() + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        gradient.mul_(factor.reshape(-1, *(1,) * (gradient.dim() - 1)))
