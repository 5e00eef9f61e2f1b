"""A 3-D U-Net for short-axis stacks, with the names, shapes and outputs of MONAI's DynUNet.

MONAI's own class is not used because importing it costs every process seconds; `monai_twin` builds it from one of these, and a test
holds the two together. DynUNet lists every parameter a second time under `skip_layers.*`: those aliases do not exist here.

Slices are far apart (about 10 mm against 1 mm in the plane), so nothing strides along z and only the lowest levels look across slices:
any number of slices works, and on a CPU most layers see slices as 2-D images (`raylora.models.slices`).
"""

import math
from collections.abc import Sequence

from torch import Tensor, nn

from raylora.core.errors import InputError
from raylora.models import slices
from raylora.models.draw import LEAKY_SLOPE
from raylora.models.stages import Stage, run_stages

Triple = tuple[int, int, int]


def anisotropic(levels: int, deep: int = 1) -> dict[str, tuple[Triple, ...]]:
    """Kernels and strides of the default layout: in-plane kernels, full 3 x 3 x 3 ones on the `deep` lowest levels, strides in the plane.

    >>> anisotropic(3)["kernels"]
    ((3, 3, 1), (3, 3, 1), (3, 3, 3))
    """
    return {
        "kernels": ((3, 3, 1),) * (levels - deep) + ((3, 3, 3),) * deep,
        "strides": ((1, 1, 1),) + ((2, 2, 1),) * (levels - 1),
    }


SIZES = {
    "small": {"channels": (8, 16, 48, 80), **anisotropic(4)},  # for two CPU cores
    "paper": {"channels": (32, 64, 128, 192, 208), **anisotropic(5)},  # the size that Rate-My-LoRA's communication figures imply
}
"""Constructor arguments of the named sizes."""


class _Conv(nn.Module):
    """A convolution one level deeper, where MONAI has it: ``<name>.conv.weight``."""

    def __init__(self, conv: nn.Module):
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


