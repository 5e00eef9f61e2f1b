"""Scaled dot-product attention with the same bits each time."""

import torch
from torch import Tensor, nn


def by_heads(projected: Tensor, parts: int, heads: int) -> tuple[Tensor, ...]:
    """(b, n, parts * width) to `parts` times (b, heads, n, width / heads). Cut before it is turned, so that on the way back the parts'
    gradients are joined in one copy and not in two."""
    return tuple(part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in projected.chunk(parts, -1))


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) v, of queries, keys and values (b, heads, n, d)."""
    if q.is_cuda and q.dtype == torch.float32:
        return Recomputed.apply(q, k, v)
    return nn.functional.scaled_dot_product_attention(q, k, v)


class Recomputed(torch.autograd.Function):
    """The probabilities are not kept but computed again on the way back, sample by sample, in matrix products.

    torch's own float32 kernel keeps the order of a gradient's sum by giving a whole head to one of the GPU's processors: where there are
    fewer heads than processors, as with one client and one image, most of them wait.
    """

    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        y = nn.functional.scaled_dot_product_attention(q, k, v)
        ctx.save_for_backward(q, k, v, y)
        return y

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """With P = softmax(S), S = q k^T / sqrt(d), y = P v: dv = P^T dy, dS = P (dy v^T - rowsum(dy y))."""
        scale = grad.shape[-1] ** -0.5
        rows = []
        for q, k, v, y, dy in zip(*ctx.saved_tensors, grad, strict=True):
            p = (q * scale @ k.transpose(1, 2)).softmax(-1)  # (heads, n, n)
            ds = (dy @ v.transpose(1, 2)).sub_((dy * y).sum(-1, keepdim=True)).mul_(p)
            rows.append((ds @ k * scale, ds.transpose(1, 2) @ q * scale, p.transpose(1, 2) @ dy))
        dq, dk, dv = (torch.stack(parts) for parts in zip(*rows, strict=True))
        return dq, dk, dv
