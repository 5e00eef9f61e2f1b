"""Layers for stacks of slices against torch's of the same names: values, gradients, and the order in memory that makes them fast."""

import itertools
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from raylora.models import slices
from raylora.models.lora import Adapted, Pass

SHAPE = (2, 3, 8, 6, 5)
SINGLE = {"one sample": (1, 3, 8, 6, 5), "one slice": (2, 3, 8, 6, 1), "one sample of one slice": (1, 3, 8, 6, 1)}


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def in_slices(x: torch.Tensor) -> bool:
    """Whether the slices lie one after the other, the channels of a pixel together."""
    return x.permute(0, 1, 4, 2, 3).is_contiguous(memory_format=torch.channels_last_3d)


CONVOLUTIONS = {
    "in the plane": {"kernel_size": (3, 3, 1), "padding": (1, 1, 0)},
    "of unequal sides": {"kernel_size": (5, 3, 1), "padding": (2, 1, 0), "bias": False},
    "with strides": {"kernel_size": (3, 3, 1), "padding": (1, 1, 0), "stride": (2, 1, 1)},
    "of one voxel": {"kernel_size": 1},
    "with holes": {"kernel_size": (3, 3, 1), "padding": (2, 2, 0), "dilation": (2, 2, 1)},
    "across slices": {"kernel_size": (3, 3, 3), "padding": 1, "stride": (2, 2, 1)},
    "of unequal sides across slices": {"kernel_size": (1, 5, 3), "padding": (0, 2, 1), "stride": (1, 2, 2)},
    "of one voxel, in every second slice": {"kernel_size": 1, "stride": (1, 1, 2)},
}
OTHERS = {
    "in groups": {"kernel_size": 1, "groups": 3},
    "that wraps": {"kernel_size": (3, 3, 1), "padding": (1, 1, 0), "padding_mode": "circular"},
}
UPWARD = {"in the plane": {"stride": (2, 3, 1), "bias": False}, "across slices": {"stride": (2, 1, 2), "bias": True}}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def layers() -> dict[str, tuple[nn.Module, nn.Module]]:
    """Ours and torch's."""
    pairs = {f"convolution {name}": (slices.Conv3d(3, 4, **how), nn.Conv3d(3, 4, **how)) for name, how in CONVOLUTIONS.items()}
    for name, how in UPWARD.items():
        pairs[f"upward {name}"] = slices.Enlarge3d(3, 4, **how), nn.ConvTranspose3d(3, 4, how["stride"], **how)
    pairs["norm"] = slices.InstanceNorm3d(3), nn.InstanceNorm3d(3, affine=True)
    return pairs


def assert_alike(ours: nn.Module, theirs: nn.Module, image: torch.Tensor) -> torch.Tensor:
    """Values and gradients, in float64; returns what ours makes of the image."""
    for parameter in ours.double().parameters():
        parameter.data = draw(*parameter.shape)
    theirs.double().load_state_dict(ours.state_dict())
    given = [image.clone().requires_grad_() for _ in range(2)]
    out, expected = ours(given[0]), theirs(given[1])
    assert out.shape == expected.shape and torch.allclose(out, expected, rtol=0, atol=1e-12)
    weights = draw(*expected.shape)
    (out * weights).sum().backward()
    (expected * weights).sum().backward()
    assert torch.allclose(given[0].grad, given[1].grad, rtol=0, atol=1e-11)
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(mine.grad, other.grad, rtol=0, atol=1e-11)
    return out


@pytest.mark.parametrize("order", ["as torch has it", "in slices"])
@pytest.mark.parametrize("name", list(layers()))
def test_values_and_gradients_are_those_of_torch(name, order):
    image = draw(*SHAPE)
    if order == "in slices":
        image = image.permute(0, 4, 2, 3, 1).contiguous().permute(0, 4, 2, 3, 1)
        assert in_slices(image)
    assert in_slices(assert_alike(*layers()[name], image))


@pytest.mark.parametrize("shape", SINGLE.values(), ids=list(SINGLE))
@pytest.mark.parametrize("name", ["convolution in the plane", "convolution across slices", "upward in the plane", "norm"])
def test_of_one_sample_or_one_slice(name, shape):
    assert in_slices(assert_alike(*layers()[name], draw(*shape)))


def test_of_one_channel():
    assert_alike(slices.Conv3d(1, 4, (3, 3, 1), padding=(1, 1, 0)), nn.Conv3d(1, 4, (3, 3, 1), padding=(1, 1, 0)), draw(2, 1, 8, 6, 5))