def _convolution(inputs: int, outputs: int, kernel: Triple, stride: Triple = (1, 1, 1), bias: bool = False) -> _Conv:
    padding = tuple(size // 2 for size in kernel)  # odd kernels: the size stays, or is divided by the stride
    return _Conv(slices.Conv3d(inputs, outputs, kernel, stride, padding, bias=bias))


class ConvBlock(nn.Module):
    """Twice: convolution, instance norm, leaky ReLU; the first convolution may stride."""

    def __init__(self, inputs: int, outputs: int, kernel: Triple, stride: Triple = (1, 1, 1)):
        super().__init__()
        self.conv1 = _convolution(inputs, outputs, kernel, stride)
        self.conv2 = _convolution(outputs, outputs, kernel)
        self.norm1 = slices.InstanceNorm3d(outputs)
        self.norm2 = slices.InstanceNorm3d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.leaky_relu(self.norm1(self.conv1(x)), LEAKY_SLOPE)
        return nn.functional.leaky_relu(self.norm2(self.conv2(x)), LEAKY_SLOPE)


class UpBlock(nn.Module):
    """Transposed convolution, concatenation with the skip, `ConvBlock`."""

    def __init__(self, inputs: int, outputs: int, kernel: Triple, stride: Triple):
        super().__init__()
        self.transp_conv = _Conv(slices.Enlarge3d(inputs, outputs, stride))
        self.conv_block = ConvBlock(2 * outputs, outputs, kernel)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return self.conv_block(slices.concatenate(self.transp_conv(x), skip))


class UNet(nn.Module):
    """Image (b, in_channels, x, y, z) to logits (b, out, x, y, z).

    `channels`, `kernels` and `strides` have one entry a resolution level, finest first. The numbered blocks for adapters are the levels
    in forward order: the way down, the bottleneck, the way up. Raises InputError for an image that the strides do not divide.
    """

    adapter_targets = {
        "conv": r"(input_block|downsamples\.\d+|bottleneck|upsamples\.\d+\.conv_block)\.conv[12]\.conv",
        "encoder_conv": r"(input_block|downsamples\.\d+|bottleneck)\.conv[12]\.conv",
        "decoder_conv": r"upsamples\.\d+\.conv_block\.conv[12]\.conv",
    }
    default_targets = ("conv",)
    head_names = ("output_block.conv.conv.weight", "output_block.conv.conv.bias")
    decoder_names = ("upsamples.*",)

    def __init__(self, channels: tuple[int, ...], kernels: tuple[Triple, ...], strides: tuple[Triple, ...], in_channels=1, out=4):
        super().__init__()
        levels = len(channels)
        if not levels == len(kernels) == len(strides) >= 3:
            raise InputError(
                f"U-Net: expected as many kernels and strides as channels, 3 or more, found {levels}, {len(kernels)}, {len(strides)}"
            )
        if any(len(triple) != 3 or min(triple) < 1 for triple in (*kernels, *strides)) or min(channels) < 1:
            raise InputError("model.sizes: expected channels, and three kernel sizes and strides a level, of 1 or more each")
        if any(size % 2 == 0 for kernel in kernels for size in kernel) or set(strides[0]) != {1}:
            raise InputError("model.sizes: expected odd kernels and strides of 1 at the U-Net's first level")
        self.arguments = {"channels": channels, "kernels": kernels, "strides": strides, "in_channels": in_channels, "out": out}
        down = [
            ConvBlock(inputs, outputs, kernel, stride)
            for inputs, outputs, kernel, stride in zip((in_channels, *channels[:-1]), channels, kernels, strides, strict=True)
        ]
        up = [UpBlock(channels[i + 1], channels[i], kernels[i + 1], strides[i + 1]) for i in reversed(range(levels - 1))]
        self.input_block = down[0]
        self.downsamples = nn.ModuleList(down[1:-1])
        self.bottleneck = down[-1]
        self.upsamples = nn.ModuleList(up)
        self.output_block = _Conv(_convolution(channels[0], out, (1, 1, 1), bias=True))

    @property
    def adapter_blocks(self) -> tuple[str, ...]:
        down = tuple(f"downsamples.{i}" for i in range(len(self.downsamples)))
        up = tuple(f"upsamples.{i}" for i in range(len(self.upsamples)))
        return ("input_block", *down, "bottleneck", *up)

    def stages(self) -> list[Stage]:
        """Between two stages: the skips still needed, finest first, then the current features."""

        def go_down(block):
            return lambda tensors: (*tensors, block(tensors[-1]))

        def go_up(block):
            return lambda tensors: (*tensors[:-2], block(tensors[-1], tensors[-2]))

        runs = [lambda tensors: (self.input_block(self._checked(tensors[0])),)]
        runs += [go_down(block) for block in (*self.downsamples, self.bottleneck)]
        runs += [go_up(block) for block in self.upsamples]
        stages = [Stage(name=n, block=i, modules=(n,), run=r) for i, (n, r) in enumerate(zip(self.adapter_blocks, runs, strict=True))]
        head = Stage(name="output_block", modules=("output_block",), run=lambda tensors: (self.output_block(tensors[0]),))
        return [*stages, head]

    def require_size(self, size: Sequence[int]) -> None:
        """Raise InputError unless the strides divide an image of this size (x, y, z) and leave its norms more than one voxel."""
        steps = [math.prod(strides) for strides in zip(*self.arguments["strides"], strict=True)]
        for axis, step, voxels in zip("xyz", steps, size, strict=True):
            if voxels % step:
                raise InputError(f"data.size: expected a multiple of {step} along {axis} for this U-Net, found {voxels}")
        if math.prod(size) <= math.prod(steps):
            raise InputError(f"data.size: of {tuple(size)} this U-Net's lowest level is one voxel, expected a larger image")

    def _checked(self, image: Tensor) -> Tensor:
        self.require_size(image.shape[2:])
        return image

    def forward(self, image: Tensor) -> Tensor:
        return run_stages(self.stages(), (image,))[0]
