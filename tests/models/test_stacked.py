"""Which layers get adapters, what a tree starts as, and who may be wrong about it."""

import numpy as np
import pytest
import torch
from small_runs import UNET, VIT
from torch import nn

from raylora.core.errors import InputError
from raylora.core.types import Phase
from raylora.models import zoo
from raylora.models.stacked import StackedModel, adapted_modules


def unet():
    return zoo.build("unet", "segmentation", "small", (16, 16, 4), UNET)


def vit():
    return zoo.build("vit", "disease", "small", (16, 16, 4), VIT)


def test_targets_and_blocks_choose_the_layers():
    assert adapted_modules(vit(), ["qkv"], "all") == ("blocks.0.attn.qkv", "blocks.1.attn.qkv")
    assert adapted_modules(vit(), ["qkv", "linear1"], 1) == ("blocks.1.attn.qkv", "blocks.1.mlp.linear1")
    assert adapted_modules(vit(), ["out_proj"], [0]) == ("blocks.0.attn.out_proj",)
    assert len(adapted_modules(unet(), None, "all")) == 10
    assert adapted_modules(unet(), None, [0]) == ("input_block.conv1.conv", "input_block.conv2.conv")
    assert adapted_modules(unet(), None, 1) == ("upsamples.1.conv_block.conv1.conv", "upsamples.1.conv_block.conv2.conv")


@pytest.mark.parametrize(
    ("targets", "blocks", "message"),
    [
        (["qvk"], "all", r"lora.targets: unknown target 'qvk' \(this model has: qkv, "),
        (None, 3, r"lora.blocks: the last 3 blocks were asked for, the model has 2$"),
        (None, [0, 2], r"lora.blocks: expected block numbers from 0 to 1, found \[2\]$"),
        (None, [], r"lora.blocks: expected block numbers from 0 to 1, found none$"),
    ],
)
def test_what_the_model_does_not_have_is_refused(targets, blocks, message):
    with pytest.raises(InputError, match=message):
        adapted_modules(vit(), targets, blocks)


class Grouped(nn.Module):
    adapter_blocks = ("a",)
    adapter_targets = {"grouped": r"a\.grouped", "up": r"a\.up", "norm": r"a\.norm"}
    default_targets = ("grouped",)

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.ModuleDict({"grouped": nn.Conv2d(4, 4, 1, groups=2), "up": nn.ConvTranspose2d(4, 4, 2), "norm": nn.LayerNorm(4)})


@pytest.mark.parametrize(("target", "word"), [("grouped", "grouped convolution"), ("up", "ConvTranspose2d"), ("norm", "LayerNorm")])
def test_layers_that_take_no_lora_are_refused(target, word):
    with pytest.raises(InputError, match=rf"^lora.targets: a\.{target} is a {word}"):
        adapted_modules(Grouped(), [target], "all")


def test_a_target_that_is_in_no_chosen_block_is_refused():
    with pytest.raises(InputError, match="match no layer"):
        adapted_modules(unet(), ["decoder_conv"], [0])


def dual(net=None) -> StackedModel:
    net = net or vit()
    return StackedModel(net, modules=adapted_modules(net, None, "all"), plain=net.head_names, adapters={"": None, "local": 3})


def test_the_first_tree_is_the_head_random_a_and_zero_b():
    model = dual()
    rng = np.random.default_rng
    tree = model.outline.initial(rng(1), rng(2), 2)
    other = model.outline.initial(rng(1), rng(3), 2)
    assert tree["blocks.0.attn.qkv.lora_A"].shape == (2, 16) and tree["local.blocks.0.attn.qkv.lora_B"].shape == (48, 3)
    assert all(value.dtype == np.float32 for value in tree.values())
    assert not any(value.any() for name, value in tree.items() if name.endswith("lora_B"))
    a = tree["blocks.0.attn.qkv.lora_A"]
    assert np.abs(a).max() <= 0.25 and np.abs(a).max() > 0.15 and abs(a.std() - 0.25 / 3**0.5) < 0.05  # uniform in +-1/sqrt(16)
    np.testing.assert_array_equal(tree["classification_head.weight"], vit().classification_head.weight.detach().numpy())
    differ = {name for name in tree if not np.array_equal(tree[name], other[name])}
    assert differ == {name for name in tree if name.startswith("local.") and name.endswith("lora_A")}, "the global part is everybody's"


def test_heads_are_each_client_s_own():
    model = dual()
    rng = np.random.default_rng
    trees = [model.outline.initial(rng(1), rng(k), 2) | {"classification_head.bias": np.array([k, -k], np.float32)} for k in range(2)]
    model.load(trees, [4.0, 4.0])
    x = torch.rand(4, 2, 16, 16, 4)
    together = model(x)
    plain = vit().eval()(x)
    torch.testing.assert_close(together[:2], plain[:2])
    torch.testing.assert_close(together[2:], plain[2:] + torch.tensor([1.0, -1.0]))


def test_the_whole_model_can_be_each_client_s_own():
    net = unet()
    model = StackedModel(net, modules=(), adapters={}, full=True)
    rng = np.random.default_rng(0)
    first = model.outline.initial(rng, rng, 1)
    assert set(first) == {name for name, _ in net.named_parameters()}
    second = {name: value + rng.normal(0, 0.1, value.shape).astype(np.float32) for name, value in first.items()}
    model.load([first, second], [1.0, 1.0])
    x = torch.rand(4, 1, 16, 16, 4)
    twin = unet().eval()
    before = twin(x)[:2]
    twin.load_state_dict({name: torch.from_numpy(value) for name, value in second.items()})
    torch.testing.assert_close(model(x), torch.cat([before, twin(x)[2:]]), rtol=1e-4, atol=1e-5)
    trained = model.begin(Phase(trains=("*",)), set(first))
    model(x).square().mean().backward()
    assert len(trained) == len(first) and all(value.grad is not None for value in trained.values())


def test_frozen_parts_stay_in_evaluation_mode():
    class Noisy(nn.Module):
        adapter_blocks, adapter_targets, head_names = ("fc",), {"fc": "fc"}, ()

        def __init__(self) -> None:
            super().__init__()
            self.fc, self.drop, self.norm = nn.Linear(4, 4), nn.Dropout(0.5), nn.BatchNorm1d(4)

        def forward(self, x):
            return self.norm(self.drop(self.fc(x)))

    model = StackedModel(Noisy().train(), modules=("fc",))
    rng = np.random.default_rng(0)
    model.load([model.outline.initial(rng, rng, 1)], [1.0])
    model.begin(Phase(trains=("*",)), {"fc.lora_B"})
    x = torch.rand(8, 4)
    assert torch.equal(model(x), model(x)) and not model.backbone.norm.running_mean.any()
    assert model.backbone.fc.base.weight.grad is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_trees_go_through_every_precision(dtype):
    net = vit().to(dtype)
    model = dual(net)
    rng = np.random.default_rng
    tree = model.outline.initial(rng(1), rng(2), 2)
    assert {value.dtype for value in tree.values()} == {np.dtype(np.float32)}
    model.load([tree], [4.0])
    assert model(torch.rand(1, 2, 16, 16, 4, dtype=dtype)).dtype == dtype
    for name, value in model.read([0])[0].items():
        np.testing.assert_allclose(value, tree[name], rtol=0 if dtype != torch.bfloat16 else 2**-8)
