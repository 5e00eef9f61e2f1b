"""Layers for stacks of slices: (b, c, x, y, z) whose slices lie in memory one after the other, the channels of a pixel together.

Every layer takes (b, c, x, y, z) in any memory order and computes what torch's layer of the same name computes. On a CPU it returns the
order above, which the next one wants: a kernel that does not look across slices is then a 2-D convolution of b z images, for which
oneDNN has better kernels than for the same sums in 3-D, above all for the gradients of weights on processors without AVX-512.
On other devices the layers are torch's.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

Triple = tuple[int, int, int]
SMALL = 20_480  # numbers in a sample but for its last dimension: with no more than these torch keeps oneDNN from one alone


def _inside(x: Tensor) -> Tensor:
    """(b, c, x, y, z) as (b, c, z, x, y), channels last in memory."""
    return x.permute(0, 1, 4, 2, 3).contiguous(memory_format=torch.channels_last_3d)


def _outside(x: Tensor) -> Tensor:
    """Back to (b, c, x, y, z), the order in memory as it was."""
    return x.contiguous(memory_format=torch.channels_last_3d).permute(0, 1, 3, 4, 2)


def _images(x: Tensor) -> Tensor:
    """(b, c, x, y, z) as images (b z, c, x, y), channels last in memory."""
    return _inside(x).transpose(1, 2).flatten(0, 1)


def _stacks(images: Tensor, batch: int) -> Tensor:
    """Back to (b, c, x, y, z), the order in memory as it was."""
    return _outside(images.unflatten(0, (batch, -1)).transpose(1, 2))


def _inner(triple: Sequence[int]) -> Triple:
    x, y, z = triple
    return z, x, y


def convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sequence[int] = (1, 1, 1),
    padding: Sequence[int] = (0, 0, 0),
    dilation: Sequence[int] = (1, 1, 1),
) -> Tensor:
    """`torch.nn.functional.conv3d` of one group."""
    if x.device.type != "cpu":
        return F.conv3d(x, weight, bias, stride, padding, dilation)
    if (weight.shape[-1], stride[-1], padding[-1]) == (1, 1, 0):
        return _stacks(F.conv2d(_images(x), weight[..., 0], bias, stride[:2], padding[:2], dilation[:2]), len(x))
    _, channels, rows, _, count = x.shape
    if len(x) == 1 and channels * count * rows <= SMALL and (stride[-1], dilation[-1]) == (1, 1):
        return _neighbours(x, weight, bias, stride, padding, dilation)
    kernel = weight.permute(0, 1, 4, 2, 3)
    return _outside(F.conv3d(_inside(x), kernel, bias, _inner(stride), _inner(padding), _inner(dilation)))


def _neighbours(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> Tensor:
    """The same of one small stack alone, for which torch's own kernel takes three times as long as oneDNN's in 2-D: the slices that a
    kernel sees at once are more channels of one image."""
    depth, beyond = weight.shape[-1], padding[-1]
    one_by_one = F.pad(_inside(x), (0, 0, 0, 0, beyond, beyond))[0].transpose(0, 1)  # (z, c, x, y)
    count = len(one_by_one) - depth + 1
    images = torch.cat([one_by_one[first : first + count] for first in range(depth)], dim=1).contiguous(memory_format=torch.channels_last)
    kernel = weight.permute(0, 4, 1, 2, 3).flatten(1, 2)  # (out, depth c, x, y)
    return _stacks(F.conv2d(images, kernel, bias, stride[:2], padding[:2], dilation[:2]), 1)


class Conv3d(nn.Conv3d):
    """`torch.nn.Conv3d`."""

    def forward(self, x: Tensor) -> Tensor:
        if self.groups > 1 or self.padding_mode != "zeros" or isinstance(self.padding, str):
            return super().forward(x)
        return convolve(x, self.weight, self.bias, self.stride, self.padding, self.dilation)


class Enlarge3d(nn.ConvTranspose3d):
    """`torch.nn.ConvTranspose3d` that turns each voxel into as many as its stride says: the kernels do not overlap."""

    def __init__(self, inputs: int, outputs: int, stride: Triple, bias: bool = False) -> None:
        super().__init__(inputs, outputs, stride, stride, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu":
            return super().forward(x)
        if self.stride[2] == 1:
            return _stacks(F.conv_transpose2d(_images(x), self.weight[..., 0], self.bias, self.stride[:2]), len(x))
        return _outside(F.conv_transpose3d(_inside(x), self.weight.permute(0, 1, 4, 2, 3), self.bias, _inner(self.stride)))


class InstanceNorm3d(nn.InstanceNorm3d):
    """`torch.nn.InstanceNorm3d` with a weight and a bias for each channel."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, affine=True)

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu":
            return super().forward(x)
        if x[0, 0].numel() == 1:
            raise ValueError(f"an instance norm needs more than 1 voxel, found {tuple(x.shape)}")
        return _outside(_Standardised.apply(_inside(x), self.weight, self.bias, self.eps))


class _Standardised(torch.autograd.Function):
    """weight (x - mean) / sqrt(variance + eps) + bias of (b, c, z, x, y) over its voxels, channels last in and out.

    torch's instance norm knows no such order and would copy; its batch norm of each sample alone sums tens of thousands of voxels one
    after the other, which costs two digits of float32. With c = x - mean, s = 1 / sqrt(variance + eps) and g the gradient coming in,
    dx = weight s (g - mean(g) - s^2 c mean(g c)).
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        flat = _flat(x)
        centred = flat - flat.mean(1, keepdim=True)
        scale = (centred.square().mean(1, keepdim=True) + eps).rsqrt()
        ctx.save_for_backward(centred.to(x.dtype), scale, weight)
        return _like(torch.addcmul(bias.to(flat), centred, scale * weight), x)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        centred, scale, weight = ctx.saved_tensors
        flat = _flat(gradient.contiguous(memory_format=torch.channels_last_3d))
        along = (flat * centred).mean(1, keepdim=True)
        dx = dweight = dbias = None
        if ctx.needs_input_grad[0]:
            dx = (flat - flat.mean(1, keepdim=True)).addcmul_(centred, -along * scale.square()).mul_(scale * weight)
            dx = _like(dx, gradient)
        if ctx.needs_input_grad[1]:
            dweight = ((along * scale).sum((0, 1)) * flat.shape[1]).to(weight)
        if ctx.needs_input_grad[2]:
            dbias = flat.sum((0, 1)).to(weight)
        return dx, dweight, dbias, None


def _flat(x: Tensor) -> Tensor:
    """(b, c, z, x, y) as (b, voxels, c), in float32 at least: bfloat16 has too few digits for sums over voxels."""
    return x.permute(0, 2, 3, 4, 1).flatten(1, 3).to(torch.promote_types(x.dtype, torch.float32))


def _like(flat: Tensor, x: Tensor) -> Tensor:
    return flat.to(x.dtype).unflatten(1, x.shape[2:]).permute(0, 4, 1, 2, 3)


def concatenate(*tensors: Tensor) -> Tensor:
    """`torch.cat` along the channels."""
    if tensors[0].device.type != "cpu":
        return torch.cat(tensors, dim=1)
    return _outside(torch.cat([_inside(tensor) for tensor in tensors], dim=1))
