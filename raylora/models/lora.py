"""LoRA for K clients at once: y = base(x) + sum_j gate_j scaling_j B_j A_j x, with a leading client axis on every trained tensor.

The batch holds K clients one after the other, b samples each. The frozen base sees one batch of K b samples; each client's slice meets its
own factors in a batched product. K = 1 is the ordinary loop. In bfloat16 what is trained stays float32 (small steps would be rounded away)
and is rounded where it meets an activation. peft supplies the meaning of rank, alpha and targets and is the reference
that the tests hold this layer to.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from raylora.models import slices

CONVOLUTIONS = {slices.Conv3d: slices.convolve, nn.Conv1d: F.conv1d, nn.Conv2d: F.conv2d, nn.Conv3d: F.conv3d}  # the first that fits


@dataclass
class Pass:
    """How all adapted layers of a model compute at the moment: one object, which `StackedModel` sets."""

    scalings: dict[str, Tensor] = field(default_factory=dict)  # (K,) by adapter
    gates: Mapping[str, float] = field(default_factory=dict)
    detached: frozenset[str] = frozenset()
    dropout: float = 0.0
    streams: Sequence[torch.Generator] = ()  # one per client while training
    samples: Sequence[int] = ()  # of each client's batch; what follows them is padding, for which nothing is drawn

    @property
    def drops(self) -> bool:
        return bool(self.streams and self.dropout)


class Adapted(nn.Module):
    """A frozen linear or convolution layer and the adapters on it.

    ``factors[adapter]`` is the pair (A (K, r, in), B (K, out, r)), set by `StackedModel`. A convolution's A is a convolution with the base's
    kernel, stride and padding to r channels, flattened to (r, in * kernel); its B is a 1 x 1 convolution.
    """

    def __init__(self, base: nn.Module, now: Pass) -> None:
        super().__init__()
        self.base, self.now = base, now
        self.factors: dict[str, tuple[Tensor, Tensor]] = {}
        self.router: Tensor | None = None  # (K, adapters, in)

    def forward(self, x: Tensor) -> Tensor:
        if not self.factors:
            return self.base(x)
        if self._mergeable():
            return self._merged(x)
        y, now = self.base(x), self.now
        mixture = self._mixture(x) if self.router is not None else None
        dropped = self._drop(x) if now.drops else x
        linear = isinstance(self.base, nn.Linear)
        for index, (name, (a, b)) in enumerate(self.factors.items()):
            gate = now.gates.get(name, 1.0) if mixture is None else 1.0
            factors = a.to(x.dtype), b.to(x.dtype), (gate * now.scalings[name]).to(x.dtype)
            if linear and mixture is None and name not in now.detached:
                y = self._linear(dropped, *factors, onto=y)
                continue
            z = self._linear(dropped, *factors) if linear else self._conv(dropped, *factors)
            if name in now.detached:
                z = z.detach()
            y = y + (z if mixture is None else mixture[index] * z)
        return y

    def _mergeable(self) -> bool:
        """Whether W + sum_j gate_j scaling_j B_j A_j is the same function: not with dropout, a router or a stop-gradient."""
        return not (isinstance(self.base, nn.Linear) or self.now.detached or self.router is not None or self.now.drops)

    def _merged(self, x: Tensor) -> Tensor:
        """One convolution a client with its own W + sum_j gate_j scaling_j B_j A_j. With a U-Net's few channels a convolution is bound by
        memory, and a second one to r channels costs nearly as much as the first."""
        base, clients = self.base, len(next(iter(self.factors.values()))[0])
        gates, scalings = self.now.gates, self.now.scalings
        delta = sum(torch.bmm(b * (gates.get(name, 1.0) * scalings[name])[:, None, None], a) for name, (a, b) in self.factors.items())
        weights = (base.weight + delta.reshape(clients, *base.weight.shape)).to(x.dtype)
        conv = _convolution(base)
        return together(
            [
                conv(part, weight, base.bias, base.stride, base.padding, base.dilation)
                for part, weight in zip(apart(x, clients), weights, strict=True)
            ]
        )

    def _linear(self, x: Tensor, a: Tensor, b: Tensor, scaling: Tensor, onto: Tensor | None = None) -> Tensor:
        """s B A x, on top of what is there: the sum of two whole activations would cost more than the product."""
        flat = x.reshape(len(a), -1, x.shape[-1])  # (K, n, in)
        hidden = torch.bmm(flat, a.transpose(1, 2)) * scaling[:, None, None]  # (K, n, r)
        right = b.transpose(1, 2)
        z = torch.bmm(hidden, right) if onto is None else torch.baddbmm(onto.reshape(*flat.shape[:2], -1), hidden, right)
        return z.reshape(*x.shape[:-1], b.shape[1])

    def _conv(self, x: Tensor, a: Tensor, b: Tensor, scaling: Tensor) -> Tensor:
        base = self.base
        conv = _convolution(base)
        weights = a.reshape(*a.shape[:2], base.in_channels, *base.kernel_size)  # (K, r, in, *kernel)
        parts = [
            conv(part, weight, None, base.stride, base.padding, base.dilation) * s
            for part, weight, s in zip(apart(x, len(a)), weights, scaling, strict=True)
        ]
        ones = (1,) * (x.dim() - 2)
        return together([conv(part, right.reshape(*right.shape, *ones)) for part, right in zip(parts, b, strict=True)])

    def _mixture(self, x: Tensor) -> tuple[Tensor, ...]:
        """The router's softmax(W_r x) over the adapters, one factor for each, token by token: (..., 1). Of a convolution, a token is what
        the kernel sees at one place of the output: (b, 1, *places)."""
        router = self.router.to(x.dtype)
        if isinstance(self.base, nn.Linear):
            flat = x.reshape(len(router), -1, x.shape[-1])
            scores = torch.bmm(flat, router.transpose(1, 2)).reshape(*x.shape[:-1], -1)  # (..., adapters)
            return scores.softmax(-1).split(1, -1)
        base, conv = self.base, _convolution(self.base)
        kernels = router.reshape(*router.shape[:2], base.in_channels, *base.kernel_size)  # (K, adapters, in, *kernel)
        parts = [
            conv(part, kernel, None, base.stride, base.padding, base.dilation)
            for part, kernel in zip(apart(x, len(kernels)), kernels, strict=True)
        ]
        return together(parts).softmax(1).split(1, 1)

    def _drop(self, x: Tensor) -> Tensor:
        now, keep = self.now, 1.0 - self.now.dropout
        parts = x.chunk(len(now.streams))
        masks = []
        for part, stream, samples in zip(parts, now.streams, now.samples or [len(part) for part in parts], strict=True):
            drawn = torch.empty((samples, *part.shape[1:])).bernoulli_(keep, generator=stream)
            masks += [drawn, drawn.new_zeros((len(part) - samples, *part.shape[1:]))]
        return x * torch.cat(masks).to(x) / keep


def _convolution(base: nn.Module) -> Callable[..., Tensor]:
    return next(function for kind, function in CONVOLUTIONS.items() if isinstance(base, kind))


def apart(x: Tensor, clients: int) -> Sequence[Tensor]:
    """Each client's samples of a batch. Their gradients are joined in the order in memory that the batch has."""
    if clients == 1:  # the gradient of a single chunk would be a copy as well
        return (x,)
    order = _order(x)
    return [part.permute(_inverse(order)) for part in x.permute(order).chunk(clients)]