@pytest.mark.parametrize("how", OTHERS.values(), ids=list(OTHERS))
def test_what_has_no_form_of_its_own_is_left_to_torch(how):
    assert_alike(slices.Conv3d(3, 6, **how), nn.Conv3d(3, 6, **how), draw(*SHAPE))


def test_in_bfloat16():
    image = draw(*SHAPE).bfloat16()
    for ours, theirs in layers().values():
        theirs.load_state_dict(ours.state_dict())
        given = [image.clone().requires_grad_(), image.float().requires_grad_()]
        out, expected = ours.bfloat16()(given[0]), theirs(given[1])
        assert out.dtype == torch.bfloat16 and torch.allclose(out.float(), expected, atol=0.05)
        weights = draw(*expected.shape)
        (out * weights.bfloat16()).sum().backward()
        (expected * weights.float()).sum().backward()
        assert torch.allclose(given[0].grad.float(), given[1].grad, atol=0.15)


@pytest.mark.parametrize("samples", [1, 2])
def test_many_clients_batches_stay_in_slices(samples):
    layer = Adapted(slices.Conv3d(3, 4, (3, 3, 1), padding=(1, 1, 0), bias=False), Pass(scalings={"": torch.ones(3)}))
    layer.factors = {"": (torch.randn(3, 2, 27), torch.randn(3, 4, 2))}
    image = torch.randn(3 * samples, 3, 8, 6, 5).permute(0, 4, 2, 3, 1).contiguous().permute(0, 4, 2, 3, 1).requires_grad_()
    whole = image * 1.0  # not a leaf, and seen by a hook: a gradient that is kept is put in an order of its own
    gradients = []
    whole.register_hook(gradients.append)
    out = layer(whole)
    (out * torch.randn_like(out)).sum().backward()
    for k in range(3):
        part = nn.functional.conv3d(
            image[k * samples : (k + 1) * samples],
            layer.base.weight + (layer.factors[""][1][k] @ layer.factors[""][0][k]).reshape(layer.base.weight.shape),
            padding=(1, 1, 0),
        )
        assert torch.allclose(out[k * samples : (k + 1) * samples], part, atol=1e-4)
    assert in_slices(out) and in_slices(gradients[0])


def test_channels_are_concatenated_as_torch_does():
    first, second = draw(*SHAPE), draw(2, 4, 8, 6, 5)
    joined = slices.concatenate(first, second)
    assert torch.equal(joined, torch.cat((first, second), dim=1)) and in_slices(joined)


def test_a_norm_of_one_voxel_is_refused():
    with pytest.raises(ValueError, match="more than 1 voxel"):
        slices.InstanceNorm3d(3)(torch.zeros(2, 3, 1, 1, 1))


def test_a_norm_keeps_the_digits_of_float32_over_many_voxels():
    image = torch.randn(2, 3, 64, 64, 12) + 2
    exact = nn.functional.instance_norm(image.double())
    norm = slices.InstanceNorm3d(3)
    assert (norm(image) - exact).abs().max() < 2e-6  # a float32 sum, one voxel after the other, is off by 2e-5
    assert (norm.bfloat16()(image.bfloat16()) - exact).abs().max() < 0.05


def test_of_a_norm_only_the_gradients_that_are_asked_for():
    image, weight, bias = torch.randn(2, 3, 5, 8, 6), torch.ones(3), torch.zeros(3)
    for wanted in itertools.product((True, False), repeat=3):
        context = SimpleNamespace(needs_input_grad=(*wanted, False))
        context.save_for_backward = lambda *saved, context=context: setattr(context, "saved_tensors", saved)
        slices._Standardised.forward(context, image, weight, bias, 1e-5)
        found = slices._Standardised.backward(context, torch.ones_like(image))
        assert tuple(gradient is not None for gradient in found) == (*wanted, False)


@pytest.mark.parametrize("shape", [(1, 4, 32, 8, 12), (2, 4, 32, 8, 12), (1, 64, 32, 8, 10), (1, 64, 32, 8, 11)])
def test_a_convolution_across_slices_is_left_to_onednn(shape):
    """torch has a kernel of its own for one small stack alone (the first; the third is the largest), which takes three times as long."""
    layer = slices.Conv3d(shape[1], 4, (3, 3, 3), padding=1)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
        layer(torch.randn(*shape, requires_grad=True)).sum().backward()
    names = {event.key for event in seen.key_averages()}
    assert any("mkldnn" in name for name in names) and not [name for name in names if "slow" in name]
