"""CineMA's transformer encoder: separate q, fused kv, pre-norm blocks, a cls token first."""

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from raylora.core.errors import InputError
from raylora.models.attention import attention, by_heads


class Attention(nn.Module):
    """Multi-head self-attention on (b, n, width); kv holds the keys of all heads, then the values of all heads."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, n, width = x.shape
        q = self.q(x).view(b, n, self.heads, -1).transpose(1, 2)  # (b, heads, n, width / heads)
        k, v = by_heads(self.kv(x), 2, self.heads)
        x = attention(q, k, v)
        return self.proj(x.transpose(1, 2).reshape(b, n, width))


class MLP(nn.Module):
    """Linear, exact GELU, Linear; four times as wide inside."""

    def __init__(self, width: int):
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(nn.functional.gelu(self.fc1(x)))


class Block(nn.Module):
    """Pre-norm transformer block on (b, n, width); `scales` are factors (b, 1, 1) on its two branches."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = MLP(width)

    def forward(self, x: Tensor, scales: tuple[Tensor | float, Tensor | float] = (1.0, 1.0)) -> Tensor:
        x = x + scales[0] * self.attn(self.norm1(x))
        return x + scales[1] * self.mlp(self.norm2(x))


class Encoder(nn.Module):
    """Blocks and norm on (b, 1 + n, width).

    `drop_path`: in training, the probability that a branch is dropped for a whole sample, the others being scaled up (stochastic depth);
    it draws from `generator`, on the CPU, which whoever trains must set.
    `grad_checkpoint`: a block's activations are computed again in the backward pass. What is drawn *inside* a block, such as a LoRA layer's
    dropout, would be drawn again too and differ: leave such dropout off. Drop-path is drawn outside.
    """

    def __init__(self, width: int, depth: int, heads: int, drop_path: float, grad_checkpoint: bool):
        super().__init__()
        if width % heads:
            raise InputError(f"model.embed: expected a multiple of the {heads} heads, found {width}")
        self.drop_path, self.grad_checkpoint = drop_path, grad_checkpoint
        self.generator: torch.Generator | None = None
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def with_cls(self, tokens: Tensor) -> Tensor:
        """(b, n, width) to (b, 1 + n, width)."""
        return torch.cat((self.cls_token.expand(len(tokens), -1, -1).to(tokens), tokens), dim=1)

    def step(self, block: nn.Module, x: Tensor) -> Tensor:
        """One block on (b, 1 + n, width)."""
        scales = self._scales(x) if self.training and self.drop_path else (1.0, 1.0)
        if self.grad_checkpoint and torch.is_grad_enabled():
            return checkpoint(block, x, scales, use_reentrant=False, preserve_rng_state=False)
        return block(x, scales)

    def _scales(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.generator is None:
            raise ValueError("drop_path draws in training: set the encoder's generator first")
        kept = torch.empty(2, len(x), 1, 1).bernoulli_(1.0 - self.drop_path, generator=self.generator)
        return tuple((kept / (1.0 - self.drop_path)).to(x).unbind())
