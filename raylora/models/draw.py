"""Random weights from one generator: a model built twice from the same seed is the same model, whatever ran before."""

import math

import torch
from torch import Tensor, nn

_CONVOLUTIONS = (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)
LEAKY_SLOPE = 0.01


@torch.no_grad()
def draw_weights(model: nn.Module, generator: torch.Generator) -> nn.Module:
    """Draw every weight of a model in place, in the order of its modules, and return it.

    Convolutions: Kaiming normal for a leaky ReLU (He et al. 2015, eq. 15), as MONAI's DynUNet does. Linear layers and tokens:
    normal of standard deviation 0.02, cut at two deviations, as usual for transformers. Norms one, biases zero. Parameters
    without gradient (a fixed position table) stay as they are.
    """
    for module in model.modules():
        if isinstance(module, _CONVOLUTIONS):
            nn.init.kaiming_normal_(module.weight, a=LEAKY_SLOPE, generator=generator)
        elif isinstance(module, nn.Linear):
            _cut_normal(module.weight, generator)
        elif isinstance(getattr(module, "weight", None), nn.Parameter):
            module.weight.fill_(1.0)
        if isinstance(getattr(module, "bias", None), nn.Parameter):
            module.bias.zero_()
        for name, parameter in module.named_parameters(recurse=False):
            if name not in ("weight", "bias") and parameter.requires_grad:
                _cut_normal(parameter, generator)
    return model


def _cut_normal(tensor: Tensor, generator: torch.Generator, std: float = 0.02) -> None:
    """Normal of mean 0, cut at two deviations, by the inverse distribution function (two-sided probability erf(2 / sqrt(2)))."""
    tensor.uniform_(-1.0, 1.0, generator=generator).mul_(math.erf(math.sqrt(2.0))).erfinv_().mul_(math.sqrt(2.0) * std)
