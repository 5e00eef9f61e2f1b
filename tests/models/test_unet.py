"""The U-Net against MONAI's DynUNet, its stages, and what it refuses."""

import re

import pytest
import torch

from raylora.core.errors import InputError
from raylora.models import unet
from raylora.models.draw import draw_weights
from raylora.models.stages import Stage, first_trained, run_stages

TINY = {"channels": (4, 6, 8, 10), **unet.anisotropic(4)}


def drawn(seed: int = 0, **arguments) -> unet.UNet:
    return draw_weights(unet.UNet(**arguments), torch.Generator().manual_seed(seed)).eval()


def noise(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.slow  # importing MONAI takes seconds
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    "arguments",
    [
        TINY,
        {"channels": (4, 6, 8), **unet.anisotropic(3, deep=2), "in_channels": 2, "out": 3},
        {"channels": (4, 4, 4), "kernels": ((3, 3, 3),) * 3, "strides": ((1, 1, 1), (2, 2, 2), (2, 2, 1))},
    ],
)
def test_outputs_equal_those_of_monai_dynunet(arguments):
    from raylora.models.monai_twin import monai_unet

    model = drawn(**arguments)
    for seed, parameter in enumerate(model.parameters()):  # norms too: at one and zero a swap of two of them would not show
        parameter.data += 0.1 * noise(*parameter.shape, seed=seed)
    image = noise(2, arguments.get("in_channels", 1), 16, 24, 6).double()
    twin = monai_unet(model).double()
    with torch.no_grad():
        assert (twin(image) - model.double()(image)).abs().max() < 1e-12


@pytest.mark.parametrize("slices", [1, 5])
def test_any_number_of_slices(slices):
    assert drawn(**TINY)(noise(1, 1, 16, 16, slices)).shape == (1, 4, 16, 16, slices)


def test_named_sizes():
    sizes = {name: sum(p.numel() for p in unet.UNet(**arguments).parameters()) for name, arguments in unet.SIZES.items()}
    assert 0.3e6 < sizes["small"] < 0.6e6
    assert 4 * sizes["paper"] == pytest.approx(28e6, rel=0.02)  # bytes


def test_a_prefix_of_stages_then_the_rest_is_the_forward_pass():
    model, image = drawn(**TINY), noise(1, 1, 16, 16, 2)
    stages = model.stages()
    for split in range(len(stages) + 1):
        middle = run_stages(stages[:split], (image,))
        assert torch.equal(run_stages(stages[split:], middle)[0], model(image))


def test_stages_hold_every_parameter_once_and_blocks_are_numbered_in_order():
    model = drawn(**TINY)
    stages = model.stages()
    for name, _ in model.named_parameters():
        assert sum(stage.holds(name) for stage in stages) == 1, name
    assert [stage.modules[0] for stage in stages if stage.block is not None] == list(model.adapter_blocks)
    assert [stage.block for stage in stages if stage.block is not None] == list(range(len(model.adapter_blocks)))


def test_first_trained_stage():
    stages = drawn(**TINY).stages()
    trained = ["output_block.conv.conv.bias", "local.upsamples.1.conv_block.conv1.conv.lora_A"]
    assert stages[first_trained(stages, trained)].name == "upsamples.1"
    assert first_trained(stages, []) == len(stages)
    with pytest.raises(ValueError, match="encoder"):
        first_trained(stages, ["encoder.weight"])


def test_a_stage_holds_whole_names_only():
    stage = Stage(name="second", modules=("blocks.1", "token"), run=lambda tensors: tensors)
    assert stage.holds("blocks.1.norm.weight") and stage.holds("token") and stage.holds("router.blocks.1.attn.weight")
    assert not stage.holds("blocks.10.norm.weight") and not stage.holds("tokens")


def test_targets_match_convolutions_and_no_transposed_one():
    model = drawn(**TINY)
    matched = {name for name, _ in model.named_modules() if re.fullmatch(model.adapter_targets["conv"], name)}
    convolutions = {name for name, m in model.named_modules() if isinstance(m, torch.nn.Conv3d)}
    assert matched == convolutions - {"output_block.conv.conv"}


def test_same_seed_same_weights():
    first, second, other = drawn(3, **TINY), drawn(3, **TINY), drawn(4, **TINY)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(first.bottleneck.conv1.conv.weight, other.bottleneck.conv1.conv.weight)


def test_refusals():
    with pytest.raises(InputError, match=r"multiple of 8 along y .* found 20"):
        drawn(**TINY)(noise(1, 1, 16, 20, 2))
    with pytest.raises(InputError, match="3 or more"):
        unet.UNet((4, 8), **unet.anisotropic(2))
