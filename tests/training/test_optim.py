"""The optimisers over stacked clients against torch's own, one client at a time."""

import pytest
import torch

from raylora.training.optim import OPTIMISERS, SGD, AdamW, clip_per_client

SHAPES = {"a": (2, 3), "b": (4,)}
CLIENTS = 3
RATES = torch.tensor([0.1, 0.03, 0.5], dtype=torch.float64)


def drawn(seed: int) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {name: torch.randn(CLIENTS, *shape, dtype=torch.float64, generator=g) for name, shape in SHAPES.items()}


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (AdamW, lambda p, lr, wd: torch.optim.AdamW(p, lr=lr, weight_decay=wd)),
        (SGD, lambda p, lr, wd: torch.optim.SGD(p, lr=lr, weight_decay=wd)),
    ],
)
def test_every_client_steps_as_torch_would_alone(ours, theirs, decay):
    stacked, gradients = drawn(0), [drawn(step + 1) for step in range(4)]
    alone = [{name: value[k].clone().requires_grad_() for name, value in stacked.items()} for k in range(CLIENTS)]
    optimisers = [theirs(list(values.values()), RATES[k].item(), decay) for k, values in enumerate(alone)]
    optimiser = ours(weight_decay=decay)
    for gradient in gradients:
        for name, value in stacked.items():
            value.grad = gradient[name].clone()
        optimiser.step(stacked, RATES)
        for k, values in enumerate(alone):
            for name, value in values.items():
                value.grad = gradient[name][k].clone()
            optimisers[k].step()
    for k, values in enumerate(alone):
        for name, value in values.items():
            torch.testing.assert_close(stacked[name][k], value.detach(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", OPTIMISERS.values())
def test_a_tensor_without_gradient_stays(kind):
    values = drawn(0)
    before = {name: value.clone() for name, value in values.items()}
    values["a"].grad = torch.ones_like(values["a"])
    kind(weight_decay=0.1).step(values, RATES)
    assert not torch.equal(values["a"], before["a"]) and torch.equal(values["b"], before["b"])


def test_who_stays_keeps_his_moments():
    whole, part = drawn(0), drawn(0)
    both = AdamW()
    for values in (whole, part):
        for name, value in values.items():
            value.grad = drawn(1)[name]
    both.step(whole, RATES)
    leaving = AdamW()
    leaving.step(part, RATES)
    index = torch.tensor([0, 2])
    leaving.keep(index)
    part = {name: value[index] for name, value in part.items()}
    for name in SHAPES:
        whole[name].grad, part[name].grad = drawn(2)[name], drawn(2)[name][index]
    both.step(whole, RATES)
    leaving.step(part, RATES[index])
    for name in SHAPES:
        torch.testing.assert_close(part[name], whole[name][index], rtol=0, atol=0)


@pytest.mark.parametrize("norm", [0.5, 1e6])
def test_each_client_is_clipped_by_its_own_norm(norm):
    values = drawn(0)
    factors = torch.tensor([1.0, 10.0, 1e-3], dtype=torch.float64)
    for name, value in values.items():
        value.grad = drawn(1)[name] * factors.reshape(-1, *(1,) * (value.dim() - 1))
    expected = []
    for k in range(CLIENTS):
        alone = [value[k].clone().requires_grad_() for value in values.values()]
        for tensor, value in zip(alone, values.values(), strict=True):
            tensor.grad = value.grad[k].clone()
        torch.nn.utils.clip_grad_norm_(alone, norm)
        expected.append([tensor.grad for tensor in alone])
    clip_per_client(values, norm)
    for k in range(CLIENTS):
        for value, gradient in zip(values.values(), expected[k], strict=True):
            torch.testing.assert_close(value.grad[k], gradient, rtol=1e-12, atol=0)
