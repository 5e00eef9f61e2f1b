"""AdamW and SGD over stacked tensors: every client has its own learning rate, clip and moments, though all step together."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


class AdamW:
    """Loshchilov & Hutter (1711.05101), algorithm 2, with torch's defaults; moments live as long as this object, one round."""

    def __init__(self, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, weight_decay: float = 0.0) -> None:
        self.betas, self.eps, self.weight_decay = betas, eps, weight_decay
        self.first: dict[str, Tensor] = {}
        self.second: dict[str, Tensor] = {}
        self.steps = 0

    @torch.no_grad()
    def step(self, parameters: Mapping[str, Tensor], lr: Tensor) -> None:
        """One step on tensors (K, ...) with gradients, at rates lr (K,)."""
        self.steps += 1
        beta1, beta2 = self.betas
        for name, value in parameters.items():
            gradient = value.grad
            if gradient is None:
                continue
            rate = lr.reshape(-1, *(1,) * (value.dim() - 1))
            first = self.first.setdefault(name, torch.zeros_like(value)).lerp_(gradient, 1 - beta1)
            second = self.second.setdefault(name, torch.zeros_like(value)).mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
            denominator = second.sqrt().div_((1 - beta2**self.steps) ** 0.5).add_(self.eps)
            if self.weight_decay:
                value.mul_(1 - rate * self.weight_decay)
            value.sub_(rate / (1 - beta1**self.steps) * first / denominator)

    def keep(self, index: Tensor) -> None:
        """Go on with some of the clients only."""
        self.first = {name: value[index] for name, value in self.first.items()}
        self.second = {name: value[index] for name, value in self.second.items()}


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
