"""The vision transformer against MONAI's ViT, its stages, and what it refuses."""

import re

import pytest
import torch

from raylora.core.errors import InputError
from raylora.models import vit
from raylora.models.draw import draw_weights
from raylora.models.stages import run_stages

TINY = {"image_size": (16, 24, 4), "patch": (8, 8, 2), "width": 24, "depth": 3, "heads": 4}


def drawn(seed: int = 0, **arguments) -> vit.ViTClassifier:
    model = draw_weights(vit.ViTClassifier(**arguments), torch.Generator().manual_seed(seed)).eval()
    for seed, parameter in enumerate(model.parameters()):  # biases and norms too: at zero and one a mistake would not show
        parameter.data += 0.1 * noise(*parameter.shape, seed=seed)
    return model


def noise(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.slow  # importing MONAI takes seconds
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("arguments", [{}, {"qkv_bias": True, "mlp_ratio": 2, "in_channels": 1, "out": 5}])
def test_logits_equal_those_of_monai_vit(arguments):
    from raylora.models.monai_twin import monai_vit

    model = drawn(**TINY, **arguments)
    image = noise(2, arguments.get("in_channels", 2), *TINY["image_size"])
    with torch.no_grad():
        assert (monai_vit(model)(image)[0] - model(image)).abs().max() < 1e-6


def test_pools_read_different_tokens():
    mean, image = drawn(**TINY, pool="mean"), noise(1, 2, 16, 24, 4)
    tokens = run_stages(mean.stages()[:-1], (image,))[0]
    expected = mean.classification_head(mean.norm(tokens)[:, 1:].mean(dim=1))
    assert torch.equal(mean(image), expected)
    assert not torch.allclose(mean(image), drawn(**TINY, pool="cls")(image))


def test_trained_tensors_of_the_benchmark_workloads():
    """peers.md of the comparison: rank 4 on qkv and out_proj plus the head trains 28,613 values in W1 and 112,517 in W2."""
    for size, expected in (("w1", 28_613), ("w2", 112_517)):
        model = vit.ViTClassifier(**vit.SIZES[size])
        targets = [m for n, m in model.named_modules() for t in ("qkv", "out_proj") if re.fullmatch(model.adapter_targets[t], n)]
        pairs = sum(4 * (layer.in_features + layer.out_features) for layer in targets)
        heads = sum(model.get_parameter(name).numel() for name in model.head_names)
        assert pairs + heads == expected


def test_a_prefix_of_stages_then_the_rest_is_the_forward_pass():
    model, image = drawn(**TINY), noise(2, 2, 16, 24, 4)
    stages = model.stages()
    for split in range(len(stages) + 1):
        assert torch.equal(run_stages(stages[split:], run_stages(stages[:split], (image,)))[0], model(image))
    for name, _ in model.named_parameters():
        assert sum(stage.holds(name) for stage in stages) == 1, name
    assert [stage.name for stage in stages if stage.block is not None] == list(model.adapter_blocks)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patch": (8, 7, 2)}, "model.patch"),
        ({"heads": 5}, "model.width"),
        ({"pool": "max"}, "model.pool"),
        ({"mlp_ratio": 0}, "model.mlp_ratio"),
        ({"width": 0}, "model.width: .* 1 on"),
        ({"depth": -1}, "model.depth"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        vit.ViTClassifier(**{**TINY, **change})


def test_an_image_of_another_size_is_refused():
    with pytest.raises(InputError, match=r"expected \(16, 24, 4\) .* found \(16, 16, 4\)"):
        drawn(**TINY)(noise(1, 2, 16, 16, 4))