def together(parts: Sequence[Tensor]) -> Tensor:
    """The clients' samples as one batch, in the order in memory that the parts have: `torch.cat` knows only some orders."""
    if len(parts) == 1:
        return parts[0]
    order = _order(parts[0])
    return torch.cat([part.permute(order) for part in parts]).permute(_inverse(order))


def _order(x: Tensor) -> list[int]:
    """The dimensions from the outermost in memory to the innermost, samples outermost."""
    return [0, *sorted(range(1, x.dim()), key=lambda dimension: -x.stride(dimension))]


def _inverse(order: Sequence[int]) -> list[int]:
    return sorted(range(len(order)), key=order.__getitem__)


class PerClient(nn.Module):
    """A module of which every client has its own weights: a head, a decoder, or (full fine-tuning) the whole model."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.own: dict[str, Tensor] = {}  # parameter name -> (K, *shape)

    def forward(self, x: Tensor) -> Tensor:
        if not self.own:
            return self.module(x)
        clients = len(next(iter(self.own.values())))
        if isinstance(self.module, nn.Linear):
            return self._linear(x.reshape(clients, -1, x.shape[-1])).view(*x.shape[:-1], -1)
        return together([self._of(k, part) for k, part in enumerate(apart(x, clients))])

    def _linear(self, x: Tensor) -> Tensor:
        """(K, n, in) to (K, n, out), all clients in one product."""
        weight, bias = self.own["weight"].to(x.dtype).transpose(1, 2), self.own.get("bias")
        return torch.bmm(x, weight) if bias is None else torch.baddbmm(bias.to(x.dtype)[:, None], x, weight)

    def _of(self, k: int, x: Tensor) -> Tensor:
        return functional_call(self.module, {name: value[k].to(x.dtype) for name, value in self.own.items()}, (x,))
