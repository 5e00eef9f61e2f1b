"""Masked auto-encoding: what is hidden stays hidden, only that is scored, and the loss falls."""

import pytest
import torch

from raylora.models import mae
from raylora.models.draw import draw_weights
from raylora.models.vit import ViTClassifier

SIZE, PATCH = (16, 24, 4), (8, 8, 2)  # 2 x 3 x 2 patches


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def vit() -> ViTClassifier:
    return draw_weights(ViTClassifier(SIZE, PATCH, width=24, depth=2, heads=4), seeded(0))


@pytest.fixture
def decoder(vit) -> mae.MAEDecoder:
    return draw_weights(mae.MAEDecoder(vit, width=16, depth=1), seeded(1))


def pictures(count: int) -> torch.Tensor:
    """Two-channel pictures of one bright disc each, at a place of its own: predictable from a part."""
    x, y, z = torch.meshgrid(*(torch.arange(float(size)) for size in SIZE), indexing="ij")
    place = torch.rand(count, 2, generator=seeded(2)) * torch.tensor([8.0, 16.0]) + 4.0
    squared = (x - place[:, 0, None, None, None]) ** 2 + (y - place[:, 1, None, None, None]) ** 2
    disc = torch.exp(-squared / 20.0) * (1.0 + z / 10.0)
    return torch.stack((disc, 0.5 * disc), dim=1)


def test_patches_have_the_order_of_the_tokens(vit):
    """A ViT whose first feature is the patch's sum finds the sum of the same patch."""
    images = pictures(2)
    conv = vit.patch_embedding.patch_embeddings
    conv.weight.data.fill_(1.0), conv.bias.data.zero_(), vit.patch_embedding.position_embeddings.data.zero_()
    sums = mae.split_patches(images, PATCH).sum(dim=-1)
    assert sums.shape == (2, 12)
    assert torch.allclose(vit.patch_embedding(images)[..., 0], sums, rtol=1e-5)


def test_a_quarter_stays_visible_and_differs_between_images():
    visible = mae.choose_visible(50, 12, seeded(0))
    assert visible.shape == (50, 3)
    assert all(len(set(row)) == 3 for row in visible.tolist())
    assert set(visible.flatten().tolist()) == set(range(12))
    assert torch.equal(visible, mae.choose_visible(50, 12, seeded(0)))
    assert mae.choose_visible(1, 2, seeded(0), hidden=0.9).shape == (1, 1)


def test_the_encoder_does_not_see_hidden_patches(vit):
    images = pictures(1)
    visible = torch.tensor([[0, 7]])  # patch 7 is (1, 0, 1)
    changed = images.clone()
    changed[:, :, 8:, 8:, :] += 5.0  # patches (1, 1..2, 0..1), numbers 8 to 11
    assert torch.equal(mae.encode_visible(vit, images, visible), mae.encode_visible(vit, changed, visible))
    changed[:, :, 8:, :8, 2:] += 5.0  # patch 7
    assert not torch.equal(mae.encode_visible(vit, images, visible), mae.encode_visible(vit, changed, visible))


def test_visible_tokens_stand_at_their_own_places(vit, decoder):
    """The order in which the visible patches are listed does not matter."""
    images = pictures(2)
    visible = torch.tensor([[1, 5, 9], [2, 0, 11]])
    shuffled = visible[:, [2, 0, 1]]
    predictions = [decoder(mae.encode_visible(vit, images, order), order) for order in (visible, shuffled)]
    assert torch.allclose(*predictions, atol=1e-5)
    assert not torch.allclose(predictions[0], decoder(mae.encode_visible(vit, images, visible), shuffled), atol=1e-5)


def test_predictions_stand_at_the_places_of_their_patches(vit):
    """Without attention and positions, every hidden patch is predicted the same, and only the visible ones differ."""
    decoder = draw_weights(mae.MAEDecoder(vit, width=16, depth=0), seeded(1))
    decoder.position_embeddings.data.zero_()
    visible = torch.tensor([[1, 5, 11]])
    predicted = decoder(mae.encode_visible(vit, pictures(1), visible), visible)
    differs = (predicted[0] != predicted[0, 0]).any(dim=-1)
    assert differs.nonzero().flatten().tolist() == [1, 5, 11]


def test_only_hidden_patches_are_scored():
    target, visible = torch.zeros(1, 4, 3), torch.tensor([[1, 2]])
    predicted = torch.tensor([1.0, 100.0, 100.0, 3.0]).view(1, 4, 1).expand(1, 4, 3)
    assert mae.hidden_error(predicted, target, visible) == (1.0 + 9.0) / 2


def test_images_are_standardised_and_flat_ones_become_zero():
    patches = torch.rand(3, 5, 7)
    patches[2] = 0.4
    found = mae.standardise(patches)
    expected = (patches[:2] - patches[:2].mean((1, 2), keepdim=True)) / patches[:2].flatten(1).std(1)[:, None, None]
    assert torch.allclose(found[:2], expected, atol=1e-4)
    assert not found[2].any()


@pytest.mark.slow
def test_the_loss_falls_and_every_part_but_the_head_learns(vit, decoder):
    images = pictures(16)
    parameters = [*vit.parameters(), *decoder.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=3e-3)

    def mean_loss() -> float:
        with torch.no_grad():
            return float(torch.stack([mae.mae_loss(vit, decoder, images, seeded(seed)) for seed in range(8)]).mean())

    before = mean_loss()
    mae.mae_loss(vit, decoder, images, seeded(3)).backward()
    without = {name for name, parameter in [*vit.named_parameters(), *decoder.named_parameters()] if parameter.grad is None}
    assert without == set(vit.head_names)
    for step in range(60):
        optimiser.zero_grad()
        mae.mae_loss(vit, decoder, images, seeded(100 + step)).backward()
        optimiser.step()
    assert mean_loss() < 0.7 * before
